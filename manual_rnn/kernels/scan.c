/* The recurrences of manual_rnn on the CPU in float32:
 *
 *     elman    y_t = phi(z_t + y_{t-1} W)                  y before the first step = h_0      phi = tanh or relu
 *     linear   y_t = phi'(h_t) (z_t + y_{t-1} W)           y before the first step = 0        phi' = 1 - h^2 or h > 0
 *
 * in either direction of time, for padded rows (T, B, H) and packed rows (N, H), with any strides, for G matrices W.
 * A whole layer is the first of them with z_t = x_t U + b + b', as one product a step: (y_{t-1}, x_t) times W above U.
 *
 * Plan. W is packed once per call into the order in which it's read. The batch is cut into slices of rows; a thread
 * runs all steps of a slice, so that no step waits for another thread. Where there are too few rows to pay for reading
 * a wide W, threads share a slice, each with some columns of W, and meet at each step (`Meeting`). Within a step, tiles
 * of (rows x columns) of the sum are held in registers (tile.h). The rows of a packed batch are dealt out in turn,
 * since the first rows live longest. The carry is kept twice, before and after a step, in at most LIMIT rows.
 *
 * Cost. 2 G N H (H + I) flops, I = 0 without x; memory beyond the output: H (H + I) floats for W and U (times threads
 * if G is large) and the carry.
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
enum {
    BLOCK = 128,    /* products summed in a row */
    LIMIT = 128,    /* rows in a slice at most */
    ALONE = 500000, /* multiply-adds below which a second thread doesn't pay (measured) */
    SPINS = 4000,   /* looks at a meeting before the processor is given away */
};

typedef struct { char *data; long group, step, row, column; } View; /* strides in floats; data may be NULL */

typedef struct {
    int kind, reverse, threads;
    long G, T, B, H, I, steps;   /* steps: T, or N if packed; I: 0 where z is given, not x */
    long ld, beside;             /* floats from row to row of the carry, and from the carry to the input beside it */
    const int64_t *sizes;        /* rows alive at each step of packed input, else NULL */
    View z, h, y, h0, w, x, u, bias[2];
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

/* The sum of both biases, or 0 where there are none, stands for z at every step and row. */
static void add_biases(Job *job, float *sum)
{
    const View *b = job->bias;
    for (long j = 0; j < job->H; j++)
        sum[j] = b[0].data ? *at(&b[0], 0, 0, j) + *at(&b[1], 0, 0, j) : 0.0f;
    job->z = (View){(char *)sum, 0, 0, 0, 1};
}

/* Chooses threads and slices, finds the scratch memory and runs; 0 when there's no memory. */
static int scan(Job *job, int variant)
{
    const long lanes = variants[variant].lanes, vecs = (job->H + lanes - 1) / lanes;
    const long K = job->H + job->I;
    const long wanted = job->H < 384 ? 1 : job->H < 640 ? 3 : 12; /* rows that pay for reading W (measured) */
    const int alone = job->G == 1 && job->B == 1 && job->H < 256; /* meeting would cost more than it saves */
    const long rows = job->steps * (job->sizes ? 1 : job->B) + 4; /* packing W costs about as much as 4 rows */
    if (forked || alone || job->G * rows * job->H * K < ALONE)
        job->threads = 1;
    const long team = job->G < job->threads ? job->threads : 1;
    const long most = job->B / wanted < team ? job->B / wanted : team, crews = most > 0 ? most : 1;
    const long sharing = job->H < 256 || job->I ? 1 : team / crews;
    const long slices = crews * ((job->B + crews * LIMIT - 1) / (crews * LIMIT));
    job->beside = vecs * lanes;
    job->ld = job->beside + (job->I + lanes - 1) / lanes * lanes + 16;
    Plan plan = {variant, vecs, slices, sharing, vecs * lanes * K, 2 * ((job->B + slices - 1) / slices) * job->ld};
    const size_t threads = job->threads, scratches = plan.scratch * threads;
    const size_t matrices = plan.matrix * (team > 1 ? 1 : threads);
    if (posix_memalign((void **)&plan.packed, 64, sizeof(float) * (matrices + scratches + job->beside) + 128 * threads))
        return 0;
    plan.carry = plan.packed + matrices;
    plan.counts = (long *)(plan.carry + scratches);
    if (job->I)
        add_biases(job, (float *)(plan.counts + 16 * threads));
    run_all(job, &plan);
    free(plan.packed);
    return 1;
}

static long item(PyObject *tuple, Py_ssize_t i) { return PyLong_AsLong(PyTuple_GetItem(tuple, i)); }

static int complain(const char *expected)
{
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "expected %s", expected);
    return 0;
}

/* Reads args[0], args[1], args[2], a tensor's data_ptr(), stride() and shape, which must be `want`: `dims` sizes, and
 * G before them if the tensors are grouped. Where rows are all there is, as in a packed batch, they are steps too. */
