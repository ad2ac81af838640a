/* The recurrences of manual_rnn on the CPU in float32:
 *
 *     elman    y_t = phi(z_t + y_{t-1} W)            y before the first step = h_0    phi = tanh or relu
 *     linear   y_t = phi'(h_t) (z_t + y_{t-1} W)     y before the first step = 0      phi' = 1 - h^2 or h > 0
 *
 * in either direction of time, for padded rows (T, B, H) and packed rows (N, H), with any strides, for G
 * matrices W. A whole layer is the first of them with z_t = x_t U + b + b', as one product a step:
 * (y_{t-1}, x_t) times W above U.
 *
 * plan.c says which thread runs which rows. W is packed once per call into the order in which it's read
 * (product.h); within a step, tiles of (rows x columns) of the sum are held in registers (tile.h). The carry
 * is kept twice, before and after a step.
 *
 * Cost. 2 G N H (H + I) flops, I = 0 without x; memory beyond the output: H (H + I) floats for W and U (times
 * threads if G is large) and the carry.
 * The tiling is that of K. Goto and R. van de Geijn, "Anatomy of high-performance matrix multiplication",
 * 2008.
 */
#include "scan.h"
#include "plan.h"
#include <omp.h>
#include <sched.h>
#include <stdlib.h>

enum {
    BLOCK = 128,  /* products summed in a row */
    SPINS = 4000, /* looks at a meeting before the processor is given away */
};

/* The part of a slice and a step whose sums lie in registers. The next step is `ahead` of this one. */
typedef struct { long step, ahead, row, apart, rows, v0, v1; } Tile;

static inline const float *at(const View *x, long g, long row, long column)
{
    return (const float *)x->data + g * x->group + row * x->row + column * x->column;
}

static inline const float *at_step(const View *x, long g, long step, long row, long column)
{
    return at(x, g, row, column) + step * x->step;
}

/* Waits until every member has come as often as this one. */
static inline void meet(Meeting *meeting)
{
    if (meeting->members == 1)
        return;
    meeting->met += meeting->members;
    __atomic_add_fetch(meeting->count, 1, __ATOMIC_ACQ_REL);
    for (long spins = 0; __atomic_load_n(meeting->count, __ATOMIC_ACQUIRE) < meeting->met; spins++)
        if (spins > SPINS)
            sched_yield();
}

/* Rows of a slice among the first `size` rows of the batch. */
static inline long alive(Slice slice, long size)
{
    const long live = size <= slice.row ? 0 : (size - slice.row + slice.apart - 1) / slice.apart;
    return live < slice.rows ? live : slice.rows;
}

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define JOIN(a, b) a##b

#if defined(__x86_64__)
#include <immintrin.h>
#define NAME(f) JOIN(f, _avx512)
#define TARGET __attribute__((target("avx512f,avx512dq,fma")))
#define LANES 16
#define SUMS 24
#define TALLEST 12
#define SMALLER(a, b) (vec)_mm512_min_ps((__m512)(a), (__m512)(b))
#define LOAD_FIRST(from, count) _mm512_maskz_loadu_ps((1 << (count)) - 1, from)
#define STORE_FIRST(x, to, count) _mm512_mask_storeu_ps(to, (1 << (count)) - 1, (__m512)(x))
#include "tile.h"

#define NAME(f) JOIN(f, _avx2)
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define SUMS 12
#define TALLEST 6
#define SMALLER(a, b) (vec)_mm256_min_ps((__m256)(a), (__m256)(b))
#define FIRST(count) _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
#define LOAD_FIRST(from, count) _mm256_maskload_ps(from, FIRST(count))
#define STORE_FIRST(x, to, count) _mm256_maskstore_ps(to, FIRST(count), (__m256)(x))
#include "tile.h"
#endif

#define NAME(f) JOIN(f, _plain)
#define TARGET
#define LANES 4
#if defined(__aarch64__)
#define SUMS 24
#define TALLEST 12
#else
#define SUMS 12
#define TALLEST 6
#endif
#define SMALLER(a, b) NAME(choose)((a) < (b), a, b)
#define LOAD_FIRST(from, count) NAME(gather)(from, 1, count)
#define STORE_FIRST(x, to, count) NAME(scatter)(x, to, 1, count)
#include "tile.h"

const Variant variants[] = {
#if defined(__x86_64__)
    {"avx512", 16, pack_avx512, run_avx512},
    {"avx2", 8, pack_avx2, run_avx2},
#endif
    {"plain", 4, pack_plain, run_plain},
};
const int variant_count = sizeof variants / sizeof *variants;

int supported(int variant)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (variant == 0)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
    if (variant == 1)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return variant < variant_count;
}

/* Thread `me` of `team` packs its share of W, which all of them then read. */
static void pack_share(const Variant *variant, const Work *work, long me, long team, long *counters)
{
    const long vecs = work->plan->vecs;
    variant->pack(work, me * vecs / team, (me + 1) * vecs / team);
    if (team > 1) {
        counters[APART * me] = 0;
#pragma omp barrier
    }
}

/* Thread `me` of `team` runs its share of the slices: those of its crew, and of their columns its part. */
static void run_share(
    const Variant *variant, const Work *work, long me, long team, float *carry, long *counters)
{
    const Plan *plan = work->plan;
    const long sharing = plan->sharing < team ? plan->sharing : team, crews = team / sharing;
    const long crew = me / sharing, part = me % sharing;
    Meeting meeting = {counters + APART * crew, sharing, 0};
    for (long i = crew; crew < crews && i < plan->slices; i += crews) {
        Slice slice = slice_of(work->job, plan, i);
        slice.v0 = part * plan->vecs / sharing, slice.v1 = (part + 1) * plan->vecs / sharing;
        variant->run(work, carry + crew * plan->scratch, slice, &meeting);
    }
    if (team > 1) {
#pragma omp barrier
    }
}

/* What thread `me` of `team` does: its share in every W or, of many, some of them alone. */
static void run_member(
    const Variant *variant, const Job *job, const Plan *plan, char *memory, long me, long team)
{
    const int together = job->G < plan->threads;
    const long own = together ? 0 : me; /* whose matrix and carry: the first, for all threads, or one's own */
    float *packed = (float *)memory + own * plan->matrix;
    float *carry = (float *)(memory + plan->carries) + own * plan->scratch;
    long *counters = (long *)(memory + plan->counters);
    for (long g = own; g < job->G; g += together ? 1 : team) {
        const Work work = {job, plan, g, packed};
        pack_share(variant, &work, together ? me : 0, together ? team : 1, counters);
        run_share(variant, &work, together ? me : 0, together ? team : 1, carry, counters);
    }
}

/* The sum of both biases, or 0 where there are none, stands for z at every step and row. */
static View sum_biases(const Job *job, float *sum)
{
    const View *b = job->bias;
    for (long j = 0; j < job->H; j++)
        sum[j] = b[0].data ? *at(&b[0], 0, 0, j) + *at(&b[1], 0, 0, j) : 0.0f;
    return (View){(char *)sum, 0, 0, 0, 1};
}

int scan(const Variant *variant, const Job *given, const Plan *plan)
{
    Job job = *given;
    char *memory;
    if (posix_memalign((void **)&memory, 64, plan->bytes))
        return 0;
    if (job.I)
        job.z = sum_biases(&job, (float *)(memory + plan->biases));
    if (plan->threads == 1)
        run_member(variant, &job, plan, memory, 0, 1);
    else
#pragma omp parallel num_threads(plan->threads)
        run_member(variant, &job, plan, memory, omp_get_thread_num(), omp_get_num_threads());
    free(memory);
    return 1;
}
