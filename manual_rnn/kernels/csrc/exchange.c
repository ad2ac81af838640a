/* torch's tensors by DLPack's exchange of C functions, which torch 2.11 to 2.15 offer.
 *
 * It could make tensors too, whose memory can't be resized, nor shared by `torch._lazy_clone`: torch's own
 * new_empty makes ours.
 */
#include "exchange.h"
#include "dlpack.h"

enum { NEW_EMPTY, IS_NEG, HAS_STORAGE, STORAGE, OFFSET, ADDRESS, STRIDE, IS_SHARED, FUNCTIONS };
enum { IS_CPU, GRADIENT, SHAPE, DTYPE, NAMES };

static const Exchange *exchange;
static PyObject *tensor_type, *parameter_type, *names[NAMES]; /* names of attributes */
static PyObject *functions[FUNCTIONS], *dtypes; /* of torch; a tuple in the order of the types */

void release(Tensor *x) { Py_CLEAR(x->storage); }

static void keep(PyObject **at, PyObject *x)
{
    PyObject *old = *at;
    *at = Py_NewRef(x);
    Py_XDECREF(old);
}

int exchange_with_torch(PyObject *const *args)
{
    const Exchange *offered = PyCapsule_GetPointer(args[0], "dlpack_exchange_api");
    while (offered && offered->major != MAJOR)
        offered = offered->older;
    if (PyErr_Occurred() || !offered || !offered->read)
        return PyErr_Occurred() ? 0 : RAISE(ValueError, "expected DLPack 1, which reads tensors");
    for (int i = 1; i < 3 + FUNCTIONS; i++)
        if (i < 3 ? !PyType_Check(args[i]) : !PyCallable_Check(args[i]))
            return RAISE(TypeError, "expected two types and %d functions", FUNCTIONS);
    if (!PyTuple_Check(args[3 + FUNCTIONS]) || PyTuple_Size(args[3 + FUNCTIONS]) != TYPES)
        return RAISE(TypeError, "expected a tuple of %d dtypes", TYPES);
    keep(&tensor_type, args[1]), keep(&parameter_type, args[2]), keep(&dtypes, args[3 + FUNCTIONS]);
    for (int i = 0; i < FUNCTIONS; i++)
        keep(&functions[i], args[3 + i]);
    static const char *const attributes[NAMES] = {"is_cpu", "requires_grad", "shape", "dtype"};
    for (int i = 0; i < NAMES; i++)
        if (!names[i] && !(names[i] = PyUnicode_InternFromString(attributes[i])))
            return 0;
    exchange = offered;
    return 1;
}

int is_exact(PyObject *x)
{
    PyObject *type = (PyObject *)Py_TYPE(x);
    return x == Py_None || type == tensor_type || type == parameter_type;
}

/* Whether a function of one tensor returns just this. */
static int says(PyObject *function, PyObject *x, PyObject *expected)
{
    PyObject *found = PyObject_CallFunctionObjArgs(function, x, NULL);
    Py_XDECREF(found);
    return found == expected;
}

static int is_of(const DLTensor *x, int code, int bits)
{
    return x->device == CPU && x->code == code && x->bits == bits && x->lanes == 1;
}

static int has(PyObject *x, PyObject *name)
{
    PyObject *found = PyObject_GetAttr(x, name);
    Py_XDECREF(found);
    return found == Py_True;
}

int is_shared(PyObject *x)
{
    const int shared = (PyObject *)Py_TYPE(x) == tensor_type && has(x, names[GRADIENT])
        && says(functions[IS_SHARED], x, Py_True);
    PyErr_Clear();
    return shared;
}

int wants_gradient(PyObject *x) { return is_exact(x) && x != Py_None && has(x, names[GRADIENT]); }

static char *address_of(const DLTensor *x) { return (char *)x->data + x->byte_offset; }

/* The type of the numbers at an address that is aligned to them, or -1. */
static long type_of(const DLTensor *x)
{
    static const struct { int code, bits; } known[TYPES] = {
        [FLOAT] = {FLOAT_CODE, 32}, [DOUBLE] = {FLOAT_CODE, 64}, [BFLOAT] = {BFLOAT_CODE, 16}, [HALF] = {FLOAT_CODE, 16}};
    for (long type = 0; type < TYPES; type++)
        if (is_of(x, known[type].code, known[type].bits))
            return (uintptr_t)address_of(x) % (known[type].bits / 8) ? -1 : type;
    return -1;
}

/* What a function of one thing says, an int; -1 with an exception set. */
static long long_of(PyObject *function, PyObject *x)
{
    PyObject *found = PyObject_CallFunctionObjArgs(function, x, NULL);
    const long number = found ? PyLong_AsLong(found) : -1;
    Py_XDECREF(found);
    return number;
}

