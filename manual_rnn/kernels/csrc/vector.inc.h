/* A vector of numbers of one instruction set. A vector expression is written as if for one number; the
 * compiler keeps it in one register. tile.inc.h tells what's defined before.
 */
#define INLINE static inline __attribute__((always_inline)) TARGET
#define vec NAME(vec)
#define loose NAME(loose)
#define bits NAME(bits)
#define shorts NAME(shorts)
typedef REAL vec __attribute__((vector_size(sizeof(REAL) * LANES), may_alias));
typedef REAL loose __attribute__((vector_size(sizeof(REAL) * LANES), may_alias, aligned(sizeof(REAL))));
typedef INT bits __attribute__((vector_size(sizeof(REAL) * LANES), may_alias));
typedef uint16_t shorts __attribute__((vector_size(2 * LANES), may_alias, aligned(2)));

/* yes where the mask is set, no elsewhere */
INLINE vec NAME(choose)(bits mask, vec yes, vec no)
{
    return (vec)(((bits)yes & mask) | ((bits)no & ~mask));
}

/* (e^2p - 1) / 2 = p + p^2 q(p) on |p| <= ln2/4: for floats q is fitted to a relative error of 2e-8, for doubles this is
 * its own series. */
INLINE vec NAME(half_expm1)(vec p)
{
#if SINGLE
    const vec q = 0.99999994f + p * (0.66666174f + p * (0.3333376f + p * (0.13386476f + p * 0.044424053f)));
#else
    const vec zero = {0};
    static const double series[] = {SERIES};
    vec q = zero + series[0];
    UNROLL for (unsigned i = 1; i < sizeof series / sizeof *series; i++)
        q = q * p + series[i];
#endif
    return p + p * p * q;
}

/* tanh x = u / (u + 1) with u = (e^2x - 1) / 2. For x = n ln2/2 + p and s = 2^n, u(x) = s u(p) + (s - 1)/2. Works on
 * |x|; the sign is put back last. At most 2.6 ulp from tanh in float (every one was tried); x itself where x is tiny or
 * denormal; 1 from 9.02 or 19.1 on; NaN for NaN. */
INLINE vec NAME(tanh)(vec x)
{
    const bits sign = (bits)x & (INT)(1ULL << (8 * sizeof(INT) - 1));
    const vec zero = {0}, size = (vec)((bits)x ^ sign);
#if SINGLE
    const vec m = SMALLER(zero + 9.1f, size);
    const vec shifted = m * 2.88539f + 12583039.0f; /* 1.5 * 2^23 + 127: rounds, low bits are n + 127 */
    const vec n = shifted - 12583039.0f, s = (vec)((bits)shifted << 23);
    const vec p = m - n * 0.34657359f;
#else
    const vec m = SMALLER(zero + 19.1, size);
    const vec shifted = m * 2.8853900817779268 + 6755399441056767.0; /* 1.5 * 2^52 + 1023 */
    const vec n = shifted - 6755399441056767.0, s = (vec)((bits)shifted << 52);
    const vec p = (m - n * 0x1.62e42fefap-2) - n * 0x1.cf79abc9e3b3ap-41; /* ln2/2 in two parts */
#endif
    const vec u = s * NAME(half_expm1)(p) + (s * (REAL)0.5 - (REAL)0.5);
    return (vec)((bits)(u / (u + (REAL)1)) | sign);
}

/* e^2m = s (1 + 2 u) for m <= 0 down to where it is 0: u, and s times 2^64 or 2^512, so that s isn't denormal. ln2/2 is
 * in two parts, of which the first has few enough bits for n times it to be exact. */
INLINE vec NAME(exp_parts)(vec m, vec *s)
{
#if SINGLE
    const vec shifted = m * 2.88539f + 12583103.0f; /* as above, and 64 */
    const vec n = shifted - 12583103.0f;
    *s = (vec)((bits)shifted << 23);
    return NAME(half_expm1)((m - n * 0.3465728759765625f) - n * 7.143033826650935e-07f);
#else
    const vec shifted = m * 2.8853900817779268 + 6755399441057279.0; /* and 512 */
    const vec n = shifted - 6755399441057279.0;
    *s = (vec)((bits)shifted << 52);
    return NAME(half_expm1)((m - n * 0x1.62e42fefap-2) - n * 0x1.cf79abc9e3b3ap-41);
#endif
}

/* e^-|x|; 0 from 104 or 746 on, NaN for NaN. */
INLINE vec NAME(exp_minus)(vec x)
{
    const vec zero = {0}, size = (vec)((bits)x & (INT)~(1ULL << (8 * sizeof(INT) - 1)));
    vec s;
    const vec u = NAME(exp_parts)(SMALLER(zero + (SINGLE ? 104 : 746), size) * (REAL)-0.5, &s);
    return (s + s * (u * (REAL)2)) * (REAL)(SINGLE ? 0x1p-64 : 0x1p-512);
}

/* 1 / (1 + e^-x), without an exponential that overflows. */
INLINE vec NAME(sigmoid)(vec x)
{
    const vec zero = {0}, one = zero + (REAL)1, e = NAME(exp_minus)(x);
    return NAME(choose)(x >= (REAL)0, one, e) / (one + e);
}

