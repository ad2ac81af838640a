/* The recurrences of manual_rnn on the CPU in float32:
 *
 *     elman    y_t = phi(z_t + y_{t-1} W)                  y before the first step = h_0      phi = tanh or relu
 *     linear   y_t = phi'(h_t) (z_t + y_{t-1} W)           y before the first step = 0        phi' = 1 - h^2 or h > 0
 *
 * in either direction of time, for padded rows (T, B, H) and packed rows (N, H), with any strides, for G matrices W.
 *
 * Plan. W is packed once per call into the order in which it's read. The batch is cut into slices of rows; a thread runs
 * all steps of a slice, so that no step waits for another thread. Where there are fewer rows than threads, threads
 * share a slice, each with some columns of W, and meet at each step (`Meeting`). Within a step, tiles of
 * (rows x columns) of the sum are held in registers (tile.h). The rows of a packed batch are dealt out in turn, since
 * the first rows live longest. The carry is kept twice (before and after a step) in a scratch of at most LIMIT rows.
 *
 * Cost. 2 G N H^2 flops; memory beyond the output: H^2 floats for W (times threads if G is large) and the carry.
 * The tiling is that of K. Goto and R. van de Geijn, "Anatomy of high-performance matrix multiplication", 2008.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>

enum { TANH, RELU, TANH_SLOPE, RELU_SLOPE };
enum { LIMIT = 128, ALONE = 20000, SPINS = 4000 }; /* rows in a slice, flops / 2 for one thread, looks before yielding */

typedef struct { char *data; long group, step, row, column; } View; /* strides in floats; data may be NULL */

typedef struct {
    int kind, reverse, threads;
    long G, T, B, H, steps, ld;  /* steps: what z's second stride counts, T or N; ld: floats from row to row of the carry */
    const int64_t *sizes;        /* rows alive at each step of packed input, else NULL */
    View z, h, y, h0, w;
} Job;

typedef struct { long row, apart, rows, v0, v1; } Slice;       /* rows row, row + apart, ...; vectors v0 to v1 */
typedef struct { long step, ahead, row, apart, rows, v0, v1; } Tile;  /* the part of a slice and a step in registers */
typedef struct { long *count, members, met; } Meeting;         /* a barrier for `members` threads */

static inline const float *at(const View *x, long g, long row, long column)
{
    return (const float *)x->data + g * x->group + row * x->row + column * x->column;
}

static inline const float *at_step(const View *x, long g, long step, long row, long column)
{
    return at(x, g, row, column) + step * x->step;
}

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

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#define SHUFFLE(a, b, lanes) NAME(pick)(a, b, lanes)
#else
#define UNROLL _Pragma("GCC unroll 16")
#define SHUFFLE(a, b, lanes) __builtin_shuffle(a, b, lanes)
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

static const struct {
    const char *name;
    long lanes;
    void (*pack)(const Job *, long, float *, long, long);
    void (*run)(const Job *, long, const float *, float *, Slice, Meeting *);
} variants[] = {
#if defined(__x86_64__)
    {"avx512", 16, pack_avx512, run_avx512},
    {"avx2", 8, pack_avx2, run_avx2},
#endif
    {"plain", 4, pack_plain, run_plain},
};
enum { VARIANTS = sizeof variants / sizeof *variants };

static int supported(int variant)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (variant == 0)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
    if (variant == 1)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return variant < VARIANTS;
}

static int forked; /* in a child made by fork the OpenMP threads are gone, and asking for them would hang */
static void note_fork(void) { forked = 1; }

typedef struct { int variant; long vecs, slices, sharing, matrix, scratch; float *packed, *carry; long *counts; } Plan;

static Slice slice_of(const Job *job, long slices, long i)
{
    if (job->sizes)
        return (Slice){i, slices, (job->B - i + slices - 1) / slices, 0, 0};
    const long first = i * job->B / slices;
    return (Slice){first, 1, (i + 1) * job->B / slices - first, 0, 0};
}

/* One W: thread `me` of `team` packs its share of it and runs its share of the slices. */
static void run_member(const Job *job, const Plan *plan, long g, long me, long team, float *packed, float *carry)
{
    const long sharing = plan->sharing < team ? plan->sharing : team, crews = team / sharing;
    const long crew = me / sharing, part = me % sharing;
    Meeting meeting = {plan->counts + 16 * crew, sharing, 0};
    variants[plan->variant].pack(job, g, packed, me * plan->vecs / team, (me + 1) * plan->vecs / team);
    if (team > 1) {
        plan->counts[16 * me] = 0;
#pragma omp barrier
    }
    for (long i = crew; crew < crews && i < plan->slices; i += crews) {
        Slice slice = slice_of(job, plan->slices, i);
        slice.v0 = part * plan->vecs / sharing, slice.v1 = (part + 1) * plan->vecs / sharing;
        variants[plan->variant].run(job, g, packed, carry + crew * plan->scratch, slice, &meeting);
    }
    if (team > 1) {
#pragma omp barrier
    }
}

static void run_all(const Job *job, const Plan *plan)
{
    if (job->threads == 1)
        for (long g = 0; g < job->G; g++)
            run_member(job, plan, g, 0, 1, plan->packed, plan->carry);
    else
#pragma omp parallel num_threads(job->threads)
    {
        const long me = omp_get_thread_num(), team = omp_get_num_threads();
        if (job->G < job->threads)
            for (long g = 0; g < job->G; g++)
                run_member(job, plan, g, me, team, plan->packed, plan->carry);
        else
            for (long g = me; g < job->G; g += team)
                run_member(job, plan, g, 0, 1, plan->packed + me * plan->matrix, plan->carry + me * plan->scratch);
    }
}

