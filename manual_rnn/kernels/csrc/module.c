/* Python in, errors out: `_scan.network`, `_scan.network_vjp` and `_scan.recurrence` of torch's tensors,
 * `_scan.scan` of addresses and, to look at plans, `_scan.plan` and `_scan.rows`.
 *
 * An address is trusted to lead to the memory that its strides and shape span. All else is checked before
 * anything runs: that numbers are ints within bounds, that a tensor's span can exist, that tensors fit each
 * other.
 */
#include "arguments.h"
#include "called.h"
#include <limits.h>
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>
#include "plan.h"
#include "cpu_variants.h"

enum {
    PER_CORE = 8,    /* threads at most: libgomp ends the process where it can't start all it's asked for */
    MOST_LANES = 64, /* and more: the plans of wider vectors than there are can be looked at */
    SCAN = 19,       /* arguments of a scan */
    NETWORK = 13,    /* of a network */
    VJP = 16,        /* and of its derivative */
    CALL = 7,        /* of a module's call */
    HOW = 5,         /* arguments before the first of torch's tensors */
    EXCHANGE = 12,   /* of torch's own */
};

static long most_threads = 1; /* until the module is loaded */

/* A child made by fork has none of OpenMP's threads, and asking for them would hang, in torch's products too.
 * So they are sent home before, and both parent and child get new ones when they next want some. From within
 * a parallel region they can't be sent, and the child goes on alone. */
static int sent_home;
static void before_fork(void) { sent_home = !omp_pause_resource_all(omp_pause_soft); }
static void note_fork(void) { most_threads = sent_home ? most_threads : 1; }

/* Plans and runs a job, unless there's nothing to do. */
static int run(Job *job, long variant)
{
    const int nothing = !job->G || !job->T || !job->B || !job->H || !job->steps;
    return nothing || run_without_python(variant, job, 1, 1, most_threads);
}

static PyObject *py_scan(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t count)
{
    Job job = {0};
    long variant;
    if (count != SCAN)
        return PyErr_Format(PyExc_TypeError, "scan: expected %d arguments, got %zd", SCAN, count);
    const int done = read_how(&job, &variant, args) && read_scan(&job, args + 4) && run(&job, variant);
    free(job.sizes);
    return done ? Py_NewRef(Py_None) : NULL;
}

/* batch_sizes and *z, *other, *w as torch's tensors, and y. All are read after the last Python code has run
 * that could change them: that which made y. */
static int take_recurrence(Job *job, Tensor *x, PyObject *const *args, PyObject *made)
{
    return take_sizes(job, args[0]) && take_floats(&x[0], "the input", args[1])
        && take_floats(&x[1], name_of_other(job), args[2]) && take_floats(&x[2], "w", args[3])
        && take_floats(&x[3], "the output", made) && fit_scan(job, &x[0], &x[1], &x[2], &x[3]);
}

static int all_exact(PyObject *const *args, Py_ssize_t count)
{
    while (count-- > 0)
        if (!is_exact(args[count]))
            return 0;
    return 1;
}

static PyObject *py_recurrence(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t count)
{
    Job job = {0};
    Tensor like = {0}, x[4] = {{0}};
    PyObject *y = NULL;
    long variant;
    if (count != HOW + 3)
        return PyErr_Format(PyExc_TypeError, "recurrence: expected 8 arguments, got %zd", count);
    if (!all_exact(args + HOW - 1, 4))
        return Py_NewRef(Py_NotImplemented);
    const int done = read_how(&job, &variant, args) && take_floats(&like, "the input", args[HOW])
        && (y = new_floats(args[HOW], like.size, like.dims)) && take_recurrence(&job, x, args + HOW - 1, y)
        && run(&job, variant);
    free(job.sizes), release(&like);
    for (int i = 0; i < 4; i++)
        release(&x[i]);
    if (!done)
        Py_CLEAR(y);
    return y;
}

static PyObject *py_network(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t count)
{
    How how;
    if (count != NETWORK)
        return PyErr_Format(PyExc_TypeError, "network: expected %d arguments, got %zd", NETWORK, count);
    if (!read_network(&how, args, args[12]))
        return NULL;
    return network(&how, most_threads, args[8] == Py_True, args[9], args[10], args[11], args[12]);
}

