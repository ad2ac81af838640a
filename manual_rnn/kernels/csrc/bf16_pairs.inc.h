/* Numbers that are multiplied as bfloats: two products at a time, added up as floats. A number of a matrix, or of
 * a row that it multiplies, is here a pair: of two rows of the matrix, and of two neighbours in the row. tile.inc.h
 * tells what's defined before.
 *
 * Halves read from memory are bfloats already. What is rounded for it is the carry and dz of a backward pass, as
 * each operation of PyTorch's rounds them. Numbers below 2^-126 count as zeros.
 */

/* As what they are multiplied: bfloats. */
INLINE void NAME(store_factors)(vec x, char *to)
{
    *(shorts *)to = (shorts)_mm512_cvtneps_pbh((__m512)x);
}

INLINE vec NAME(add_product)(vec sum, REAL a, vec w)
{
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(a), (__m512bh)w);
}

/* The first of each pair, and the second, from vectors of bfloats as floats. */
INLINE vec NAME(pair)(vec first, vec second)
{
    return (vec)((((bits)first >> 16) & 0xffff) | ((bits)second & ~0xffff));
}

/* One vector of columns from `from` on, pair after pair of rows; zeros beyond both. Rows side by side in memory
 * are pairs there, and columns of them. */
static TARGET void NAME(pack_panel)(const View *w, const char *from, long rows, long columns, vec *to)
{
    enum { BOTH = 2 * LANES };
    const vec zero = {0};
    vec x[LANES];
    long k = 0;
    if (w->row == sizeof(uint16_t) && columns >= LANES)
        for (; k + BOTH <= rows; k += BOTH) {
            UNROLL for (int i = 0; i < LANES; i++)
                x[i] = (vec)_mm512_loadu_ps(from + k * w->row + i * w->column);
            NAME(transpose)(x);
            UNROLL for (int i = 0; i < LANES; i++)
                to[k / 2 + i] = x[i];
        }
    for (; k < rows; k += 2)
        to[k / 2] = NAME(pair)(
            NAME(load)(w->type, from + k * w->row, w->column, columns),
            k + 1 < rows ? NAME(load)(w->type, from + (k + 1) * w->row, w->column, columns) : zero);
}

/* Row k of a matrix of `rows` rows into its panel v: the first or the second of its pairs. */
INLINE void NAME(put_row)(vec part, vec *panels, long v, long rows, long k)
{
    const vec zero = {0};
    vec *at = panels + v * ((rows + 1) / 2) + k / 2;
    *at = k % 2 ? (vec)((bits)*at | (bits)NAME(pair)(zero, part)) : NAME(pair)(part, zero);
}
