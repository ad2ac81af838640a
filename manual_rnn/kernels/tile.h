/* The arithmetic for one instruction set. scan.c includes this file once per set, having defined
 *   NAME(f)  f with the set's suffix      TARGET  the compiler's attribute for the set
 *   LANES    floats in a vector           SUMS    vector registers that may hold running sums, TALLEST rows at most
 *   SMALLER(a, b)                         the smaller of each pair, b where b is NaN
 *   LOAD_FIRST, STORE_FIRST               the first `count` floats of a vector, zeros after them
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
 * last. At most 2.6 ulp from tanh (every float was tried); x itself where x is tiny or denormal; 1 from 9.02 on;
 * NaN for NaN. */
INLINE vec NAME(tanh)(vec x)
{
    const bits sign = (bits)x & INT32_MIN;
    const vec zero = {0}, size = (vec)((bits)x ^ sign);
    const vec m = SMALLER(zero + 9.1f, size);
    const vec shifted = m * 2.88539f + 12583039.0f; /* 1.5 * 2^23 + 127: rounds, low bits are n + 127 */
    const vec n = shifted - 12583039.0f, s = (vec)((bits)shifted << 23);
    const vec p = m - n * 0.34657359f;
    const vec q = 0.99999994f + p * (0.66666174f + p * (0.3333376f + p * (0.13386476f + p * 0.044424053f)));
    const vec u = s * (p + p * p * q) + (s * 0.5f - 0.5f);
    return (vec)((bits)(u / (u + 1.0f)) | sign);
}

/* `count` floats, `stride` apart, and zeros after them; as many as fit in a vector. */
static __attribute__((noinline)) TARGET vec NAME(gather)(const float *from, long stride, long count)
{
    float x[LANES] __attribute__((aligned(4 * LANES))) = {0};
    for (long i = 0; i < LANES && i < count; i++)
        x[i] = from[i * stride];
    return *(vec *)x;
}

static __attribute__((noinline)) TARGET void NAME(scatter)(vec x, float *to, long stride, long count)
{
    for (long i = 0; i < LANES && i < count; i++)
        to[i * stride] = x[i];
}

INLINE vec NAME(load)(const float *from, long stride, long count)
{
    if (stride == 1 && count >= LANES)
        return *(const loose *)from;
    return stride == 1 ? (vec)LOAD_FIRST(from, count) : NAME(gather)(from, stride, count);
}

INLINE void NAME(store)(vec x, float *to, long stride, long count)
{
    if (stride == 1 && count >= LANES)
        *(loose *)to = x;
    else if (stride == 1)
        STORE_FIRST(x, to, count);
    else
        NAME(scatter)(x, to, stride, count);
}

/* The lanes of a (numbered from 0) and b (from LANES) that `lanes` names. */
INLINE vec NAME(pick)(vec a, vec b, bits lanes)
{
#ifdef __clang__
    vec x;
    UNROLL for (int i = 0; i < LANES; i++)
        x[i] = lanes[i] < LANES ? a[lanes[i]] : b[lanes[i] - LANES];
    return x;
#else
    return __builtin_shuffle(a, b, lanes);
#endif
}

/* LANES vectors become the columns of their matrix. Each round interleaves the two halves, lane by lane; after log2 LANES
 * rounds a lane's index and its vector's have changed places. */
INLINE void NAME(transpose)(vec *x)
{
    bits low, high;
    vec y[LANES];
    UNROLL for (int i = 0; i < LANES; i++)
        low[i] = i / 2 + i % 2 * LANES, high[i] = low[i] + LANES / 2;
    UNROLL for (int round = 1; round < LANES; round *= 2) {
        UNROLL for (int i = 0; i < LANES / 2; i++)
            y[2 * i] = NAME(pick)(x[i], x[i + LANES / 2], low), y[2 * i + 1] = NAME(pick)(x[i], x[i + LANES / 2], high);
        UNROLL for (int i = 0; i < LANES; i++)
            x[i] = y[i];
    }
}

/* One vector of columns of a (rows x columns) matrix from `from` on, row after row; zeros beyond `columns`. */
static TARGET void NAME(pack_rows)(const View *w, const float *from, long rows, long columns, vec *to)
{
    vec x[LANES];
    long k = 0;
    if (w->row == 1 && columns >= LANES)
        for (; k + LANES <= rows; k += LANES) {
            UNROLL for (int i = 0; i < LANES; i++)
                x[i] = *(const loose *)(from + k + i * w->column);
            NAME(transpose)(x);
            UNROLL for (int i = 0; i < LANES; i++)
                to[k + i] = x[i];
        }
    for (; k < rows; k++)
        to[k] = NAME(load)(from + k * w->row, w->column, columns);
}

/* Vectors v0 to v1 of the columns of W, in the order `product` reads them: packed[v][k][lane], first what multiplies
 * the carry, then what multiplies the input. */
static TARGET void NAME(pack)(const Job *job, long g, float *packed, long v0, long v1)
{
    const long H = job->H, K = H + job->I;
    for (long v = v0; v < v1; v++) {
        const long first = v * LANES;
        vec *to = (vec *)packed + v * K;
        NAME(pack_rows)(&job->w, at(&job->w, g, 0, first), H, H - first, to);
        if (job->I)
            NAME(pack_rows)(&job->u, at(&job->u, g, 0, first), job->I, H - first, to + H);
    }
}

