/* Python in, errors out: `_scan.scan` and, to look at plans, `_scan.plan` and `_scan.rows`.
 *
 * An address is trusted to lead to the memory that its strides and shape span. All else is checked before
 * anything runs: that numbers are ints within bounds, that a tensor's span can exist, that tensors fit each
 * other. Nothing but an int will do, since the `__index__` of another type could run Python code in between.
 */
#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <limits.h>
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "plan.h"
#include "scan.h"

enum {
    DIMS = 4,        /* G, T, B, H */
    PER_CORE = 8,    /* threads at most: libgomp ends the process where it can't start all it's asked for */
    MOST_LANES = 64, /* and more: the plans of wider vectors than there are can be looked at */
    SCAN = 18,       /* arguments of a scan */
    LAYER = 12,      /* arguments that a layer adds */
};

/* 0, with an exception set. */
#define RAISE(type, ...) (PyErr_Format(PyExc_##type, __VA_ARGS__), 0)

typedef struct {
    const char *name;
    PyObject *shape;
    char *data;
    long dims, size[DIMS], stride[DIMS];
} Tensor;

static long most_threads = 1; /* until the module is loaded */

/* In a child made by fork the OpenMP threads are gone, and asking for them would hang. */
static void note_fork(void) { most_threads = 1; }

/* An int from `low` to `high`. */
static int read_long(PyObject *from, const char *name, long low, long high, long *to)
{
    int overflow;
    if (!PyLong_Check(from))
        return RAISE(TypeError, "expected an int for %s", name);
    *to = PyLong_AsLongAndOverflow(from, &overflow);
    if (overflow || *to < low || *to > high)
        return RAISE(ValueError, "expected %s from %ld to %ld", name, low, high);
    return 1;
}

/* A tuple of at most DIMS ints from 0 to `high`. */
static int read_tuple(PyObject *from, const char *name, long high, long *to, long *count)
{
    if (!PyTuple_Check(from))
        return RAISE(TypeError, "expected a tuple of ints for %s", name);
    *count = PyTuple_Size(from);
    if (*count > DIMS)
        return RAISE(ValueError, "%s has too many dimensions", name);
    for (long i = 0; i < *count; i++)
        if (!read_long(PyTuple_GetItem(from, i), name, 0, high, to + i))
            return 0;
    return 1;
}

/* The address of numbers of `width` bytes; NULL only where there are none. */
static int read_address(PyObject *from, const char *name, int width, int empty, char **to)
{
    long address;
    if (!read_long(from, name, 0, LONG_MAX, &address))
        return 0;
    *to = (char *)address;
    if (address % width)
        return RAISE(ValueError, "expected %s aligned to %d bytes", name, width);
    return address || empty || RAISE(ValueError, "%s has no memory", name);
}

/* Checks that sum_i (size_i - 1) stride_i <= REACH. A stride that's never taken may be anything, and
 * becomes 1. */
static int check_span(Tensor *x)
{
    long span = 0;
    for (long i = 0; i < x->dims; i++) {
        if (x->size[i] == 1)
            x->stride[i] = 1;
        else if (x->stride[i] > (REACH - span) / (x->size[i] - 1))
            return RAISE(ValueError, "%s spans more memory than there can be", x->name);
        span += (x->size[i] - 1) * x->stride[i];
    }
    return 1;
}

/* A tensor as args[0], args[1] and args[2], its data_ptr(), stride() and shape. */
static int read_tensor(Tensor *x, const char *name, PyObject *const *args)
{
    long strides;
    int empty = 0;
    x->name = name, x->shape = args[2];
    if (!read_tuple(args[2], name, REACH, x->size, &x->dims)
        || !read_tuple(args[1], name, LONG_MAX, x->stride, &strides))
        return 0;
    if (strides != x->dims)
        return RAISE(ValueError, "%s has %ld strides for %ld sizes", name, strides, x->dims);
    for (long i = 0; i < x->dims; i++)
        empty |= x->size[i] == 0;
    return read_address(args[0], name, sizeof(float), empty, &x->data) && (empty || check_span(x));
}