/* log(1 + e^x) = max(x, 0) + 2 atanh t with t = e / (2 + e) and e = e^-|x|; from 20 on x itself, as PyTorch has it. The
 * series of atanh is fitted to a relative error of 5e-9 for floats, for doubles it is its own. */
INLINE vec NAME(softplus)(vec x)
{
    const vec zero = {0}, e = NAME(exp_minus)(x), t = e / (e + (REAL)2), q = t * t;
#if SINGLE
    const vec series = 0.6666641f + q * (0.40021792f + q * (0.2799814f + q * 0.28027812f));
#else
    vec series = zero;
    UNROLL for (int k = 16; k > 0; k--)
        series = series * q + 2.0 / (2 * k + 1);
#endif
    const vec found = NAME(choose)(x > (REAL)0, x, zero) + (t * (REAL)2 + t * q * series);
    return NAME(choose)(x > (REAL)20, x, found);
}

/* 1 - e^-h of the state h = softplus(x); 1 above softplus(20). */
INLINE vec NAME(softplus_slope)(vec h)
{
    const vec zero = {0}, one = zero + (REAL)1;
    vec s;
    const vec u = NAME(exp_parts)(SMALLER(zero + (REAL)20, h) * (REAL)-0.5, &s);
    s *= (REAL)(SINGLE ? 0x1p-64 : 0x1p-512);
    return NAME(choose)(h > (REAL)20.000000002061153, one, (one - s) - s * u * (REAL)2);
}

/* One number of any type. */
INLINE REAL NAME(number)(UNUSED int type, const char *at)
{
#if SINGLE
    switch (type) {
    case BFLOAT: return float_of_bfloat(*(const uint16_t *)at);
    case HALF: return float_of_half(*(const uint16_t *)at);
    }
#endif
    return *(const REAL *)at;
}

INLINE void NAME(write)(UNUSED int type, REAL x, char *at)
{
#if SINGLE
    switch (type) {
    case BFLOAT: *(uint16_t *)at = bfloat_of_float(x); return;
    case HALF: *(uint16_t *)at = half_of_float(x); return;
    }
#endif
    *(REAL *)at = x;
}

/* `count` numbers, `stride` bytes apart, and zeros after them; as many as fit in a vector. Of an expanded
 * tensor they are all the same one, and read once. */
static __attribute__((noinline)) TARGET vec NAME(gather)(int type, const char *from, long stride, long count)
{
    REAL x[LANES] __attribute__((aligned(sizeof(REAL) * LANES))) = {0};
    if (stride == 0 && count >= LANES)
        return *(vec *)x + NAME(number)(type, from);
    for (long i = 0; i < LANES && i < count; i++)
        x[i] = NAME(number)(type, from + i * stride);
    return *(vec *)x;
}

static __attribute__((noinline)) TARGET void NAME(scatter)(int type, vec x, char *to, long stride, long count)
{
    for (long i = 0; i < LANES && i < count; i++)
        NAME(write)(type, x[i], to + i * stride);
}

#if SINGLE
INLINE vec NAME(widen)(int type, const char *from)
{
    if (type == BFLOAT)
        return (vec)(__builtin_convertvector(*(const shorts *)from, bits) << 16);
    return (vec)LOAD_HALF(from);
}

INLINE void NAME(narrow)(int type, vec x, char *to)
{
    const bits nan = {0}, raw = (bits)x;
    if (type == BFLOAT) {
        const vec rounded = (vec)(raw + 0x7fff + ((raw >> 16) & 1));
        const bits kept = (bits)NAME(choose)(x == x, rounded, (vec)(nan + 0x7fc00000));
        *(shorts *)to = __builtin_convertvector(kept >> 16, shorts);
    } else
        STORE_HALF(x, to);
}
#else
INLINE vec NAME(widen)(UNUSED int type, const char *from) { return *(const loose *)from; }
INLINE void NAME(narrow)(UNUSED int type, vec x, char *to) { *(loose *)to = x; }
#endif

INLINE vec NAME(load)(int type, const char *from, long stride, long count)
{
    if (stride == WIDTH[type] && count >= LANES)
        return type <= DOUBLE ? (vec) * (const loose *)from : NAME(widen)(type, from);
    return stride == sizeof(REAL) && type <= DOUBLE ? (vec)LOAD_FIRST(from, count)
                                                    : NAME(gather)(type, from, stride, count);
}

INLINE void NAME(store)(int type, vec x, char *to, long stride, long count)
{
    if (stride == WIDTH[type] && count >= LANES) {
        if (type <= DOUBLE)
            *(loose *)to = x;
        else
            NAME(narrow)(type, x, to);
    } else if (stride == sizeof(REAL) && type <= DOUBLE)
        STORE_FIRST(x, to, count);
    else
        NAME(scatter)(type, x, to, stride, count);
}

/* x as it will be read where it's stored. */
INLINE vec NAME(rounded)(int type, vec x)
{
    char kept[sizeof(vec)] __attribute__((aligned(64)));
    if (type <= DOUBLE)
        return x;
    NAME(narrow)(type, x, kept);
    return NAME(widen)(type, kept);
}
