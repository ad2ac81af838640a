/* From Python's arguments to a job's numbers.
 *
 * Nothing but an int will do, since the `__index__` of another type could run Python code in between.
 */
#include "arguments.h"
#include <limits.h>
#include "cpu_variants.h"

/* An int from `low` to `high`. */
int read_long(PyObject *from, const char *name, long low, long high, long *to)
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
static int read_tensor(Tensor *x, const char *name, long type, PyObject *const *args)
{
    long strides;
    *x = (Tensor){.name = name, .type = type};
    if (!read_tuple(args[2], name, MAX_EXTENT, x->size, &x->dims)
        || !read_tuple(args[1], name, LONG_MAX, x->stride, &strides))
        return 0;
    if (strides != x->dims)
        return RAISE(ValueError, "%s has %ld strides for %ld sizes", name, strides, x->dims);
    return read_address(args[0], name, &x->data) && check_memory(x);
}

static int read_sizes(Job *job, PyObject *address, PyObject *count)
{
    char *from;
    return read_long(count, "batch_sizes", 0, MAX_EXTENT, &job->T) && read_address(address, "batch_sizes", &from)
        && check_address(from, "batch_sizes", sizeof(int64_t), job->T == 0)
        && copy_sizes(job, from, job->T);
}

int read_variant(PyObject *from, long *to)
{
    return read_long(from, "variant", 0, variant_count - 1, to)
        && (supported(*to) || RAISE(ValueError, "expected a variant that this processor supports"));
}

int read_threads(PyObject *from, long *to) { return read_long(from, "threads", 1, LONG_MAX, to); }

/* The numbers before all else: variant, kind, threads, reverse. */
int read_how(Job *job, long *variant, PyObject *const *args)
{
    return read_variant(args[0], variant) && read_long(args[1], "kind", 0, KINDS - 1, &job->kind)
        && read_threads(args[2], &job->threads) && read_long(args[3], "reverse", 0, 1, &job->reverse);
}

const char *name_of_other(const Job *job) { return job->kind >= TANH_SLOPE ? "h" : "h0"; }

/* type, packed, sizes, T, and what every job has: z, h_0 or h, w, y. */
int read_scan(Job *job, PyObject *const *args)
{
    PyObject *const output[] = {args[13], args[14], args[6]};
    Tensor z, other, w, y;
    long type;
    return read_long(args[0], "type", 0, TYPES - 1, &type) && read_long(args[1], "packed", 0, 1, &job->packed)
        && (!job->packed || read_sizes(job, args[2], args[3]))
        && read_tensor(&z, "the input", type, args + 4)
        && read_tensor(&other, name_of_other(job), type, args + 7) && read_tensor(&w, "w", type, args + 10)
        && read_tensor(&y, "the output", type, output) && fit_scan(job, &z, &other, &w, &y);
}

/* The numbers before a network's tensors, and that its weights are as many as layers and directions have. */
int read_network(How *how, PyObject *const *args, PyObject *weights)
{
    long bidirectional;
    if (!read_variant(args[0], &how->variant) || !read_long(args[1], "kind", 0, TANH_SLOPE - 1, &how->kind)
        || !read_threads(args[2], &how->threads)
        || !read_long(args[3], "bidirectional", 0, 1, &bidirectional)
        || !read_long(args[4], "reverse", 0, 1, &how->reverse)
        || !read_long(args[5], "hidden_size", 1, MAX_EXTENT, &how->H)
        || !read_long(args[6], "input_size", 0, MAX_EXTENT, &how->I) || !read_long(args[7], "bias", 0, 1, &how->bias))
        return 0;
    how->batch_first = 0, how->D = 1 + bidirectional;
    const long each = (how->bias ? 4 : 2) * how->D;
    if (!PyTuple_Check(weights) || PyTuple_Size(weights) < each || PyTuple_Size(weights) % each)
        return RAISE(ValueError, "expected a tuple of weights for every layer and direction");
    return 1;
}