/* Checks a tensor's shape, which must be `want`: `dims` sizes, and G before them if the tensors are
 * grouped. Where rows are all there is, as in a packed batch, they are steps too. */
static int fit(View *view, const Tensor *x, int grouped, int dims, const long *want)
{
    const long *stride = x->stride + grouped; /* of step, row and column, or the last of them */
    int fits = x->dims == grouped + dims;
    for (long i = 0; fits && i < x->dims; i++)
        fits = x->size[i] == want[grouped ? i : i + 1];
    if (!fits)
        return RAISE(ValueError, "%s has shape %S, which does not fit the other tensors", x->name, x->shape);
    const long row = dims == 1 ? 0 : stride[dims - 2], step = dims == 3 ? stride[0] : row;
    *view = (View){x->data, grouped ? x->stride[0] : 0, step, row, stride[dims - 1]};
    return 1;
}

static View transposed(View x)
{
    return (View){x.data, x.group, x.step, x.column, x.row};
}

/* Copies batch_sizes before they're judged, since another thread may write to them at any time. */
static int read_sizes(Job *job, PyObject *address, PyObject *count)
{
    char *from;
    if (!read_long(count, "batch_sizes", 0, REACH, &job->T)
        || !read_address(address, "batch_sizes", sizeof(int64_t), job->T == 0, &from))
        return 0;
    job->sizes = malloc(sizeof(int64_t) * (job->T + 1));
    if (!job->sizes)
        return RAISE(MemoryError, "batch_sizes");
    if (job->T)
        memcpy(job->sizes, from, sizeof(int64_t) * job->T);
    return 1;
}

/* B = size_0 >= size_1 >= ... >= 0, and their sum is N. Stops where the sum passes N, and so never
 * overflows. */
static int check_sizes(const Job *job)
{
    long sum = 0, last = job->B;
    for (long t = 0; t < job->T && sum <= job->steps; last = job->sizes[t++], sum += last)
        if (job->sizes[t] > last || job->sizes[t] < 0 || (t == 0 && job->sizes[t] != job->B))
            return RAISE(ValueError,
                         "expected batch_sizes that begin with the batch, never grow and are never negative");
    return sum == job->steps || RAISE(ValueError, "expected batch_sizes that add up to the input's rows");
}

/* The numbers before the first tensor: variant, kind, threads, reverse, packed, sizes, T. */
static int read_how(Job *job, long *variant, PyObject *const *args)
{
    if (!read_long(args[0], "variant", 0, variant_count - 1, variant)
        || !read_long(args[1], "kind", 0, KINDS - 1, &job->kind)
        || !read_long(args[2], "threads", 1, LONG_MAX, &job->threads)
        || !read_long(args[3], "reverse", 0, 1, &job->reverse)
        || !read_long(args[4], "packed", 0, 1, &job->packed))
        return 0;
    if (!supported(*variant))
        return RAISE(ValueError, "expected a variant that this processor supports");
    return !job->packed || read_sizes(job, args[5], args[6]);
}

/* The sizes of a job, from the shapes of z and of `other`, which is h_0 or, for a slope, h. */
static int measure(Job *job, const Tensor *z, const Tensor *other, int grouped)
{
    const int packed = job->packed, slope = job->kind >= TANH_SLOPE;
    if (z->dims != grouped + (packed ? 2 : 3) || other->dims < 2)
        return RAISE(ValueError, "expected an input of (T, B, H), or (N, H) if packed, with a leading G if "
                                 "the weights have one");
    job->G = grouped ? z->size[0] : 1;
    job->steps = z->size[grouped];
    job->T = packed ? job->T : job->steps;
    job->B = !packed ? z->size[grouped + 1] : !slope ? other->size[grouped] : job->T ? job->sizes[0] : 0;
    job->H = z->size[z->dims - 1];
    return !packed || check_sizes(job);
}

