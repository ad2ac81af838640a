/* Matrix products: rows times a matrix, whose columns lie in panels of one vector, or which is read as it is.
 * tile.inc.h tells what's defined before. Where bfloats multiply (bf16_pairs.inc.h), a number here is a pair of them,
 * and K counts pairs.
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
    enum { HALF_LANES = LANES / 2 };
    bits low, high;
    vec y[LANES];
    UNROLL for (int i = 0; i < LANES; i++)
        low[i] = i / 2 + i % 2 * LANES, high[i] = low[i] + HALF_LANES;
    UNROLL for (int round = 1; round < LANES; round *= 2) {
        UNROLL for (int i = 0; i < HALF_LANES; i++) {
            y[2 * i] = NAME(pick)(x[i], x[i + HALF_LANES], low);
            y[2 * i + 1] = NAME(pick)(x[i], x[i + HALF_LANES], high);
        }
        UNROLL for (int i = 0; i < LANES; i++)
            x[i] = y[i];
    }
}


#if PAIRS
#include "bf16_pairs.inc.h"
#else
INLINE vec NAME(add_product)(vec sum, REAL a, vec w) { return sum + a * w; }
INLINE void NAME(store_factors)(vec x, char *to) { *(vec *)to = x; }
INLINE void NAME(put_row)(vec part, vec *panels, long v, long rows, long k) { panels[v * rows + k] = part; }

/* One vector of columns from `from` on, row after row; zeros beyond `columns`. */
static TARGET void NAME(pack_panel)(const View *w, const char *from, long rows, long columns, vec *to)
{
    vec x[LANES];
    long k = 0;
    if (w->row == sizeof(REAL) && w->type <= DOUBLE && columns >= LANES)
        for (; k + LANES <= rows; k += LANES) {
            UNROLL for (int i = 0; i < LANES; i++)
                x[i] = *(const loose *)(from + k * w->row + i * w->column);
            NAME(transpose)(x);
            UNROLL for (int i = 0; i < LANES; i++)
                to[k + i] = x[i];
        }
    for (; k < rows; k++)
        to[k] = NAME(load)(w->type, from + k * w->row, w->column, columns);
}
#endif

/* Products in a sum. */
static long NAME(length)(const Matrix *m) { return PAIRS ? (m->K + 1) / 2 : m->K; }

/* Panels v0 to v1 of a matrix: packed[v][k][lane]; of one that's read where it lies, its last panel alone if
 * it's no whole one. */
static TARGET void NAME(pack)(const Matrix *m, long v0, long v1)
{
    const long K = NAME(length)(m), whole = m->form == PANELS ? 0 : m->form == ROWS ? m->columns / LANES : v1;
    for (long v = v0 > whole ? v0 : whole; v < v1; v++)
        NAME(pack_panel)(&m->from, m->from.data + v * LANES * m->from.column, m->K,
                         m->columns - v * LANES, (vec *)m->packed + (v - whole) * K);
}

/* Rows of `to` = base + a w for `rows` rows and `vecs` panels, both known to the compiler: the sums stay in
 * registers. Cost for each k: rows * vecs multiply-adds, rows + vecs loads. Sums are taken over RUN k's at a
 * time and then added, which keeps rounding errors as small as those of a BLAS. */
INLINE void NAME(product)(int rows, int vecs, long K, const REAL *a, long lda, const REAL *w, long panel,
                          long apart, ProductOutput to, long columns)
{
    for (long begin = 0, end; begin < K; begin = end) {
        end = smaller(begin + RUN, K);
        const REAL *base = begin ? (REAL *)to.at : (REAL *)to.base;
        const long base_ld = begin ? to.ld : to.base_ld;
        vec sum[12][8];
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < vecs; v++) {
                sum[r][v] = (vec){0};
                if (base)
                    __builtin_prefetch(base + r * base_ld + v * LANES);
            }
        for (long k = begin; k < end; k++, w += apart)
            UNROLL for (int r = 0; r < rows; r++)
                UNROLL for (int v = 0; v < vecs; v++)
                    sum[r][v] = NAME(add_product)(sum[r][v], a[r * lda + k], *(const loose *)(w + v * panel));
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < vecs; v++) {
                REAL *at = (REAL *)to.at + r * to.ld + v * LANES;
                if (base)
                    sum[r][v] += NAME(load)(OWN, (char *)(base + r * base_ld + v * LANES), sizeof(REAL),
                                            columns - v * LANES);
                NAME(store)(OWN, sum[r][v], (char *)at, sizeof(REAL), columns - v * LANES);
            }
    }
}