/* Zeros without memory are at address 0 but for their offset. */
static int has_memory(const char *data, long width, long offset)
{
    return offset >= 0 && data != (char *)(offset * width);
}

/* Storage is asked for first, since torch takes a millisecond to refuse to read a tensor without. */
static long type_of_numbers(PyObject *x)
{
    DLTensor seen = {0};
    Tensor shared;
    if (is_shared(x)) {
        const long type = see_shared(&shared, x) ? shared.type : -1;
        release(&shared);
        return type;
    }
    const int fine = is_exact(x) && says(functions[IS_NEG], x, Py_False) && says(functions[HAS_STORAGE], x, Py_True)
        && !exchange->read(x, &seen);
    const long type = fine ? type_of(&seen) : -1, offset = type < 0 ? -1 : long_of(functions[OFFSET], x);
    return offset >= 0 && has_memory(address_of(&seen), WIDTH[type], offset) ? type : -1;
}

/* As slowly it refuses meta tensors. They don't come mixed with others, so the first tells. */
int are_numbers(PyObject *const *xs, long count)
{
    int fine = exchange != NULL;
    long type = -1;
    for (long i = 0; fine && i < count; i++)
        if (xs[i] != Py_None) {
            fine = type >= 0 || (is_exact(xs[i]) && has(xs[i], names[IS_CPU]));
            const long found = fine ? type_of_numbers(xs[i]) : -1;
            fine = found >= 0 && (type < 0 || found == type);
            type = found;
        }
    PyErr_Clear();
    return fine;
}

static void copy_shape(Tensor *x, const DLTensor *seen)
{
    x->data = address_of(seen), x->dims = seen->dims, x->type = type_of(seen);
    for (long i = 0; i < x->dims; i++)
        x->size[i] = seen->shape[i], x->stride[i] = seen->strides[i];
}

/* Whether `count` numbers of `width` bytes, from `data` on, lie in a tensor's storage, which may have been resized
 * since. The storage goes to `held`, to be let go of later. */
static int lies_in_storage(const char *data, long width, long count, PyObject *from, PyObject **held)
{
    *held = PyObject_CallFunctionObjArgs(functions[STORAGE], from, NULL);
    const long bytes = *held ? PyObject_Size(*held) : -1;
    const long offset = bytes < 0 ? -1 : long_of(functions[OFFSET], from);
    return has_memory(data, width, offset) && offset + count <= bytes / width;
}

/* The same of all numbers of a tensor, whose storage is held from here on: another thread may give it another one
 * while C runs. */
static int hold(Tensor *x, PyObject *from)
{
    long count = 1;
    for (long i = 0; i < x->dims; i++) {
        if (!x->size[i])
            return 1;
        count += (x->size[i] - 1) * x->stride[i];
    }
    return lies_in_storage(x->data, WIDTH[x->type], count, from, &x->storage);
}

static int is_span(Tensor *x)
{
    int fine = x->type >= 0;
    for (long i = 0; i < x->dims; i++)
        fine &= x->size[i] > 0 && x->size[i] <= MAX_EXTENT && x->stride[i] >= 0;
    return fine && spans(x);
}

int see_fresh(Tensor *x, PyObject *from)
{
    DLTensor seen;
    *x = (Tensor){0};
    if (exchange && from != Py_None && is_exact(from) && !exchange->read(from, &seen) && seen.data
        && seen.device == CPU && seen.dims <= DIMS) {
        copy_shape(x, &seen);
        return is_span(x);
    }
    PyErr_Clear();
    return 0;
}

int see_shape(Tensor *x, PyObject *from)
{
    PyObject *shape, *dtype = NULL;
    long stride = 1;
    *x = (Tensor){.type = -1};
    if (!exchange || from == Py_None || !is_exact(from) || !(shape = PyObject_GetAttr(from, names[SHAPE]))) {
        PyErr_Clear();
        return 0;
    }
    x->dims = PyTuple_Size(shape);
    dtype = PyObject_GetAttr(from, names[DTYPE]);
    for (long type = 0; dtype && type < TYPES; type++)
        x->type = dtype == PyTuple_GetItem(dtypes, type) ? type : x->type;
    for (long i = x->dims <= DIMS ? x->dims : 0; i-- > 0; stride *= x->size[i])
        x->size[i] = PyLong_AsLong(PyTuple_GetItem(shape, i)), x->stride[i] = stride;
    Py_DECREF(shape);
    Py_XDECREF(dtype);
    PyErr_Clear();
    return x->dims <= DIMS && is_span(x);
}

/* The steps from a number to the next, of a tensor of known shape. */
static int read_strides(Tensor *x, PyObject *from)
{
    PyObject *strides = PyObject_CallFunctionObjArgs(functions[STRIDE], from, NULL);
    const int fine = strides && PyTuple_Check(strides) && PyTuple_Size(strides) == x->dims;
    for (long i = 0; fine && i < x->dims; i++)
        x->stride[i] = PyLong_AsLong(PyTuple_GetItem(strides, i));
    Py_XDECREF(strides);
    return fine && is_span(x);
}

