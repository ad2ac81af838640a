/* The arithmetic of manual_rnn on the CPU, in each variant: an instruction set of the processor, for floats
 * or doubles.
 *
 *     elman    y_t = phi(z_t + y_{t-1} W)            y before the first step = h_0    phi: types.h
 *     linear   y_t = phi'(h_t) (z_t + y_{t-1} W)     y before the first step = 0      phi': written through h
 *
 * and the first with a leak, and its gradient (tile.inc.h), in either direction of time, for padded rows (T, B, H) and
 * packed rows (N, H), with any strides, for G matrices W. Within a step, tiles of (rows x columns) of the sum are held
 * in registers (tile.inc.h); W lies in panels, in the order in which it's read (product.inc.h). The carry is kept
 * twice, before and after a step.
 *
 * The tiling is that of K. Goto and R. van de Geijn, "Anatomy of high-performance matrix multiplication",
 * 2008. layer.c says what a thread does with it.
 */
#include "cpu_variants.h"
#include "half.h"
#include <sched.h>
#include <string.h>

enum {
    SPINS = 4000,     /* looks at a meeting before the processor is given away */
    BLOCK = 16,       /* panels of a step's sums that stay in the first cache until they are finished */
    CACHED = 1 << 19, /* bytes of W, and of rows times W, that stay in a second cache of 1 MiB */
};

/* Rows of a slice and panels of a step whose sums are finished together. The next step is `ahead` of this one. */
typedef struct { long step, ahead, row, apart, rows, v0, v1; } Tile;

void barrier_wait(Barrier *meeting)
{
    if (meeting->members == 1)
        return;
    meeting->met += meeting->members;
    __atomic_add_fetch(meeting->count, 1, __ATOMIC_ACQ_REL);
    for (long spins = 0; __atomic_load_n(meeting->count, __ATOMIC_ACQUIRE) < meeting->met; spins++)
        if (spins > SPINS)
            sched_yield();
}

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define JOIN(a, b) a##b
#define UNUSED __attribute__((unused))
/* u's series from p^14 down, without u's first term: 2^(k-1) / k!. */
#define SERIES \
    9.39683479366019e-08, 6.577784355562133e-07, 4.275559831115387e-06, 2.565335898669232e-05, \
        0.00014109347442680775, 0.0007054673721340388, 0.0031746031746031746, 0.012698412698412698, \
        0.044444444444444446, 0.13333333333333333, 0.3333333333333333, 0.6666666666666666, 1.0

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#define TARGET __attribute__((target("avx512f,avx512dq,fma")))
#define BYTES 64
#define SUMS 24
#define NAME(f) JOIN(f, _avx512)
#define PAIRS 0
#include "avx512.inc.h"
#include "tile.inc.h"
#include "undefine.inc.h"
#define SINGLE 0
#define NAME(f) JOIN(f, _avx512_double)
#define PAIRS 0
#define SMALLER(a, b) (vec)_mm512_min_pd((__m512d)(a), (__m512d)(b))
#define LOAD_FIRST(from, count) _mm512_maskz_loadu_pd((1 << (count)) - 1, from)
#define STORE_FIRST(x, to, count) _mm512_mask_storeu_pd(to, (1 << (count)) - 1, (__m512d)(x))
#include "tile.inc.h"
#include "undefine.inc.h"
#undef TARGET
#undef BYTES
#undef SUMS

