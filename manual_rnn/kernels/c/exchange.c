/* DLPack's exchange of C functions (https://dmlc.github.io/dlpack/latest/c_api.html), which torch 2.11 to
 * 2.15 offer: the declarations are those of version 1.3, shortened from torch's include/ATen/dlpack.h.
 *
 * It could make tensors too, whose memory can't be resized, nor shared by `torch._lazy_clone`: torch's own
 * new_empty makes ours.
 */
#include "exchange.h"

enum { MAJOR = 1, CPU = 1, INTEGER = 0, FLOAT = 2 };

typedef struct {
    void *data;
    int32_t device, device_index, dims;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} DLTensor;

typedef struct Exchange {
    uint32_t major, minor;
    const struct Exchange *older;
    void (*allocate)(void), (*from_object)(void), (*to_object)(void);
    int (*read)(void *object, DLTensor *to); /* borrows; may be NULL */
} Exchange;

static const Exchange *exchange;
static PyObject *tensor_type, *parameter_type, *new_empty, *is_neg, *has_storage, *cpu;

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
    for (int i = 1; i < 6; i++)
        if (i < 3 ? !PyType_Check(args[i]) : !PyCallable_Check(args[i]))
            return RAISE(TypeError, "expected two types and three functions");
    keep(&tensor_type, args[1]), keep(&parameter_type, args[2]);
    keep(&new_empty, args[3]), keep(&is_neg, args[4]), keep(&has_storage, args[5]);
    if (!cpu && !(cpu = PyUnicode_InternFromString("is_cpu")))
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

static int on_cpu(PyObject *x)
{
    PyObject *found = PyObject_GetAttr(x, cpu);
    Py_XDECREF(found);
    return found == Py_True;
}

/* Storage is asked for first, since torch takes a millisecond to refuse to read a tensor without. */
static int is_numbers(PyObject *x)
{
    DLTensor seen;
    return is_exact(x) && says(is_neg, x, Py_False) && says(has_storage, x, Py_True)
        && !exchange->read(x, &seen) && is_of(&seen, FLOAT, 32) && seen.data
        && ((uintptr_t)seen.data + seen.byte_offset) % sizeof(float) == 0;
}

/* As slowly it refuses meta tensors. They don't come mixed with others, so the first tells. */
int are_numbers(PyObject *const *xs, long count)
{
    int fine = exchange != NULL, first = 1;
    for (long i = 0; fine && i < count; i++)
        if (xs[i] != Py_None) {
            fine = (!first || (is_exact(xs[i]) && on_cpu(xs[i]))) && is_numbers(xs[i]);
            first = 0;
        }
    PyErr_Clear();
    return fine;
}

/* A tensor of one type of number on the CPU, with the reason of torch's refusal in words of our own. */
static int look(DLTensor *seen, const char *name, PyObject *from, int code, int bits)
{
    const char *type = code == FLOAT ? "float32" : "int64";
    if (!exchange || from == Py_None || !is_exact(from))
        return RAISE(TypeError, "expected a torch.Tensor for %s", name);
    if (exchange->read(from, seen)) {
        PyErr_Clear();
        return RAISE(TypeError, "expected %s %s on the CPU, got no such memory", name, type);
    }
    return is_of(seen, code, bits) || RAISE(TypeError, "expected %s %s on the CPU", name, type);
}

int take_floats(Tensor *x, const char *name, PyObject *from)
{
    DLTensor seen;
    if (!look(&seen, name, from, FLOAT, 32))
        return 0;
    if (seen.dims > DIMS)
        return RAISE(ValueError, "%s has too many dimensions", name);
    *x = (Tensor){name, (char *)seen.data + seen.byte_offset, seen.dims};
    for (long i = 0; i < x->dims; i++) {
        x->size[i] = seen.shape[i], x->stride[i] = seen.strides[i];
        if (x->size[i] < 0 || x->size[i] > REACH || x->stride[i] < 0)
            return RAISE(ValueError, "expected %s of sizes from 0 to %ld", name, REACH);
    }
    return check_memory(x);
}

int take_sizes(Job *job, PyObject *from)
{
    DLTensor seen;
    job->packed = from != Py_None;
    if (!job->packed)
        return 1;
    if (!look(&seen, "batch_sizes", from, INTEGER, 64))
        return 0;
    if (seen.dims != 1 || (seen.shape[0] > 1 && seen.strides[0] != 1) || seen.shape[0] > REACH)
        return RAISE(ValueError, "expected contiguous batch_sizes (T,)");
    const char *data = (char *)seen.data + seen.byte_offset;
    return check_address(data, "batch_sizes", sizeof(int64_t), seen.shape[0] == 0)
        && copy_sizes(job, data, seen.shape[0]);
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
        made = PyObject_Call(new_empty, args, NULL);
    Py_DECREF(args);
    return made;
}
