/* Python in, errors out: `_scan.layer` and `_scan.recurrence` of torch's tensors, `_scan.scan` of addresses
 * and, to look at plans, `_scan.plan` and `_scan.rows`.
 *
 * An address is trusted to lead to the memory that its strides and shape span. All else is checked before
 * anything runs: that numbers are ints within bounds, that a tensor's span can exist, that tensors fit each
 * other. Nothing but an int will do, since the `__index__` of another type could run Python code in between.
 */
#include "exchange.h"
#include <limits.h>
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>
#include "plan.h"
#include "scan.h"

enum {
    PER_CORE = 8,    /* threads at most: libgomp ends the process where it can't start all it's asked for */
    MOST_LANES = 64, /* and more: the plans of wider vectors than there are can be looked at */
    SCAN = 18,       /* arguments of a scan */
    LAYER = 12,      /* arguments that a layer adds */
    HOW = 5,         /* arguments before the first of torch's tensors */
};

static long most_threads = 1; /* until the module is loaded */

/* A child made by fork has none of OpenMP's threads, and asking for them would hang, in torch's products too.
 * So they are sent home before, and both parent and child get new ones when they next want some. From within
 * a parallel region they can't be sent, and the child goes on alone. */
static int sent_home;
static void before_fork(void) { sent_home = !omp_pause_resource_all(omp_pause_soft); }
static void note_fork(void) { most_threads = sent_home ? most_threads : 1; }

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

static int read_address(PyObject *from, const char *name, char **to)
{
    long address;
    const int found = read_long(from, name, 0, LONG_MAX, &address);
    *to = found ? (char *)address : NULL;
    return found;
}

/* A tensor as args[0], args[1] and args[2], its data_ptr(), stride() and shape. */
static int read_tensor(Tensor *x, const char *name, PyObject *const *args)
{
    long strides;
    x->name = name;
    if (!read_tuple(args[2], name, REACH, x->size, &x->dims)
        || !read_tuple(args[1], name, LONG_MAX, x->stride, &strides))
        return 0;
    if (strides != x->dims)
        return RAISE(ValueError, "%s has %ld strides for %ld sizes", name, strides, x->dims);
    return read_address(args[0], name, &x->data) && check_memory(x);
}

static int read_sizes(Job *job, PyObject *address, PyObject *count)
{
    char *from;
    return read_long(count, "batch_sizes", 0, REACH, &job->T) && read_address(address, "batch_sizes", &from)
        && check_address(from, "batch_sizes", sizeof(int64_t), job->T == 0)
        && copy_sizes(job, from, job->T);
}

/* The numbers before all else: variant, kind, threads, reverse. */
static int read_how(Job *job, long *variant, PyObject *const *args)
{
    if (!read_long(args[0], "variant", 0, variant_count - 1, variant)
        || !read_long(args[1], "kind", 0, KINDS - 1, &job->kind)
        || !read_long(args[2], "threads", 1, LONG_MAX, &job->threads)
        || !read_long(args[3], "reverse", 0, 1, &job->reverse))
        return 0;
    return supported(*variant) || RAISE(ValueError, "expected a variant that this processor supports");
}

static const char *name_of_other(const Job *job) { return job->kind >= TANH_SLOPE ? "h" : "h0"; }

/* packed, sizes, T, and what every job has: z, h_0 or h, w, y. */
static int read_scan(Job *job, PyObject *const *args)
{
    PyObject *const output[] = {args[12], args[13], args[5]};
    Tensor z, other, w, y;
    return read_long(args[0], "packed", 0, 1, &job->packed)
        && (!job->packed || read_sizes(job, args[1], args[2])) && read_tensor(&z, "the input", args + 3)
        && read_tensor(&other, name_of_other(job), args + 6) && read_tensor(&w, "w", args + 9)
        && read_tensor(&y, "the output", output) && fit_scan(job, &z, &other, &w, &y);
}

static int both_or_none(PyObject *bias_ih, PyObject *bias_hh)
{
    return (bias_ih == Py_None) == (bias_hh == Py_None)
        || RAISE(TypeError, "expected two biases or none");
}

/* What a layer has beyond a scan: x, w_ih, and two biases, or None for both. */
static int read_layer(Job *job, PyObject *const *args)
{
    const int biased = args[6] != Py_None;
    Tensor x, u, biases[2];
    return read_tensor(&x, "the input", args) && read_tensor(&u, "w_ih", args + 3)
        && both_or_none(args[6], args[9])
        && (!biased
            || (read_tensor(&biases[0], "a bias", args + 6) && read_tensor(&biases[1], "a bias", args + 9)))
        && fit_layer(job, &x, &u, biased ? biases : NULL);
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
    const int done = read_how(&job, &variant, args) && read_scan(&job, args + 4)
        && (count == SCAN || read_layer(&job, args + SCAN)) && run(&job, &variants[variant]);
    free(job.sizes);
    return done ? Py_NewRef(Py_None) : NULL;
}

/* batch_sizes and *z, *other, *w as torch's tensors, and y. All are read after the last Python code has run
 * that could change them: that which made y. */
static int take_recurrence(Job *job, PyObject *const *args, PyObject *made)
{
    Tensor z, other, w, y;
    return take_sizes(job, args[0]) && take_floats(&z, "the input", args[1])
        && take_floats(&other, name_of_other(job), args[2]) && take_floats(&w, "w", args[3])
        && take_floats(&y, "the output", made) && fit_scan(job, &z, &other, &w, &y);
}

