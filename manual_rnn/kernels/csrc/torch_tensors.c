/* Tensors of torch: read, with every check that memory asks for, and made. */
#include "torch_symbols.h"
#include <stdlib.h>
#include <string.h>
#include "half.h"
#include "memory.h"

bool is_defined(Value tensor)
{
    bool defined = false;
    return tensor && !torch.aoti_torch_is_defined((Handle)tensor, &defined) && defined;
}

/* A handle is the address of a C++ Tensor, which is that of a TensorImpl. Its `_fw_grad` is no part of the C ABI. */
bool carries_tangent(Value tensor)
{
    const void *const impl = *(const void *const *)tensor;
    return is_defined(tensor) && is_defined((Value)torch.forward_gradient(impl, 0, (const void *)tensor));
}

bool finds_tangents(void) { return torch.forward_gradient; }

long tensor_dims(Value tensor)
{
    int64_t dims = 0;
    torch.aoti_torch_get_dim((Handle)tensor, &dims);
    return (long)dims;
}

/* The type of a dense tensor on the CPU, INT64 + 1 where it is none of ours; -1 of any other tensor. */
static long type_of(Handle from)
{
    int32_t dtype = -1, device = -1, layout = -1;
    torch.aoti_torch_get_dtype(from, &dtype);
    torch.aoti_torch_get_device_type(from, &device);
    torch.aoti_torch_get_layout(from, &layout);
    if (device != torch.cpu || layout != torch.strided)
        return -1;
    long type = 0;
    while (type <= INT64 && torch.dtypes[type] != dtype)
        type++;
    return type;
}

static bool read_type(Tensor *x, Handle from)
{
    x->type = type_of(from);
    if (x->type < 0)
        return fail("expected %s to be a dense tensor on the CPU", x->name);
    return x->type < TYPES || fail("expected %s of float32, float64, bfloat16 or float16", x->name);
}

static bool read_shape(Tensor *x, Handle from)
{
    int64_t *sizes = NULL, *strides = NULL;
    x->dims = tensor_dims((Value)from);
    torch.aoti_torch_get_sizes(from, &sizes), torch.aoti_torch_get_strides(from, &strides);
    if (x->dims > DIMS)
        return fail("%s has too many dimensions", x->name);
    for (long i = 0; i < x->dims; i++) {
        x->size[i] = sizes[i], x->stride[i] = strides[i];
        if (x->size[i] < 0 || x->size[i] > MAX_EXTENT || x->stride[i] < 0)
            return fail("expected %s of sizes from 0 to %ld", x->name, MAX_EXTENT);
    }
    return true;
}

static bool has_no_numbers(const Tensor *x)
{
    for (long i = 0; i < x->dims; i++)
        if (!x->size[i])
            return true;
    return false;
}

static bool ends_in_storage(const Tensor *x, Handle from)
{
    int64_t bytes = 0, offset = 0, numbers = 1;
    if (has_no_numbers(x))
        return true;
    for (long i = 0; i < x->dims; i++)
        numbers += (x->size[i] - 1) * x->stride[i];
    torch.aoti_torch_get_storage_size(from, &bytes);
    torch.aoti_torch_get_storage_offset(from, &offset);
    return offset + numbers <= bytes / WIDTH[x->type]
        || fail("%s requires %ld bytes and is out of bounds for storage of size %ld", x->name,
                (long)(offset + numbers) * WIDTH[x->type], (long)bytes);
}

static bool read_memory(Tensor *x, Handle from)
{
    const void *data = NULL;
    if (!spans(x))
        return fail("%s spans more memory than there can be", x->name);
    if (!ends_in_storage(x, from))
        return false;
    if (torch.torch_get_const_data_ptr(from, &data))
        return fail("%s has no memory", x->name);
    x->data = (char *)(uintptr_t)data;
    return true;
}

/* Whether there is memory before the offset is added: torch's zeros without memory have none. */
static bool has_memory(const Tensor *x, Handle from)
{
    int64_t offset = 0;
    torch.aoti_torch_get_storage_offset(from, &offset);
    return (uintptr_t)x->data != (uintptr_t)offset * WIDTH[x->type];
}