/* A network whose options and weights a module has. */
static PyObject *py_call(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t count)
{
    How how;
    if (count != CALL)
        return PyErr_Format(PyExc_TypeError, "call: expected %d arguments, got %zd", CALL, count);
    if (!read_variant(args[0], &how.variant) || !read_threads(args[1], &how.threads))
        return NULL;
    PyObject *weights = read_module(&how, args[3]);
    if (!weights)
        return Py_NewRef(Py_NotImplemented);
    PyObject *found = network(&how, most_threads, args[2] == Py_True, args[4], args[5], args[6], weights);
    PyObject *both = found && found != Py_NotImplemented ? PyTuple_Pack(2, found, weights) : Py_XNewRef(found);
    Py_XDECREF(found);
    Py_DECREF(weights);
    return both;
}

static PyObject *py_network_vjp(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t count)
{
    How how;
    if (count != VJP)
        return PyErr_Format(PyExc_TypeError, "network_vjp: expected %d arguments, got %zd", VJP, count);
    if (!read_network(&how, args, args[12]))
        return NULL;
    const long weights = PyTuple_Size(args[12]), L = weights / (how.D * (how.bias ? 4 : 2));
    if (!PyTuple_Check(args[13]) || PyTuple_Size(args[13]) != L || !PyTuple_Check(args[8])
        || PyTuple_Size(args[8]) != 2 + weights)
        return PyErr_Format(PyExc_ValueError, "expected tuples of %ld states and %ld flags", L, 2 + weights);
    return network_vjp(&how, most_threads, args[9], args[10], args[11], args[12], args[13], args[14], args[15],
                       args[8]);
}

static PyObject *py_numbers(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t count)
{
    return PyBool_FromLong(are_numbers(args, count));
}

static PyObject *py_peak(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t count)
{
    long variant, type, rounds;
    if (count != 3)
        return PyErr_Format(PyExc_TypeError, "peak: expected 3 arguments, got %zd", count);
    if (!read_variant(args[0], &variant) || !read_long(args[1], "type", 0, TYPES - 1, &type)
        || !read_long(args[2], "rounds", 1, INT_MAX, &rounds))
        return NULL;
    return PyFloat_FromDouble(variant_of(variant, type)->peak(rounds));
}

static PyObject *py_exchange(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t count)
{
    if (count != EXCHANGE)
        return PyErr_Format(PyExc_TypeError, "exchange: expected %d arguments, got %zd", EXCHANGE, count);
    return exchange_with_torch(args) ? Py_NewRef(Py_None) : NULL;
}

static PyObject *plan_dict(const Plan *p)
{
    const struct { const char *name; long value; } all[] = {
#define FIELD(name) {#name, p->name}
        FIELD(threads), FIELD(sharing), FIELD(slices), FIELD(vecs), FIELD(ld), FIELD(unpacked_weights), FIELD(rows),
        FIELD(matrix), FIELD(input_matrix), FIELD(carry), FIELD(bf16_offset), FIELD(x_ld), FIELD(dzt_ld), FIELD(inputs),
        FIELD(carries), FIELD(z), FIELD(x_packed), FIELD(dz_transposed), FIELD(panels), FIELD(bias_or_dw),
        FIELD(counters), FIELD(bytes)};
#undef FIELD
    PyObject *found = PyDict_New();
    for (unsigned i = 0; found && i < sizeof all / sizeof *all; i++) {
        PyObject *value = PyLong_FromLong(all[i].value);
        if (!value || PyDict_SetItemString(found, all[i].name, value))
            Py_CLEAR(found);
        Py_XDECREF(value);
    }
    return found;
}

static PyObject *py_plan(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t count)
{
    Job job = {0};
    long lanes, most, pairs;
    if (count != 13)
        return PyErr_Format(PyExc_TypeError, "plan: expected 13 arguments, got %zd", count);
    if (!read_long(args[0], "lanes", 1, MOST_LANES, &lanes) || !read_long(args[1], "most", 1, INT_MAX, &most)
        || !read_long(args[2], "threads", 1, LONG_MAX, &job.threads)
        || !read_long(args[3], "G", 1, MAX_EXTENT, &job.G) || !read_long(args[4], "steps", 1, MAX_EXTENT, &job.steps)
        || !read_long(args[5], "B", 1, MAX_EXTENT, &job.B) || !read_long(args[6], "H", 1, MAX_EXTENT, &job.H)
        || !read_long(args[7], "I", 0, MAX_EXTENT, &job.I) || !read_long(args[8], "packed", 0, 1, &job.packed)
        || !read_long(args[9], "type", 0, TYPES - 1, &job.type)
        || !read_long(args[10], "kind", 0, KINDS - 1, &job.kind)
        || !read_long(args[11], "contiguous_weights", 0, 1, &job.contiguous_weights)
        || !read_long(args[12], "pairs", 0, 1, &pairs))
        return NULL;
    const Plan plan = plan_of(&job, lanes, job.type == DOUBLE ? 8 : 4, pairs, most);
    return plan_dict(&plan);
}

