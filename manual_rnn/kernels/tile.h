/* The arithmetic for one instruction set. scan.c includes this file once per set, having defined
 *   NAME(f)  f with the set's suffix      TARGET  the compiler's attribute for the set
 *   LANES    floats in a vector           SUMS    vector registers that may hold running sums
 * A vector expression is written as if for one float; the compiler keeps it in one register.
 */
#define INLINE static inline __attribute__((always_inline)) TARGET
#define vec NAME(vec)
#define loose NAME(loose)
#define bits NAME(bits)
typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef float loose __attribute__((vector_size(4 * LANES), may_alias, aligned(4)));
typedef int32_t bits __attribute__((vector_size(4 * LANES), may_alias));

/* yes where the mask is set, no elsewhere */
INLINE vec NAME(choose)(bits mask, vec yes, vec no)
{
    return (vec)(((bits)yes & mask) | ((bits)no & ~mask));
}

/* tanh x = u / (u + 1) with u = (e^2x - 1) / 2. For x = n ln2/2 + p and s = 2^n, u(x) = s u(p) + (s - 1)/2, and
 * u(p) = p + p^2 q(p) with q fitted to a relative error of 2e-8 on |p| <= ln2/4. Works on |x|; the sign is put back
 * last. Less than 2 ulp from tanh; x itself where x is tiny or denormal; 1 from 9.02 on; NaN for NaN. */
INLINE vec NAME(tanh)(vec x)
{
    const bits sign = (bits)x & INT32_MIN;
    const vec zero = {0}, size = (vec)((bits)x ^ sign);
    const vec m = NAME(choose)(size > 9.1f, zero + 9.1f, size);
    const vec shifted = m * 2.88539f + 12583039.0f; /* 1.5 * 2^23 + 127: rounds, low bits are n + 127 */
    const vec n = shifted - 12583039.0f, s = (vec)((bits)shifted << 23);
    const vec p = m - n * 0.3465728759765625f - n * 7.143034e-07f;
    const vec q = 0.99999994f + p * (0.66666174f + p * (0.3333376f + p * (0.13386476f + p * 0.044424053f)));
    const vec u = s * (p + p * p * q) + (s * 0.5f - 0.5f);
    return (vec)((bits)(u / (u + 1.0f)) | sign);
}

INLINE vec NAME(load)(const float *from, long stride, long count)
{
    if (stride == 1 && count >= LANES)
        return *(const loose *)from;
    vec x = {0};
    for (long i = 0; i < LANES && i < count; i++)
        x[i] = from[i * stride];
    return x;
}

INLINE void NAME(store)(vec x, float *to, long stride, long count)
{
    if (stride == 1 && count >= LANES)
        *(loose *)to = x;
    else
        for (long i = 0; i < LANES && i < count; i++)
            to[i * stride] = x[i];
}

/* Vectors v0 to v1 of the columns of W, in the order `product` reads them: packed[v][k][lane], zeros beyond H. */
static TARGET void NAME(pack)(const Job *job, long g, float *packed, long v0, long v1)
{
    for (long v = v0; v < v1; v++)
        for (long k = 0; k < job->H; k++)
            ((vec *)packed)[v * job->H + k] = NAME(load)(at(&job->w, g, k, v * LANES), job->w.column, job->H - v * LANES);
}

/* next = prev W for `rows` rows and `vecs` vectors of columns, both known to the compiler: the sums stay in registers.
 * Cost for each k: rows * vecs multiply-adds, rows + vecs loads. */
INLINE void NAME(product)(int rows, int vecs, long H, long ld, const float *prev, const vec *w, float *next)
{
    vec sum[12][8];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vecs; v++)
            sum[r][v] = (vec){0};
    for (long k = 0; k < H; k++)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < vecs; v++)
                sum[r][v] += prev[r * ld + k] * w[v * H + k];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vecs; v++)
            *(vec *)(next + r * ld + v * LANES) = sum[r][v];
}

/* The same for any number of vectors, in the widest tiles that leave their sums in registers. */
static TARGET void NAME(products)(int rows, long vecs, long H, long ld, const float *prev, const vec *w, float *next)
{
    for (long v = 0, width; v < vecs; v += width, w += width * H, next += width * LANES) {
        for (width = 8; width > vecs - v || width * rows > SUMS;)
            width /= 2;
        switch (16 * rows + width) {
#define TILE(r, n) case 16 * r + n: if (r * n <= SUMS) NAME(product)(r, n, H, ld, prev, w, next); break;
            TILE(1, 8) TILE(1, 4) TILE(1, 2) TILE(1, 1) TILE(2, 8) TILE(2, 4) TILE(2, 2) TILE(2, 1)
            TILE(3, 8) TILE(3, 4) TILE(3, 2) TILE(3, 1) TILE(4, 4) TILE(4, 2) TILE(4, 1) TILE(5, 4) TILE(5, 2) TILE(5, 1)
            TILE(6, 4) TILE(6, 2) TILE(6, 1) TILE(7, 2) TILE(7, 1) TILE(8, 2) TILE(8, 1) TILE(9, 2) TILE(9, 1)
            TILE(10, 2) TILE(10, 1) TILE(11, 2) TILE(11, 1) TILE(12, 2) TILE(12, 1)
#undef TILE
        }
    }
}