/* Where there is no memory, or numbers lie at odd addresses, a copy is read. */
static bool make_readable(Tensor *x, Handle *keep)
{
    Handle copy = NULL;
    if (has_no_numbers(x) || (has_memory(x, *keep) && (uintptr_t)x->data % WIDTH[x->type] == 0))
        return true;
    if (torch.aoti_torch_clone(*keep, &copy))
        return fail("%s has no memory", x->name);
    release_tensor(*keep);
    *keep = copy;
    return read_shape(x, copy) && read_memory(x, copy);
}

bool read_tensor(Tensor *x, const char *name, Handle from, Handle *keep)
{
    *x = (Tensor){.name = name}, *keep = NULL;
    if (!read_type(x, from) || !read_shape(x, from))
        return false;
    if (torch.aoti_torch__reinterpret_tensor(from, x->dims, x->size, x->stride, 0, keep))
        return fail("%s has no memory", name);
    return read_memory(x, *keep) && make_readable(x, keep);
}

/* A copy, since another thread may write to them at any time. */
static bool copy_sizes(int64_t *sizes, int64_t count, int64_t stride, Handle from)
{
    int64_t bytes = 0, offset = 0;
    const char *data = NULL;
    torch.aoti_torch_get_storage_size(from, &bytes), torch.aoti_torch_get_storage_offset(from, &offset);
    if (offset + (count - 1) * stride >= bytes / (int64_t)sizeof *sizes)
        return fail("batch_sizes are out of bounds for storage of size %ld", (long)bytes);
    if (torch.torch_get_const_data_ptr(from, (const void **)&data) || !data)
        return fail("batch_sizes have no memory");
    for (int64_t t = 0; t < count; t++)
        memcpy(&sizes[t], data + t * stride * (int64_t)sizeof *sizes, sizeof *sizes);
    return true;
}

bool read_sizes(int64_t **sizes, int64_t *count, Handle from)
{
    int64_t *shape = NULL, *strides = NULL;
    Handle alias = NULL; /* keeps the storage, whatever becomes of the tensor */
    if (type_of(from) != INT64 || tensor_dims((Value)from) != 1)
        return fail("expected batch_sizes (T,) of int64 on the CPU");
    torch.aoti_torch_get_sizes(from, &shape), torch.aoti_torch_get_strides(from, &strides);
    const int64_t steps = shape[0], stride = steps > 1 ? strides[0] : 1;
    *sizes = steps < MAX_EXTENT / 8 && stride < MAX_EXTENT / (steps + 1) ? malloc(sizeof(int64_t) * (steps + 1)) : NULL;
    if (!*sizes)
        return fail("no memory for batch_sizes");
    *count = steps;
    if (!steps)
        return true;
    if (torch.aoti_torch__reinterpret_tensor(from, 1, &steps, &stride, 0, &alias))
        return fail("batch_sizes have no memory");
    const bool fine = copy_sizes(*sizes, steps, stride, alias);
    release_tensor(alias);
    return fine;
}

Handle new_tensor(Tensor *x)
{
    Handle made = NULL;
    void *data = NULL;
    int64_t bytes = 0;
    if (torch.aoti_torch_empty_strided(x->dims, x->size, x->stride, torch.dtypes[x->type], torch.cpu, -1, &made)) {
        fail("no memory for a result");
        return NULL;
    }
    torch.aoti_torch_get_data_ptr(made, &data), torch.aoti_torch_get_storage_size(made, &bytes);
    use_large_pages(data, bytes);
    x->data = data;
    return made;
}

Handle copy_tensor(Handle from)
{
    Handle made = NULL;
    if (torch.aoti_torch_clone(from, &made))
        fail("no memory for a copy");
    return made;
}

Value undefined_tensor(void)
{
    Handle made = NULL;
    torch.aoti_torch_new_uninitialized_tensor(&made);
    return (Value)made;
}

void release_tensor(void *tensor) { torch.aoti_torch_delete_tensor_object(tensor); }