/* What every job has: z, h_0 or h, w, y. */
static int read_scan(Job *job, PyObject *const *args)
{
    const int slope = job->kind >= TANH_SLOPE, dims = job->packed ? 2 : 3;
    PyObject *const output[] = {args[9], args[10], args[2]};
    Tensor z, other, w, y;
    if (!read_tensor(&z, "the input", args) || !read_tensor(&other, slope ? "h" : "h0", args + 3)
        || !read_tensor(&w, "w", args + 6) || !read_tensor(&y, "the output", output))
        return 0;
    const int grouped = w.dims == 3;
    if (!measure(job, &z, &other, grouped))
        return 0;
    const long rows[] = {job->G, job->steps, job->packed ? job->H : job->B, job->H};
    const long start[] = {job->G, job->B, job->H}, square[] = {job->G, job->H, job->H};
    if (!fit(&job->z, &z, grouped, dims, rows) || !fit(&job->w, &w, grouped, 2, square)
        || !fit(slope ? &job->h : &job->h0, &other, grouped, slope ? dims : 2, slope ? rows : start)
        || !fit(&job->y, &y, grouped, dims, rows))
        return 0;
    job->w = slope ? job->w : transposed(job->w); /* elman multiplies by w^T */
    return 1;
}

/* Two biases, or None for both. */
static int read_biases(Job *job, PyObject *const *args)
{
    const long want[] = {1, job->H};
    Tensor bias;
    if ((args[0] == Py_None) != (args[3] == Py_None))
        return RAISE(TypeError, "expected two biases or none");
    for (int i = 0; i < 2 && args[0] != Py_None; i++)
        if (!read_tensor(&bias, "a bias", args + 3 * i) || !fit(&job->bias[i], &bias, 0, 1, want))
            return 0;
    return 1;
}

/* What a layer has beyond a scan: x, w_ih, and the biases. */
static int read_layer(Job *job, PyObject *const *args)
{
    const int dims = job->packed ? 2 : 3;
    Tensor x, u;
    if (!read_tensor(&x, "the input", args) || !read_tensor(&u, "w_ih", args + 3))
        return 0;
    job->I = x.dims == dims ? x.size[dims - 1] : 0;
    if (job->I < 1)
        return RAISE(ValueError, "expected an input of at least one feature");
    const long rows[] = {1, job->steps, job->packed ? job->I : job->B, job->I};
    const long want[] = {1, job->H, job->I};
    if (!fit(&job->x, &x, 0, dims, rows) || !fit(&job->u, &u, 0, 2, want))
        return 0;
    job->u = transposed(job->u);
    return read_biases(job, args + 6);
}

/* Plans and runs a job, unless there's nothing to do. */
static int run(const Job *job, const Variant *variant)
{
    int enough = 1;
    if (!job->G || !job->T || !job->B || !job->H || !job->steps)
        return 1;
    const Plan plan = plan_of(job, variant->lanes, most_threads);
    Py_BEGIN_ALLOW_THREADS
    enough = scan(variant, job, &plan);
    Py_END_ALLOW_THREADS
    return enough || RAISE(MemoryError, "%ld bytes", plan.bytes);
}

static PyObject *py_scan(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    Job job = {0};
    long variant;
    if (count != SCAN && count != SCAN + LAYER)
        return PyErr_Format(PyExc_TypeError, "scan: expected 18 or 30 arguments, got %zd", count);
    const int done = read_how(&job, &variant, args) && read_scan(&job, args + 7)
        && (count == SCAN || read_layer(&job, args + SCAN)) && run(&job, &variants[variant]);
    free(job.sizes);
    return done ? Py_NewRef(Py_None) : NULL;
}