static int read_view(View *x, const char *name, PyObject *const *args, int grouped, Py_ssize_t dims, const long *want)
{
    int fits = PyTuple_Size(args[2]) == grouped + dims;
    for (Py_ssize_t i = 0; fits && i < grouped + dims; i++)
        fits = item(args[2], i) == want[grouped ? i : i + 1];
    if (!fits && !PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "%s has shape %S, which does not fit the other tensors", name, args[2]);
    if (!fits)
        return 0;
    const Py_ssize_t last = grouped + dims - 1;
    *x = (View){PyLong_AsVoidPtr(args[0]), grouped ? item(args[1], 0) : 0,
                dims == 1 ? 0 : item(args[1], dims == 3 ? last - 2 : last - 1), dims == 1 ? 0 : item(args[1], last - 1),
                item(args[1], last)};
    return ((uintptr_t)x->data % sizeof(float) == 0 || complain("data aligned to 4 bytes")) && !PyErr_Occurred();
}

static int check_sizes(const Job *job)
{
    long sum = 0, last = job->B;
    for (long t = 0; t < job->T; last = job->sizes[t++], sum += last)
        if (job->sizes[t] > last || job->sizes[t] < 0 || (t == 0 && job->sizes[t] != job->B))
            return complain("batch_sizes that begin with the batch, never grow and are never negative");
    return sum == job->steps || complain("batch_sizes that add up to the rows of the input");
}

/* What a layer has beyond a scan: x, U^T, and two biases, or None twice. */
static int read_input(Job *job, PyObject *const *args, Py_ssize_t dims)
{
    job->I = item(args[2], dims - 1);
    if (job->I < 1)
        return complain("an input of at least one feature");
    const long input[] = {1, job->steps, dims == 3 ? job->B : job->I, job->I};
    const long u[] = {1, job->H, job->I}, bias[] = {1, job->H};
    if (!read_view(&job->x, "the input", args, 0, dims, input) || !read_view(&job->u, "w_ih", args + 3, 0, 2, u))
        return 0;
    for (int i = 0; i < 2 && args[6 + 3 * i] != Py_None; i++)
        if (!read_view(&job->bias[i], "a bias", args + 6 + 3 * i, 0, 1, bias))
            return 0;
    const long row = job->u.row;
    job->u.row = job->u.column, job->u.column = row;
    return 1;
}

/* The arguments of `scan` below. The shapes of h_0 (or of h, if `packed`) and w follow from z's. */
static int read_job(Job *job, int *variant, PyObject *const *args)
{
    PyObject *const *z = args + 7, *const *other = args + 10, *const *w = args + 13;
    *variant = PyLong_AsLong(args[0]);
    job->kind = PyLong_AsLong(args[1]);
    job->threads = PyLong_AsLong(args[2]);
    job->reverse = PyLong_AsLong(args[3]);
    const int packed = PyLong_AsLong(args[4]), slope = job->kind >= TANH_SLOPE;
    const int grouped = PyTuple_Size(w[2]) == 3, dims = packed ? 2 : 3;
    if (PyErr_Occurred() || *variant < 0 || *variant >= VARIANTS || !supported(*variant) || job->threads < 1)
        return complain("a supported variant and at least one thread");
    if (PyTuple_Size(z[2]) != grouped + dims || PyTuple_Size(other[2]) < 2)
        return complain("an input of (T, B, H), or (N, H) if packed, with a leading G if the weights have one");
    job->sizes = packed ? PyLong_AsVoidPtr(args[5]) : NULL;
    job->G = grouped ? item(z[2], 0) : 1;
    job->steps = item(z[2], grouped);
    job->T = packed ? PyLong_AsLong(args[6]) : job->steps;
    job->B = !packed ? item(z[2], grouped + 1) : !slope ? item(other[2], grouped) : job->T ? job->sizes[0] : 0;
    job->H = item(z[2], grouped + dims - 1);
    const long input[] = {job->G, job->steps, packed ? job->H : job->B, job->H};
    const long start[] = {job->G, job->B, job->H}, square[] = {job->G, job->H, job->H};
    PyObject *y[] = {args[16], args[17], z[2]};
    if (!read_view(&job->z, "the input", z, grouped, dims, input) || !read_view(&job->w, "w", w, grouped, 2, square)
        || !(slope ? read_view(&job->h, "h", other, grouped, dims, input)
                   : read_view(&job->h0, "h0", other, grouped, 2, start))
        || !read_view(&job->y, "the output", y, grouped, dims, input) || (packed && !check_sizes(job)))
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
    if (count != 18 && count != 30)
        return PyErr_Format(PyExc_TypeError, "scan: expected 18 or 30 arguments, got %zd", count);
    if (!read_job(&job, &variant, args) || (count == 30 && !read_input(&job, args + 18, job.sizes ? 2 : 3)))
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
     "scan(variant, kind, threads, reverse, packed, sizes, T, *z, *h0_or_h, *w, *y[, *x, *w_ih, *b_ih, *b_hh]): each\n"
     "tensor as its data_ptr(), stride() and shape (none for y, thrice None for no bias); kind 0 to 3 is tanh, relu,\n"
     "tanh's slope, relu's slope. With x, only z's shape counts."},
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
