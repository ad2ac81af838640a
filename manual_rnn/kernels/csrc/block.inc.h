/* The rows of a block of time, brought into the forms that products want. tile.inc.h tells what's defined before.
 */

/* Calls `each` for rows r0 to r1 of a block: `row` counts them, `t` is the step of time, `step` its place in
 * memory, `b` the row of the batch. */
#define EACH_ROW(job, block, r0, r1, each) \
    for (long t = (block)->from, base = 0; t < (block)->to && base < (r1); base += size_at(job, t++)) { \
        const long size = size_at(job, t), step = (job)->packed ? (block)->first + base : t; \
        for (long b = (r0) > base ? (r0) - base : 0; b < size && base + b < (r1); b++) { \
            const long row = base + b; \
            (void)step; \
            each \
        } \
    }

static TARGET void NAME(gather_rows)(const Job *job, const View *x, long columns, const Block *block, long r0,
                                     long r1, int add, char *to, long ld)
{
    const vec zero = {0};
    EACH_ROW(job, block, r0, r1, {
        const char *from = at_step(x, 0, step, b, 0);
        for (long j = 0; j < columns; j += LANES) {
            vec *at = (vec *)(to + (row * ld + j) * sizeof(REAL));
            *at = NAME(load)(x->type, from + j * x->column, x->column, columns - j) + (add ? *at : zero);
        }
    })
}

static TARGET void NAME(factor_rows)(const Job *job, const View *x, long columns, const Block *block, long r0,
                                     long r1, char *to, long ld)
{
    EACH_ROW(job, block, r0, r1, {
        const char *from = at_step(x, 0, step, b, 0);
        for (long j = 0; j < columns; j += LANES)
            NAME(store_factors)(NAME(load)(x->type, from + j * x->column, x->column, columns - j),
                                to + row * ld * sizeof(REAL) + j * FACTOR);
    })
}

static TARGET void NAME(scatter_rows)(const Job *job, const View *x, long columns, const Block *block, long r0,
                                     long r1, int add, const char *from, long ld)
{
    EACH_ROW(job, block, r0, r1, {
        char *to = at_step(x, 0, step, b, 0);
        for (long j = 0; j < columns; j += LANES) {
            vec sum = *(const vec *)(from + (row * ld + j) * sizeof(REAL));
            if (add) /* as rounded as what is there, so that the order changes no bit */
                sum = NAME(rounded)(x->type, sum) + NAME(load)(x->type, to + j * x->column, x->column, columns - j);
            NAME(store)(x->type, sum, to + j * x->column, x->column, columns - j);
        }
    })
}

/* The row of x at a step or, `before`, the state that this step of the recurrence began with. A backward job
 * runs against the recurrence, so that is the state at the step to come. */
static inline const char *NAME(row_of)(const Job *job, const View *x, int before, long t, long step, long b)
{
    const long other = job->reverse ? t - 1 : t + 1;
    if (!before)
        return at_step(x, 0, step, b, 0);
    if (b >= size_at(job, other))
        return at(&job->h0, 0, b, 0);
    return at_step(x, 0, job->packed ? (job->reverse ? step - size_at(job, other) : step + size_at(job, t)) : other,
                   b, 0);
}

static TARGET void NAME(pack_block)(const Job *job, const View *x, int before, long columns, const Block *block,
                               long v0, long v1, char *to)
{
    EACH_ROW(job, block, 0, block->rows, {
        const char *from = NAME(row_of)(job, x, before, t, step, b);
        const int first = before && b >= size_at(job, job->reverse ? t - 1 : t + 1);
        const long column = first ? job->h0.column : x->column;
        for (long v = v0; v < v1; v++)
            NAME(put_row)(NAME(load)(x->type, from + v * LANES * column, column, columns - v * LANES), (vec *)to, v,
                          block->rows, row);
    })
}

/* sum + part, less the rounding error of the sum so far, which is replaced by that of this one (Kahan 1965). One that
 * isn't finite is forgotten: an infinite sum stays infinite. */
INLINE vec NAME(compensated)(vec sum, vec part, vec *residue)
{
    const vec zero = {0}, exact = part - *residue, total = sum + exact, error = total - sum - exact;
    *residue = (vec)((bits)error & (bits)(error - error == zero));
    return total;
}

static TARGET void NAME(add_rows)(long rows, long columns, const char *from, char *residues, long ld, char *to,
                                  long to_ld)
{
    for (long r = 0; r < rows; r++)
        for (long j = 0; j < columns; j += LANES) {
            const long at = (r * ld + j) * sizeof(REAL);
            char *sum = to + (r * to_ld + j) * sizeof(REAL);
            NAME(store)(OWN, NAME(compensated)(NAME(load)(OWN, sum, sizeof(REAL), columns - j), *(vec *)(from + at),
                                               (vec *)(residues + at)), sum, sizeof(REAL), columns - j);
        }
}

/* LANES rows at a time, whose sum is one number of the next sum, which knows its rounding errors: so it stays
 * accurate over many rows. */
static TARGET void NAME(transpose_and_sum)(long rows, long c0, long c1, const char *dz, long ld, char *transposed,
                                           long to_ld, char *total, char *residues)
{
    const REAL *from = (const REAL *)dz;
    REAL *to = (REAL *)transposed, *sums = (REAL *)total;
    vec x[LANES];
    for (long c = c0; c < c1; c += LANES) {
        vec sum = *(vec *)(sums + c), *residue = (vec *)residues + c / LANES;
        for (long r = 0; r < rows; r += LANES) {
            UNROLL for (int i = 0; i < LANES; i++)
                x[i] = r + i < rows ? *(const vec *)(from + (r + i) * ld + c) : (vec){0};
            vec part = {0};
            UNROLL for (int i = 0; i < LANES; i++)
                part += x[i];
            sum = NAME(compensated)(sum, part, residue);
            NAME(transpose)(x);
            UNROLL for (int i = 0; i < LANES; i++)
                NAME(store_factors)(x[i], (char *)(to + (c + i) * to_ld) + r * FACTOR);
        }
        *(vec *)(sums + c) = sum;
    }
}

/* Chains of multiply-adds enough to fill the pipes. */
static __attribute__((noinline)) TARGET double NAME(peak)(long rounds)
{
    enum { CHAINS = SUMS / 2 };
    const vec zero = {0}, half = zero + (REAL)0.5;
    vec sum[CHAINS];
    UNROLL for (int i = 0; i < CHAINS; i++)
        sum[i] = zero + (REAL)(rounds + i); /* none the same, and none known to the compiler */
    for (long round = 0; round < rounds; round++)
        UNROLL for (int i = 0; i < CHAINS; i++)
            sum[i] = NAME(add_product)(sum[i], (REAL)0.5, half);
    UNROLL for (int i = 1; i < CHAINS; i++)
        sum[0] += sum[i];
    volatile REAL kept = sum[0][0];
    (void)kept;
    return (double)rounds * CHAINS * LANES * (1 + PAIRS);
}