static PyObject *py_rows(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t count)
{
    Job job = {0};
    Plan plan = {0};
    long i;
    if (count != 4)
        return PyErr_Format(PyExc_TypeError, "rows: expected 4 arguments, got %zd", count);
    if (!read_long(args[0], "packed", 0, 1, &job.packed) || !read_long(args[1], "B", 1, MAX_EXTENT, &job.B)
        || !read_long(args[2], "slices", 1, job.B, &plan.slices)
        || !read_long(args[3], "i", 0, plan.slices - 1, &i))
        return NULL;
    const Slice slice = slice_of(&job, &plan, i);
    return Py_BuildValue("lll", slice.row, slice.apart, slice.rows);
}

#define METHOD(f) (PyCFunction)(void (*)(void))f, METH_FASTCALL
static PyMethodDef methods[] = {
    {"scan", METHOD(py_scan),
     "scan(variant, kind, threads, reverse, type, packed, sizes, T, *z, *h0_or_h, *w, *y): each tensor as its\n"
     "data_ptr(), stride() and shape, none for y; kind 0 to 3 is tanh, relu, tanh's slope, relu's slope; type\n"
     "0 to 3 is float32, float64, bfloat16, float16."},
    {"exchange", METHOD(py_exchange),
     "exchange(capsule, Tensor, Parameter, new_empty, is_neg, has_storage, untyped_storage, storage_offset,\n"
     "address, stride, is_shared, dtypes): torch's Tensor.__dlpack_c_exchange_api__, types, functions and\n"
     "four dtypes, before those below do anything."},
    {"numbers", METHOD(py_numbers),
     "numbers(*tensors) -> bool: whether each is None or exactly a torch.Tensor or a Parameter whose memory\n"
     "holds its numbers, of one type for all, on the CPU, at least one of them. Never raises."},
    {"recurrence", METHOD(py_recurrence),
     "recurrence(variant, kind, threads, reverse, batch_sizes, z, h0_or_h, w) -> new tensor; NotImplemented\n"
     "where a tensor isn't exactly a torch.Tensor or a Parameter."},
    {"network", METHOD(py_network),
     "network(variant, kind, threads, bidirectional, reverse, hidden_size, input_size,\n"
     "bias, keep, batch_sizes, input, hx, weights) -> (output, h_n, states), output time-major: with `keep`, and where\n"
     "a tensor requires grad, the states of every layer but the last, else None. NotImplemented where a\n"
     "tensor isn't as it should be."},
    {"call", METHOD(py_call),
     "call(variant, threads, keep, attributes, batch_sizes, input, hx) -> ((output, h_n, states), weights): the\n"
     "network of a module with these attributes, vars(module), and its weights; NotImplemented, too, where an\n"
     "attribute isn't as the constructor leaves it."},
    {"network_vjp", METHOD(py_network_vjp),
     "network_vjp(variant, kind, threads, bidirectional, reverse, hidden_size,\n"
     "input_size, bias, need, batch_sizes, input, hx, weights, states, c, c_last) -> gradients of input, hx and weights where `need` has True. That of\n"
     "the input is time-major, as the states are."},
    {"peak", METHOD(py_peak),
     "peak(variant, type, rounds) -> multiply-adds that it made, of registers alone."},
    {"plan", METHOD(py_plan),
     "plan(lanes, most, threads, G, steps, B, H, I, packed, type, kind, contiguous_weights, pairs) -> dict: the\n"
     "Plan in types.h of a job that asks for `threads` and gets `most` at most."},
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
        if (index && PyDict_SetItemString(names, variant_of(i, FLOAT)->name, index))
            Py_CLEAR(names);
        Py_XDECREF(index);
    }
    return names;
}

PyMODINIT_FUNC PyInit__scan(void)
{
    PyObject *self = PyModule_Create(&module), *names = variants_dict();
    if (!self || !names || !prepare_calls() || PyModule_AddObjectRef(self, "variants", names))
        Py_CLEAR(self);
    Py_XDECREF(names);
    most_threads = PER_CORE * (long)omp_get_num_procs();
    pthread_atfork(before_fork, NULL, note_fork);
    return self;
}
