/* A layer in one direction, or a bare recurrence: what a member of a team of threads does for it. */
#ifndef MANUAL_RNN_LAYER_H
#define MANUAL_RNN_LAYER_H
#include "cpu_variants.h"

typedef struct { long me, size; Barrier meeting; } TeamThread; /* of a team */

void run_job(const Variant *variant, const Job *job, const Plan *plan, char *memory, TeamThread *member);

/* A job while it runs, as one thread of its team sees it: shared by layer.c and layer_backward.c. */
typedef struct {
    const Variant *variant;
    const Job *job;
    const Plan *plan;
    TeamThread *member;
    char *memory;
    Matrix u;
    ScanContext work;
} JobContext;

/* Those of `all` things that are this thread's. */
typedef struct { long from, to; } Share;
static inline Share share_of(long all, long me, long size) { return (Share){all * me / size, all * (me + 1) / size}; }
static inline Share my_share(const JobContext *run, long all)
{
    return share_of(all, run->member->me, run->member->size);
}

/* Whether all rows of a view are equally far from each other, as numbers to reckon with; and how far. */
bool is_dense(const JobContext *run, const View *x);
long apart(const JobContext *run, const View *x);
char *first_row(const JobContext *run, const View *x, const Block *block);

/* rows times m, partitioned among the team: by rows, or by columns where there are few rows. */
void multiply(const JobContext *run, const Matrix *m, long rows, const char *a, long lda, ProductOutput to);

/* This thread's rows of a block's dx, from the block's dz. */
void to_input(JobContext *run, const Block *block);

/* A block's part of the gradients of both weights and of the biases. */
void to_weights(JobContext *run, const Block *block, bool first);

/* Writes the gradients that were summed in the buffer bias_or_dw to their tensors. */
void store_gradients(const JobContext *run);

#endif
