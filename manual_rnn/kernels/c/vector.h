/* A vector of floats of one instruction set. A vector expression is written as if for one float; the compiler
 * keeps it in one register. tile.h tells what's defined before.
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

/* tanh x = u / (u + 1) with u = (e^2x - 1) / 2. For x = n ln2/2 + p and s = 2^n, u(x) = s u(p) + (s -
 * 1)/2, and u(p) = p + p^2 q(p) with q fitted to a relative error of 2e-8 on |p| <= ln2/4. Works on |x|;
 * the sign is put back last. At most 2.6 ulp from tanh (every float was tried); x itself where x is tiny
 * or denormal; 1 from 9.02 on; NaN for NaN. */
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