/* What a step does to the finished products x, for each kind of Job. */
INLINE vec NAME(close)(int kind, vec x, vec z, vec h)
{
    const vec zero = {0};
    switch (kind) {
    case TANH: return NAME(tanh)(x + z);
    case RELU: return NAME(choose)(x + z <= 0.0f, zero, x + z);
    case TANH_SLOPE: return (1.0f - h * h) * (x + z);
    default: return NAME(choose)(h <= 0.0f, zero, x + z);
    }
}

INLINE void NAME(finish_as)(int kind, const Job *job, long g, Tile tile, float *next)
{
    const int slope = kind == TANH_SLOPE || kind == RELU_SLOPE;
    const vec zero = {0};
    for (int r = 0; r < tile.rows; r++)
        for (long v = tile.v0; v < tile.v1; v++) {
            const long row = tile.row + r * tile.apart, column = v * LANES, count = job->H - column;
            const vec z = NAME(load)(at_step(&job->z, g, tile.step, row, column), job->z.column, count);
            const vec h = slope ? NAME(load)(at_step(&job->h, g, tile.step, row, column), job->h.column, count) : zero;
            vec *x = (vec *)(next + r * job->ld + column);
            *x = NAME(close)(kind, *x, z, h);
            NAME(store)(*x, (float *)at_step(&job->y, g, tile.step, row, column), job->y.column, count);
        }
}

static TARGET void NAME(finish)(const Job *job, long g, Tile tile, float *next)
{
    switch (job->kind) {
    case TANH: NAME(finish_as)(TANH, job, g, tile, next); break;
    case RELU: NAME(finish_as)(RELU, job, g, tile, next); break;
    case TANH_SLOPE: NAME(finish_as)(TANH_SLOPE, job, g, tile, next); break;
    default: NAME(finish_as)(RELU_SLOPE, job, g, tile, next);
    }
}

/* The carry of rows `from` to `to` before their first step: h_0, or 0 where there's none. */
static TARGET void NAME(start)(const Job *job, long g, Slice slice, long from, long to, float *prev)
{
    for (long r = from; r < to; r++)
        for (long v = slice.v0; v < slice.v1; v++) {
            const long row = slice.row + r * slice.apart, column = v * LANES;
            const vec zero = {0};
            *(vec *)(prev + r * job->ld + column) = !job->h0.data ? zero
                : NAME(load)(at(&job->h0, g, row, column), job->h0.column, job->H - column);
        }
}

/* All steps of one slice: its rows, and vectors v0 to v1 of their columns. Threads that share rows meet at each step. */
static TARGET void NAME(run)(const Job *job, long g, const float *packed, float *carry, Slice slice, Meeting *meeting)
{
    const long H = job->H, ld = job->ld, block = 1 + (1 << 18) / (H * LANES); /* vectors of W that fit in the cache */
    float *prev = carry, *next = carry + slice.rows * ld;
    long live = 0, step = job->reverse ? job->steps : 0;
    for (long i = 0; i < job->T; i++) {
        const long size = job->sizes ? job->sizes[job->reverse ? job->T - 1 - i : i] : job->B;
        const long before = live, moved = job->sizes ? size : 1;
        live = size <= slice.row ? 0 : (size - slice.row + slice.apart - 1) / slice.apart;
        live = live < slice.rows ? live : slice.rows;
        step -= job->reverse ? moved : 0;
        NAME(start)(job, g, slice, before, live, prev);
        if (live > before)
            meet(meeting);
        for (long v = slice.v0; v < slice.v1; v += block)
            for (long r = 0, rows; r < live; r += rows) {
                const long tiles = (live - r + TALLEST - 1) / TALLEST;
                const long vecs = v + block < slice.v1 ? block : slice.v1 - v;
                rows = (live - r + tiles - 1) / tiles;
                const Tile tile = {step, slice.row + r * slice.apart, slice.apart, rows, v, v + vecs};
                NAME(products)(rows, vecs, H, ld, prev + r * ld, (const vec *)packed + v * H, next + r * ld + v * LANES);
                NAME(finish)(job, g, tile, next + r * ld);
            }
        step += job->reverse ? 0 : moved;
        float *swap = prev;
        prev = next, next = swap;
        meet(meeting);
    }
}
#undef INLINE
#undef vec
#undef loose
#undef bits
