/* What a variant, one instruction set and one type to reckon with, does with a job: all of it for one thread. */
#ifndef MANUAL_RNN_CPU_VARIANTS_H
#define MANUAL_RNN_CPU_VARIANTS_H
#include "types.h"

enum { RUN = 128 }; /* products that are summed in registers, before their sum is added to what it goes to */
enum { PANELS, ROWS, COLUMN_DOTS }; /* how a matrix is read: from panels, row by row where it lies, column by column */

/* K x columns, to multiply rows with. */
typedef struct { View from; long K, columns, form; char *packed; } Matrix;

/* Rows of a product, `ld` numbers apart, and what they are added to, or NULL. */
typedef struct { char *at; long ld; const char *base; long base_ld, columns; } ProductOutput;

typedef struct { long *count, members, met; } Barrier; /* of `members` threads */

typedef struct {
    const Job *job;
    const Plan *plan;
    long g;           /* with matrix g */
    View z, y;        /* those of the job, or the block's */
    Matrix w;
    char *carry;
} ScanContext;

typedef struct {
    const char *name;
    long lanes, width; /* numbers in a vector; bytes of one */
    bool pairs;        /* whether they are multiplied as bfloats, two at a time, and added up as floats */
    void (*pack)(const Matrix *m, long v0, long v1);
    void (*multiply)(const Matrix *m, long rows, const char *a, long lda, long v0, long v1, ProductOutput to);
    /* The same of a matrix in panels and of products k0 to k1 alone; and dense rows added to a sum that knows its
     * rounding errors. */
    void (*multiply_part)(const Matrix *m, long rows, const char *a, long lda, long v0, long v1, long k0, long k1,
                          ProductOutput to);
    void (*add_rows)(long rows, long columns, const char *from, char *residues, long ld, char *to, long to_ld);
    void (*run)(const ScanContext *work, Slice slice, const Block *block, Barrier *meeting);
    /* Rows r0 to r1 of a block of `x`: into dense memory, to be added up or to be multiplied, and from there;
     * panels v0 to v1 of x, or of the states before, as the matrix of a product over the block's rows. */
    void (*gather)(const Job *job, const View *x, long columns, const Block *block, long r0, long r1, int add,
                   char *to, long ld);
    void (*factors)(const Job *job, const View *x, long columns, const Block *block, long r0, long r1, char *to,
                    long ld);
    void (*scatter_rows)(const Job *job, const View *x, long columns, const Block *block, long r0, long r1, int add,
                   const char *from, long ld);
    void (*pack_block)(const Job *job, const View *x, int before, long columns, const Block *block, long v0, long v1,
                  char *to);
    /* Columns c0 to c1 of dense rows: as rows, and their sums added to `sums`. */
    void (*transpose_and_sum)(long rows, long c0, long c1, const char *from, long ld, char *to, long to_ld,
                              char *sums, char *residues);
    double (*peak)(long rounds); /* multiply-adds that it makes of registers alone */
} Variant;

/* How numbers of a type are reckoned with. Variants are numbered from the widest vectors on. */
const Variant *variant_of(int variant, long type);
extern const int variant_count;

/* Whether this processor has the instructions. */
bool supported(int variant);

/* Rows of a slice among the first `size` rows of the batch. */
static inline long live_rows(Slice slice, long size)
{
    const long live = size <= slice.row ? 0 : (size - slice.row + slice.apart - 1) / slice.apart;
    return live < slice.rows ? live : slice.rows;
}

/* Rows alive at step t of time; none before the first and after the last. */
static inline long size_at(const Job *job, long t)
{
    if (t < 0 || t >= job->T)
        return 0;
    return job->packed ? job->sizes[t] : job->B;
}

static inline char *at(const View *x, long g, long row, long column)
{
    return x->data + g * x->group + row * x->row + column * x->column;
}

/* `step` is T's index or, if packed, that of the step's first row. */
static inline char *at_step(const View *x, long g, long step, long row, long column)
{
    return at(x, g, row, column) + step * x->step;
}

void barrier_wait(Barrier *meeting);

#endif