/* The same of a layer: batch_sizes, x, h0, w_ih, w_hh, biases; states and last. */
static int take_layer(Job *job, PyObject *const *args, PyObject *made, Tensor *last, PyObject *made_last)
{
    const int biased = args[5] != Py_None;
    Tensor x, h0, u, w, biases[2], y;
    return take_sizes(job, args[0]) && take_floats(&x, "the input", args[1])
        && take_floats(&h0, "h0", args[2]) && take_floats(&u, "w_ih", args[3])
        && take_floats(&w, "w", args[4]) && both_or_none(args[5], args[6])
        && (!biased
            || (take_floats(&biases[0], "a bias", args[5]) && take_floats(&biases[1], "a bias", args[6])))
        && take_floats(&y, "the output", made) && take_floats(last, "the last states", made_last)
        && fit_scan(job, &y, &h0, &w, &y) && fit_layer(job, &x, &u, biased ? biases : NULL)
        && fit_last(job, &y, last);
}

static int all_exact(PyObject *const *args, Py_ssize_t count)
{
    while (count-- > 0)
        if (!is_exact(args[count]))
            return 0;
    return 1;
}

static PyObject *py_recurrence(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    Job job = {0};
    Tensor z;
    PyObject *y = NULL;
    long variant;
    if (count != HOW + 3)
        return PyErr_Format(PyExc_TypeError, "recurrence: expected 8 arguments, got %zd", count);
    if (!all_exact(args + HOW - 1, 4))
        return Py_NewRef(Py_NotImplemented);
    const int done = read_how(&job, &variant, args) && take_floats(&z, "the input", args[HOW])
        && (y = new_floats(args[HOW], z.size, z.dims)) && take_recurrence(&job, args + HOW - 1, y)
        && run(&job, &variants[variant]);
    free(job.sizes);
    if (!done)
        Py_CLEAR(y);
    return y;
}

/* New tensors for the states and the last of each sequence. */
static PyObject *new_states(PyObject *const *args)
{
    Tensor x, h0, w;
    if (!take_floats(&x, "the input", args[1]) || !take_floats(&h0, "h0", args[2])
        || !take_floats(&w, "w", args[4]))
        return NULL;
    if (x.dims < 2 || h0.dims != 2 || w.dims != 2)
        return PyErr_Format(PyExc_ValueError, "expected an input of (T, B, I), or (N, I) if packed, h0 of "
                                              "(B, H) and weights of (H, I) and (H, H)");
    x.size[x.dims - 1] = h0.size[1] = w.size[0];
    PyObject *states = new_floats(args[1], x.size, x.dims);
    PyObject *last = states ? new_floats(args[1], h0.size, 2) : NULL;
    PyObject *both = last ? PyTuple_Pack(2, states, last) : NULL;
    Py_XDECREF(states);
    Py_XDECREF(last);
    return both;
}

static PyObject *py_layer(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    Job job = {0};
    Tensor last;
    PyObject *both = NULL;
    long variant;
    if (count != HOW + 6)
        return PyErr_Format(PyExc_TypeError, "layer: expected 11 arguments, got %zd", count);
    if (!all_exact(args + HOW - 1, 7))
        return Py_NewRef(Py_NotImplemented);
    const int done = read_how(&job, &variant, args)
        && (job.kind < TANH_SLOPE || RAISE(ValueError, "expected kind from 0 to %d", TANH_SLOPE - 1))
        && (both = new_states(args + HOW - 1))
        && take_layer(&job, args + HOW - 1, PyTuple_GetItem(both, 0), &last, PyTuple_GetItem(both, 1))
        && run(&job, &variants[variant]);
    if (done)
        copy_last(&job, (float *)last.data);
    else
        Py_CLEAR(both);
    free(job.sizes);
    return both;
}

static PyObject *py_numbers(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    return PyBool_FromLong(are_numbers(args, count));
}

static PyObject *py_exchange(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 6)
        return PyErr_Format(PyExc_TypeError, "exchange: expected 6 arguments, got %zd", count);
    return exchange_with_torch(args) ? Py_NewRef(Py_None) : NULL;
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
    {"exchange", METHOD(py_exchange),
     "exchange(capsule, Tensor, Parameter, new_empty, is_neg, has_storage): torch's\n"
     "Tensor.__dlpack_c_exchange_api__, types and functions, before the three below do anything."},
    {"numbers", METHOD(py_numbers),
     "numbers(*tensors) -> bool: whether each is None or exactly a torch.Tensor or a Parameter whose memory\n"
     "holds its float32 numbers, on the CPU, at least one of them. Never raises."},
    {"recurrence", METHOD(py_recurrence),
     "recurrence(variant, kind, threads, reverse, batch_sizes, z, h0_or_h, w) -> new tensor. This and\n"
     "`layer` return NotImplemented where a tensor isn't exactly a torch.Tensor or a Parameter."},
    {"layer", METHOD(py_layer),
     "layer(variant, kind, threads, reverse, batch_sizes, x, h0, w_ih, w_hh, b, b2) -> (states, last)"},
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
    pthread_atfork(before_fork, NULL, note_fork);
    return self;
}