/* The same for numbers that the compiler doesn't know. */
INLINE void NAME(tile)(int rows, long vecs, long K, const REAL *a, long lda, const REAL *w, long panel,
                       long apart, ProductOutput to, long columns)
{
    switch (16 * rows + vecs) {
#define TILE(r, n) \
    case 16 * r + n: \
        if (r * n <= SUMS) \
            NAME(product)(r, n, K, a, lda, w, panel, apart, to, columns); \
        break;
        TILE(1, 8) TILE(1, 4) TILE(1, 2) TILE(1, 1) TILE(2, 8) TILE(2, 4) TILE(2, 2) TILE(2, 1)
        TILE(3, 8) TILE(3, 4) TILE(3, 2) TILE(3, 1) TILE(4, 4) TILE(4, 2) TILE(4, 1)
        TILE(5, 4) TILE(5, 2) TILE(5, 1) TILE(6, 4) TILE(6, 2) TILE(6, 1) TILE(7, 2) TILE(7, 1)
        TILE(8, 2) TILE(8, 1) TILE(9, 2) TILE(9, 1) TILE(10, 2) TILE(10, 1) TILE(11, 2) TILE(11, 1)
        TILE(12, 2) TILE(12, 1)
#undef TILE
    }
}

static ProductOutput NAME(moved)(ProductOutput to, long rows, long v)
{
    to.at += (rows * to.ld + v * LANES) * sizeof(REAL);
    to.base += to.base ? (rows * to.base_ld + v * LANES) * sizeof(REAL) : 0;
    return to;
}

/* The same of a matrix whose columns are contiguous, for `rows` rows and LANES / rows columns: each sum runs
 * over a vector of k's, whose lanes are added up at the end. */
INLINE void NAME(dot)(int rows, const Matrix *m, const REAL *a, long lda, long first, ProductOutput to)
{
    const int wide = LANES / rows;
    const long columns = m->columns - first, whole = m->K / LANES * LANES;
    const char *w[LANES];
    vec sum[LANES];
    UNROLL for (int i = 0; i < wide; i++)
        w[i] = m->from.data + (first + (i < columns ? i : 0)) * m->from.column;
    UNROLL for (int i = 0; i < LANES; i++)
        sum[i] = (vec){0};
    for (long k = 0; k < whole; k += LANES)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int i = 0; i < wide; i++)
                sum[r * wide + i] += *(const loose *)(a + r * lda + k) * *(const loose *)(w[i] + k * sizeof(REAL));
    if (whole < m->K)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int i = 0; i < wide; i++)
                sum[r * wide + i] += NAME(load)(OWN, (char *)(a + r * lda + whole), sizeof(REAL), m->K - whole)
                    * NAME(load)(OWN, w[i] + whole * sizeof(REAL), sizeof(REAL), m->K - whole);
    NAME(transpose)(sum);
    UNROLL for (int i = 1; i < LANES; i++)
        sum[0] += sum[i];
    for (long r = 0; r < rows; r++)
        for (long i = 0; i < wide && i < columns; i++) {
            REAL *at = (REAL *)to.at + r * to.ld + first + i;
            *at = sum[0][r * wide + i] + (to.base ? ((const REAL *)to.base)[r * to.base_ld + first + i] : 0);
        }
}

/* The same for any number of rows and the columns of panel v. */
static TARGET void NAME(dots)(const Matrix *m, long rows, const REAL *a, long lda, long v, ProductOutput to)
{
    enum { FOUR = LANES < 4 ? 1 : 4, TWO = LANES < 2 ? 1 : 2 };
    for (long r = 0, tall; r < rows; r += tall, a += tall * lda) {
        tall = rows - r >= FOUR ? FOUR : rows - r >= TWO ? TWO : 1;
        for (long i = v * LANES; i < (v + 1) * LANES && i < m->columns; i += LANES / tall) {
            if (tall == 4)
                NAME(dot)(FOUR, m, a, lda, i, NAME(moved)(to, r, 0));
            else if (tall == 2)
                NAME(dot)(TWO, m, a, lda, i, NAME(moved)(to, r, 0));
            else
                NAME(dot)(1, m, a, lda, i, NAME(moved)(to, r, 0));
        }
    }
}

