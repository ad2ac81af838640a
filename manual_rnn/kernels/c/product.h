/* next = (carry, input) times (W above U), for the rows and columns of a tile; and W in the order that this
 * reads it. tile.h tells what's defined before.
 */

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

/* LANES vectors become the columns of their matrix. Each round interleaves the two halves, lane by lane;
 * after log2 LANES rounds a lane's index and its vector's have changed places. */
INLINE void NAME(transpose)(vec *x)
{
    enum { HALF = LANES / 2 };
    bits low, high;
    vec y[LANES];
    UNROLL for (int i = 0; i < LANES; i++)
        low[i] = i / 2 + i % 2 * LANES, high[i] = low[i] + HALF;
    UNROLL for (int round = 1; round < LANES; round *= 2) {
        UNROLL for (int i = 0; i < HALF; i++) {
            y[2 * i] = NAME(pick)(x[i], x[i + HALF], low);
            y[2 * i + 1] = NAME(pick)(x[i], x[i + HALF], high);
        }
        UNROLL for (int i = 0; i < LANES; i++)
            x[i] = y[i];
    }
}

/* One vector of columns of a (rows x columns) matrix from `from` on, row after row; zeros beyond
 * `columns`. */
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

/* Vectors v0 to v1 of the columns of W, in the order `product` reads them: packed[v][k][lane], first what
 * multiplies the carry, then what multiplies the input. */
static TARGET void NAME(pack)(const Work *work, long v0, long v1)
{
    const Job *job = work->job;
    for (long v = v0; v < v1; v++) {
        const long first = v * LANES, columns = job->H - first;
        vec *to = (vec *)work->packed + v * work->plan->depth;
        NAME(pack_rows)(&job->w, at(&job->w, work->g, 0, first), job->H, columns, to);
        if (job->I)
            NAME(pack_rows)(&job->u, at(&job->u, work->g, 0, first), job->I, columns, to + job->H);
    }
}

/* next = prev W for `rows` rows and `vecs` vectors of columns, both known to the compiler: the sums stay
 * in registers. Cost for each k: rows * vecs multiply-adds, rows + vecs loads. Sums are taken over BLOCK
 * k's at a time and then added, which keeps rounding errors as small as those of a BLAS. In a row of
 * `prev` the carry comes first, then the input. */
INLINE void NAME(product)(int rows, int vecs, const Work *work, const float *prev, const vec *w, float *next)
{
    const long H = work->job->H, K = work->plan->depth, ld = work->plan->ld, beside = work->plan->beside;
    for (long begin = 0, end; begin < K; begin = end) {
        const long limit = begin < H ? H : K;
        const float *from = begin < H ? prev : prev + beside - H;
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
static TARGET void NAME(products)(
    int rows, long vecs, const Work *work, const float *prev, const vec *w, float *next)
{
    const long K = work->plan->depth;
    for (long v = 0, width; v < vecs; v += width, w += width * K, next += width * LANES) {
        for (width = 8; width > vecs - v || width * rows > SUMS;)
            width /= 2;
        switch (16 * rows + width) {
#define TILE(r, n) case 16 * r + n: if (r * n <= SUMS) NAME(product)(r, n, work, prev, w, next); break;
            TILE(1, 8) TILE(1, 4) TILE(1, 2) TILE(1, 1) TILE(2, 8) TILE(2, 4) TILE(2, 2) TILE(2, 1)
            TILE(3, 8) TILE(3, 4) TILE(3, 2) TILE(3, 1) TILE(4, 4) TILE(4, 2) TILE(4, 1)
            TILE(5, 4) TILE(5, 2) TILE(5, 1) TILE(6, 4) TILE(6, 2) TILE(6, 1) TILE(7, 2) TILE(7, 1)
            TILE(8, 2) TILE(8, 1) TILE(9, 2) TILE(9, 1) TILE(10, 2) TILE(10, 1) TILE(11, 2) TILE(11, 1)
            TILE(12, 2) TILE(12, 1)
#undef TILE
        }
    }
}