#if (defined(__clang__) && __clang_major__ >= 10) || __GNUC__ >= 11 /* which know the instructions */
#define TARGET __attribute__((target("avx512f,avx512dq,avx512bf16,fma")))
#define BYTES 64
#define SUMS 24
#define NAME(f) JOIN(f, _avx512_pairs)
#define PAIRS 1
#include "avx512.inc.h"
#include "tile.inc.h"
#include "undefine.inc.h"
#undef TARGET
#undef BYTES
#undef SUMS
#define HAS_PAIRS
#endif

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define BYTES 32
#define SUMS 12
#define SINGLE 1
#define NAME(f) JOIN(f, _avx2)
#define PAIRS 0
#define SMALLER(a, b) (vec)_mm256_min_ps((__m256)(a), (__m256)(b))
#define FIRST(count) _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
#define LOAD_FIRST(from, count) _mm256_maskload_ps((const float *)(from), FIRST(count))
#define STORE_FIRST(x, to, count) _mm256_maskstore_ps((float *)(to), FIRST(count), (__m256)(x))
#define LOAD_HALF(from) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from)))
#define STORE_HALF(x, to) _mm_storeu_si128((__m128i *)(to), _mm256_cvtps_ph((__m256)(x), 0))
#include "tile.inc.h"
#include "undefine.inc.h"
#define SINGLE 0
#define NAME(f) JOIN(f, _avx2_double)
#define PAIRS 0
#define SMALLER(a, b) (vec)_mm256_min_pd((__m256d)(a), (__m256d)(b))
#define FIRST(count) _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3))
#define LOAD_FIRST(from, count) _mm256_maskload_pd((const double *)(from), FIRST(count))
#define STORE_FIRST(x, to, count) _mm256_maskstore_pd((double *)(to), FIRST(count), (__m256d)(x))
#include "tile.inc.h"
#include "undefine.inc.h"
#undef TARGET
#undef BYTES
#undef SUMS
#endif

#define TARGET
#define BYTES 16
#if defined(__aarch64__)
#define SUMS 24
#else
#define SUMS 12
#endif
#define SINGLE 1
#define NAME(f) JOIN(f, _plain)
#define PAIRS 0
#define SMALLER(a, b) NAME(choose)((a) < (b), a, b)
#define LOAD_FIRST(from, count) NAME(gather)(OWN, (const char *)(from), sizeof(REAL), count)
#define STORE_FIRST(x, to, count) NAME(scatter)(OWN, x, (char *)(to), sizeof(REAL), count)
#define LOAD_HALF(from) NAME(gather)(HALF, from, 2, LANES)
#define STORE_HALF(x, to) NAME(scatter)(HALF, x, to, 2, LANES)
#include "tile.inc.h"
#include "undefine.inc.h"
#define SINGLE 0
#define NAME(f) JOIN(f, _plain_double)
#define PAIRS 0
#define SMALLER(a, b) NAME(choose)((a) < (b), a, b)
#define LOAD_FIRST(from, count) NAME(gather)(OWN, (const char *)(from), sizeof(REAL), count)
#define STORE_FIRST(x, to, count) NAME(scatter)(OWN, x, (char *)(to), sizeof(REAL), count)
#include "tile.inc.h"

#define VARIANT(name, set, lanes, real, pairs) \
    {name, lanes, sizeof(real), pairs, pack_##set, multiply_##set, multiply_part_##set, add_rows_##set, \
     run_##set, gather_rows_##set, factor_rows_##set, scatter_rows_##set, pack_block_##set, \
     transpose_and_sum_##set, peak_##set}
static const Variant variants[][2] = {
#if defined(__x86_64__)
    {VARIANT("avx512", avx512, 16, float, 0), VARIANT("avx512", avx512_double, 8, double, 0)},
    {VARIANT("avx2", avx2, 8, float, 0), VARIANT("avx2", avx2_double, 4, double, 0)},
#endif
    {VARIANT("plain", plain, 4, float, 0), VARIANT("plain", plain_double, 2, double, 0)},
};
const int variant_count = sizeof variants / sizeof *variants;

/* Of the widest variant, where the processor multiplies them. */
static const Variant *bfloats(void)
{
#ifdef HAS_PAIRS
    static const Variant pairs = VARIANT("avx512", avx512_pairs, 16, float, 1);
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bf16"))
        return &pairs;
#endif
    return variants[0];
}

const Variant *variant_of(int variant, long type)
{
    if (type == BFLOAT && variant == 0)
        return bfloats();
    return &variants[variant][type == DOUBLE];
}

#if defined(__x86_64__)
/* Not every compiler knows this one's name. */
static bool has_halves(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}
#endif

bool supported(int variant)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (variant == 0)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
    if (variant == 1)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_halves();
#endif
    return variant < variant_count;
}