/* next = prev W for `rows` rows and `vecs` vectors of columns, both known to the compiler: the sums stay in registers.
 * Cost for each k: rows * vecs multiply-adds, rows + vecs loads. Sums are taken over BLOCK k's at a time and then added,
 * which keeps rounding errors as small as those of a BLAS. In a row of `prev` the carry comes first, then the input. */
INLINE void NAME(product)(int rows, int vecs, const Job *job, const float *prev, const vec *w, float *next)
{
    const long H = job->H, K = H + job->I, ld = job->ld;
    for (long begin = 0, end; begin < K; begin = end) {
        const long limit = begin < H ? H : K;
        const float *from = begin < H ? prev : prev + job->beside - H;
        end = begin + BLOCK < limit ? begin + BLOCK : limit;
        vec sum[12][8];
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < vecs; v++)
                sum[r][v] = (vec){0};
        for (long k = begin; k < end; k++)
            UNROLL for (int r = 0; r < rows; r++)
                UNROLL for (int v = 0; v < vecs; v++)
                    sum[r][v] += from[r * ld + k] * w[v * K + k];
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < vecs; v++) {
                vec *to = (vec *)(next + r * ld + v * LANES);
                if (begin)
                    sum[r][v] += *to;
                *to = sum[r][v];
            }
    }
}

/* The same for any number of vectors, in the widest tiles that leave their sums in registers. */
static TARGET void NAME(products)(int rows, long vecs, const Job *job, const float *prev, const vec *w, float *next)
{
    const long K = job->H + job->I;
    for (long v = 0, width; v < vecs; v += width, w += width * K, next += width * LANES) {
        for (width = 8; width > vecs - v || width * rows > SUMS;)
            width /= 2;
        switch (16 * rows + width) {
#define TILE(r, n) case 16 * r + n: if (r * n <= SUMS) NAME(product)(r, n, job, prev, w, next); break;
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
    const View *z = &job->z, *h = &job->h, *y = &job->y;
    const long z_ahead = tile.ahead * z->step, h_ahead = tile.ahead * h->step, y_ahead = tile.ahead * y->step;
    const long z_column = z->column, h_column = h->column, y_column = y->column, first = tile.v0 * LANES;
    const vec zero = {0};
    for (int r = 0; r < tile.rows; r++) {
        const long row = tile.row + r * tile.apart;
        const float *z_j = at_step(z, g, tile.step, row, first), *h_j = at_step(h, g, tile.step, row, first);
        float *y_j = (float *)at_step(y, g, tile.step, row, first), *x = next + r * job->ld + first;
        for (long vecs = tile.v1 - tile.v0, count = job->H - first; vecs > 0; vecs--, count -= LANES, x += LANES) {
            const vec old = slope ? NAME(load)(h_j, h_column, count) : zero;
            const vec new = NAME(close)(kind, *(vec *)x, NAME(load)(z_j, z_column, count), old);
            *(vec *)x = new;
            NAME(store)(new, y_j, y_column, count);
            __builtin_prefetch(z_j + z_ahead);
            __builtin_prefetch(y_j + y_ahead, 1);
            if (slope)
                __builtin_prefetch(h_j + h_ahead);
            z_j += LANES * z_column, h_j += LANES * h_column, y_j += LANES * y_column;
        }
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

/* The input of a step, for the first `live` rows of a slice, beside their carry. */
static TARGET void NAME(take)(const Job *job, long g, Slice slice, long step, long live, float *prev)
{
    for (long r = 0; r < live; r++)
        for (long i = 0; i < job->I; i += LANES)
            *(vec *)(prev + r * job->ld + job->beside + i) = NAME(load)(
                at_step(&job->x, g, step, slice.row + r * slice.apart, i), job->x.column, job->I - i);
}

/* All steps of one slice: its rows, and vectors v0 to v1 of their columns. Threads that share rows meet at each step. */
static TARGET void NAME(run)(const Job *job, long g, const float *packed, float *carry, Slice slice, Meeting *meeting)
{
    const long K = job->H + job->I, ld = job->ld, block = 1 + (1 << 18) / (K * LANES); /* vectors of W that fit in the cache */
    float *prev = carry, *next = carry + slice.rows * ld;
    long live = 0, step = job->reverse ? job->steps : 0;
    for (long i = 0; i < job->T; i++) {
        const long size = job->sizes ? job->sizes[job->reverse ? job->T - 1 - i : i] : job->B;
        const long before = live, moved = job->sizes ? size : 1;
        live = size <= slice.row ? 0 : (size - slice.row + slice.apart - 1) / slice.apart;
        live = live < slice.rows ? live : slice.rows;
        step -= job->reverse ? moved : 0;
        NAME(start)(job, g, slice, before, live, prev);
        NAME(take)(job, g, slice, step, live, prev);
        if (live > before)
            meet(meeting);
        for (long v = slice.v0; v < slice.v1; v += block)
            for (long r = 0, rows; r < live; r += rows) {
                const long tiles = (live - r + TALLEST - 1) / TALLEST;
                const long vecs = v + block < slice.v1 ? block : slice.v1 - v;
                rows = (live - r + tiles - 1) / tiles;
                const Tile tile = {step, job->reverse ? -moved : moved, slice.row + r * slice.apart, slice.apart, rows, v, v + vecs};
                NAME(products)(rows, vecs, job, prev + r * ld, (const vec *)packed + v * K, next + r * ld + v * LANES);
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
#undef NAME
#undef TARGET
#undef LANES
#undef SUMS
#undef TALLEST
#undef SMALLER
#undef LOAD_FIRST
#undef STORE_FIRST