static PyObject *plan_dict(const Plan *p)
{
    return Py_BuildValue(
        "{s:l,s:l,s:l,s:l,s:l,s:l,s:l,s:l,s:l,s:l,s:l,s:l,s:l,s:l}", "threads", p->threads,
        "sharing", p->sharing, "slices", p->slices, "vecs", p->vecs, "depth", p->depth, "beside", p->beside,
        "ld", p->ld, "block", p->block, "matrix", p->matrix, "scratch", p->scratch, "carries", p->carries,
        "counters", p->counters, "biases", p->biases, "bytes", p->bytes);
}

static PyObject *py_plan(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    Job job = {0};
    long lanes, most;
    if (count != 9)
        return PyErr_Format(PyExc_TypeError, "plan: expected 9 arguments, got %zd", count);
    if (!read_long(args[0], "lanes", 1, MOST_LANES, &lanes) || !read_long(args[1], "most", 1, INT_MAX, &most)
        || !read_long(args[2], "threads", 1, LONG_MAX, &job.threads)
        || !read_long(args[3], "G", 1, REACH, &job.G) || !read_long(args[4], "steps", 1, REACH, &job.steps)
        || !read_long(args[5], "B", 1, REACH, &job.B) || !read_long(args[6], "H", 1, REACH, &job.H)
        || !read_long(args[7], "I", 0, REACH, &job.I) || !read_long(args[8], "packed", 0, 1, &job.packed))
        return NULL;
    const Plan plan = plan_of(&job, lanes, most);
    return plan_dict(&plan);
}

static PyObject *py_rows(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    Job job = {0};
    Plan plan = {0};
    long i;
    if (count != 4)
        return PyErr_Format(PyExc_TypeError, "rows: expected 4 arguments, got %zd", count);
    if (!read_long(args[0], "packed", 0, 1, &job.packed) || !read_long(args[1], "B", 1, REACH, &job.B)
        || !read_long(args[2], "slices", 1, job.B, &plan.slices)
        || !read_long(args[3], "i", 0, plan.slices - 1, &i))
        return NULL;
    const Slice slice = slice_of(&job, &plan, i);
    return Py_BuildValue("lll", slice.row, slice.apart, slice.rows);
}

#define METHOD(f) (PyCFunction)(void (*)(void))f, METH_FASTCALL
static PyMethodDef methods[] = {
    {"scan", METHOD(py_scan),
     "scan(variant, kind, threads, reverse, packed, sizes, T, *z, *h0_or_h, *w, *y[, *x, *w_ih, *b, *b2]):\n"
     "each tensor as its data_ptr(), stride() and shape (none for y, thrice None for no bias); kind 0 to 3\n"
     "is tanh, relu, tanh's slope, relu's slope. With x, only z's shape counts."},
    {"plan", METHOD(py_plan),
     "plan(lanes, most, threads, G, steps, B, H, I, packed) -> dict: the Plan in types.h of a job that asks\n"
     "for `threads` and gets `most` at most."},
    {"rows", METHOD(py_rows), "rows(packed, B, slices, i) -> (first, apart, count): the rows of slice i."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_scan", .m_size = -1, .m_methods = methods};

/* The variants that this processor supports: {name: index}. */
static PyObject *variants_dict(void)
{
    PyObject *names = PyDict_New();
    for (int i = 0; names && i < variant_count; i++) {
        PyObject *index = supported(i) ? PyLong_FromLong(i) : NULL;
        if (index && PyDict_SetItemString(names, variants[i].name, index))
            Py_CLEAR(names);
        Py_XDECREF(index);
    }
    return names;
}

PyMODINIT_FUNC PyInit__scan(void)
{
    PyObject *self = PyModule_Create(&module), *names = variants_dict();
    if (!self || !names || PyModule_AddObjectRef(self, "variants", names))
        Py_CLEAR(self);
    Py_XDECREF(names);
    most_threads = PER_CORE * (long)omp_get_num_procs();
    pthread_atfork(NULL, NULL, note_fork);
    return self;
}