/* Rows k0 to k1 of a matrix as they lie in memory or in panels, times all rows of a, in tiles of about the same
 * height. Where there are several, all rows pass RUN rows of a few panels, which stay in the first cache. */
static TARGET void NAME(tiles)(const Matrix *m, long rows, const REAL *a, long lda, long v, long vecs, long k0,
                               long k1, ProductOutput to)
{
    const long whole = m->form == ROWS ? m->columns / LANES : 0; /* panels that are read where they lie */
    const int lies = v < whole;
    const long K = NAME(length)(m), tiles = larger(1, quotient_up(rows, TALLEST));
    const REAL *w = lies ? (REAL *)m->from.data + v * LANES : (REAL *)m->packed + (v - whole) * K * LANES;
    const long panel = lies ? LANES : K * LANES, apart = lies ? m->from.row / (long)sizeof(REAL) : LANES;
    const long tallest = quotient_up(rows, tiles), run = tiles == 1 ? k1 - k0 : RUN;
    for (long width; vecs > 0; vecs -= width, v += width, w += width * panel) {
        for (width = 8; width > vecs || width * tallest > SUMS;)
            width /= 2;
        for (long k = k0; k < k1; k += run) {
            const ProductOutput sum = k ? (ProductOutput){to.at, to.ld, to.at, to.ld, to.columns} : to;
            for (long r = 0, tall, left = tiles; left; r += tall, left--) {
                tall = quotient_up(rows - r, left);
                NAME(tile)(tall, width, smaller(run, k1 - k), a + r * lda + k, lda, w + k * apart, panel, apart,
                           NAME(moved)(sum, r, v), to.columns - v * LANES);
            }
        }
    }
}

/* Panels v0 to v1 of all rows: as many panels and as many rows as fit in the cache. A matrix that's read row by
 * row where it lies comes in slabs of RUN rows instead, all columns of each. */
static TARGET void NAME(multiply)(const Matrix *m, long rows, const char *from, long lda, long v0, long v1,
                                  ProductOutput to)
{
    const REAL *a = (const REAL *)from;
    const long K = NAME(length)(m), whole = m->columns / LANES;
    if (m->form == COLUMN_DOTS) {
        for (long v = v0; v < v1; v++)
            NAME(dots)(m, rows, a, lda, v, to);
    } else if (m->form == ROWS) {
        const long middle = v1 < whole ? v1 : whole > v0 ? whole : v0;
        for (long k = 0; k < K && v0 < middle; k += RUN)
            NAME(tiles)(m, rows, a, lda, v0, middle - v0, k, smaller(k + RUN, K), to);
        if (middle < v1)
            NAME(tiles)(m, rows, a, lda, middle, v1 - middle, 0, K, to);
    } else {
        const long block = 8 * (1 + CACHED / (K * BYTES * 8)), wide = smaller(block, v1 - v0) * LANES;
        const long chunk = TALLEST * (1 + CACHED / (larger(K, wide) * (long)sizeof(REAL) * TALLEST));
        for (long v = v0; v < v1; v += block)
            for (long r = 0; r < rows; r += chunk)
                NAME(tiles)(m, smaller(chunk, rows - r), a + r * lda, lda, v, smaller(block, v1 - v), 0, K,
                            NAME(moved)(to, r, 0));
    }
}

/* Products k0 to k1 alone, of a matrix in panels: one sum, which is written. */
static TARGET void NAME(multiply_part)(const Matrix *m, long rows, const char *from, long lda, long v0, long v1,
                                       long k0, long k1, ProductOutput to)
{
    Matrix part = *m;
    part.packed += k0 * LANES * sizeof(REAL);
    NAME(tiles)(&part, rows, (const REAL *)from + k0, lda, v0, v1 - v0, 0, k1 - k0, to);
}