int see_shared(Tensor *x, PyObject *from)
{
    int fine = see_shape(x, from) && read_strides(x, from) && has(from, names[IS_CPU])
        && says(functions[IS_NEG], from, Py_False);
    const long storage = fine ? long_of(functions[ADDRESS], from) : 0;
    const long offset = storage > 0 ? long_of(functions[OFFSET], from) : -1;
    fine = offset >= 0 && storage % WIDTH[x->type] == 0;
    x->data = fine ? (char *)storage + offset * WIDTH[x->type] : NULL;
    fine = fine && hold(x, from);
    PyErr_Clear();
    return fine;
}

int see(Tensor *x, PyObject *from) { return is_shared(from) ? see_shared(x, from) : see_owned(x, from); }

/* Another thread may run while torch tells of a negation, but not from the address to the storage that is held. */
int see_owned(Tensor *x, PyObject *from)
{
    const int fine = exchange && from != Py_None && is_exact(from) && says(functions[IS_NEG], from, Py_False)
        && see_fresh(x, from) && hold(x, from);
    PyErr_Clear();
    return fine;
}

/* A tensor on the CPU, with the reason of torch's refusal in words of our own. */
static int look(DLTensor *seen, const char *name, PyObject *from)
{
    if (!exchange || from == Py_None || !is_exact(from))
        return RAISE(TypeError, "expected a torch.Tensor for %s", name);
    if (!exchange->read(from, seen) && seen->device == CPU)
        return 1;
    PyErr_Clear();
    return RAISE(TypeError, "expected %s on the CPU, got no such memory", name);
}

int take_floats(Tensor *x, const char *name, PyObject *from)
{
    DLTensor seen;
    if (is_shared(from)) {
        if (see_shared(x, from)) {
            x->name = name;
            return 1;
        }
        release(x);
    }
    if (!look(&seen, name, from))
        return 0;
    if (seen.dims > DIMS)
        return RAISE(ValueError, "%s has too many dimensions", name);
    *x = (Tensor){.name = name};
    copy_shape(x, &seen);
    if (x->type < 0)
        return RAISE(TypeError, "expected %s of float32, float64, bfloat16 or float16 numbers, aligned", name);
    for (long i = 0; i < x->dims; i++)
        if (x->size[i] < 0 || x->size[i] > MAX_EXTENT || x->stride[i] < 0)
            return RAISE(ValueError, "expected %s of sizes from 0 to %ld", name, MAX_EXTENT);
    if (!check_memory(x))
        return 0;
    const int fine = hold(x, from);
    PyErr_Clear();
    return fine || RAISE(ValueError, "expected %s to lie within its storage", name);
}

static int are_sizes(const DLTensor *seen)
{
    return is_of(seen, INTEGER_CODE, 64) && seen->dims == 1 && (seen->shape[0] <= 1 || seen->strides[0] == 1)
        && seen->shape[0] <= MAX_EXTENT;
}

int take_sizes(Job *job, PyObject *from)
{
    DLTensor seen;
    PyObject *storage = NULL;
    job->packed = from != Py_None;
    if (!job->packed)
        return 1;
    if (!look(&seen, "batch_sizes", from))
        return 0;
    if (!is_of(&seen, INTEGER_CODE, 64))
        return RAISE(TypeError, "expected batch_sizes int64 on the CPU");
    if (!are_sizes(&seen))
        return RAISE(ValueError, "expected contiguous batch_sizes (T,)");
    const long count = seen.shape[0];
    const int fine = check_address(address_of(&seen), "batch_sizes", sizeof(int64_t), count == 0)
        && (!count || lies_in_storage(address_of(&seen), sizeof(int64_t), count, from, &storage)
            || (PyErr_Clear(), RAISE(ValueError, "expected batch_sizes to lie within their storage")))
        && copy_sizes(job, address_of(&seen), count);
    Py_XDECREF(storage);
    return fine;
}

/* Sizes one by one: torch takes twice as long to read a tuple. */
PyObject *new_floats(PyObject *like, const long *shape, long dims)
{
    PyObject *args = PyTuple_New(1 + dims), *made = NULL;
    if (!args)
        return NULL;
    PyTuple_SetItem(args, 0, Py_NewRef(like));
    for (long i = 0; i < dims; i++)
        PyTuple_SetItem(args, 1 + i, PyLong_FromLong(shape[i])); /* keeps NULL, which is seen below */
    if (!PyErr_Occurred())
        made = PyObject_Call(functions[NEW_EMPTY], args, NULL);
    Py_DECREF(args);
    return made;
}