/* Chooses threads and slices, finds the scratch memory and runs; 0 when there's no memory. */
static int scan(Job *job, int variant)
{
    const long lanes = variants[variant].lanes, vecs = (job->H + lanes - 1) / lanes;
    if (forked || job->G * job->steps * (job->sizes ? 1 : job->B) * job->H * job->H < ALONE)
        job->threads = 1;
    const long team = job->G < job->threads ? job->threads : 1;
    const long wanted = job->H < 384 ? 1 : job->H < 640 ? 3 : 12; /* rows that pay for reading W from the cache it fits */
    const long most = job->B / wanted < team ? job->B / wanted : team, crews = most > 0 ? most : 1;
    const long sharing = job->H < 256 ? 1 : team / crews;
    const long slices = crews * ((job->B + crews * LIMIT - 1) / (crews * LIMIT));
    job->ld = vecs * lanes + 16;
    Plan plan = {variant, vecs, slices, sharing, vecs * lanes * job->H, 2 * ((job->B + slices - 1) / slices) * job->ld};
    const size_t matrices = plan.matrix * (team > 1 ? 1 : job->threads), scratches = plan.scratch * job->threads;
    if (posix_memalign((void **)&plan.packed, 64, sizeof(float) * (matrices + scratches) + 128 * job->threads))
        return 0;
    plan.carry = plan.packed + matrices;
    plan.counts = (long *)(plan.carry + scratches);
    run_all(job, &plan);
    free(plan.packed);
    return 1;
}

static int complain(const char *message)
{
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, message);
    return 0;
}

/* Reads tuple[index], counted from the end if negative; 0 where the tuple is too short. */
static long item(PyObject *tuple, Py_ssize_t index)
{
    const Py_ssize_t size = PyTuple_Size(tuple), i = index < 0 ? size + index : index;
    return 0 <= i && i < size ? PyLong_AsLong(PyTuple_GetItem(tuple, i)) : 0;
}

/* From a tensor's (data_ptr(), stride()). With one index less than a padded tensor has, rows are also steps. */
static int read_view(View *x, PyObject *const *args, int grouped, int stepped)
{
    *x = (View){PyLong_AsVoidPtr(args[0]), grouped ? item(args[1], 0) : 0, item(args[1], stepped ? -3 : -2),
                item(args[1], -2), item(args[1], -1)};
    return !PyErr_Occurred() && ((uintptr_t)x->data % sizeof(float) == 0 || complain("expected data aligned to 4 bytes"));
}

static int check_sizes(const Job *job)
{
    long sum = 0, last = job->T ? job->sizes[0] : 0;
    for (long t = 0; t < job->T; last = job->sizes[t++], sum += last)
        if (job->sizes[t] > last || job->sizes[t] < 0)
            return complain("expected batch_sizes that never grow and are never negative");
    return (sum == job->steps && (job->T == 0 || job->sizes[0] == job->B))
        || complain("expected batch_sizes that begin with the batch and add up to the rows of the input");
}

static int read_job(Job *job, int *variant, PyObject *const *args)
{
    PyObject *shape = args[4];
    *variant = PyLong_AsLong(args[0]);
    job->kind = PyLong_AsLong(args[1]);
    job->threads = PyLong_AsLong(args[2]);
    job->reverse = PyLong_AsLong(args[3]);
    job->sizes = PyLong_AsVoidPtr(args[5]);
    const int grouped = PyTuple_Size(args[13]) == 3, padded = !job->sizes, slope = job->kind >= TANH_SLOPE;
    job->G = grouped ? item(shape, 0) : 1;
    job->steps = item(shape, grouped);
    job->H = item(shape, -1);
    job->T = padded ? job->steps : PyLong_AsLong(args[6]);
    job->B = padded || !slope ? PyLong_AsLong(args[7]) : job->T ? job->sizes[0] : 0;
    if (PyErr_Occurred() || *variant < 0 || *variant >= VARIANTS || !supported(*variant) || job->threads < 1)
        return complain("expected a supported variant and at least one thread");
    if (!read_view(&job->z, args + 8, grouped, padded) || !read_view(&job->y, args + 10, grouped, padded)
        || !read_view(&job->w, args + 12, grouped, 0) || !(padded || check_sizes(job))
        || !read_view(slope ? &job->h : &job->h0, args + 14, grouped, padded && slope))
        return 0;
    if (!slope) {
        const long row = job->w.row; /* elman multiplies by w^T */
        job->w.row = job->w.column, job->w.column = row;
    }
    return 1;
}

static PyObject *py_scan(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    Job job = {0};
    int variant, enough = 1;
    if (count != 16)
        return PyErr_Format(PyExc_TypeError, "scan: expected 16 arguments, got %zd", count);
    if (!read_job(&job, &variant, args))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    if (job.G && job.T && job.B && job.H && job.steps)
        enough = scan(&job, variant);
    Py_END_ALLOW_THREADS
    if (!enough)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"scan", (PyCFunction)(void (*)(void))py_scan, METH_FASTCALL,
     "scan(variant, kind, threads, reverse, shape, sizes, T, B, z, strides, y, strides, w, strides, h0 or h, strides)"},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_scan", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__scan(void)
{
    PyObject *self = PyModule_Create(&module), *names = PyDict_New();
    for (int i = 0; names && i < VARIANTS; i++) {
        PyObject *index = supported(i) ? PyLong_FromLong(i) : NULL;
        if (index)
            PyDict_SetItemString(names, variants[i].name, index);
        Py_XDECREF(index);
    }
    pthread_atfork(NULL, NULL, note_fork);
    if (!self || !names || PyModule_AddObject(self, "variants", names))
        return NULL;
    return self;
}
