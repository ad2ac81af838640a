#define _GNU_SOURCE
#include "torch_abi.h"
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include "half.h"

typedef int32_t Status; /* 0 for success */

/* name, result, arguments */
#define SYMBOLS(SYMBOL) \
    SYMBOL(aoti_torch_library_init_impl, Status, (const char *, const char *, const char *, uint32_t, Handle *)) \
    SYMBOL(aoti_torch_library_init_fragment, Status, (const char *, const char *, uint32_t, Handle *)) \
    SYMBOL(aoti_torch_library_def, Status, (Handle, const char *)) \
    SYMBOL(torch_library_impl, Status, (Handle, const char *, Kernel *, uint64_t)) \
    SYMBOL(torch_call_dispatcher, Status, (const char *, const char *, Value *, uint64_t)) \
    SYMBOL(aoti_torch_check, void, (bool, const char *, const char *, uint32_t, const char *)) \
    SYMBOL(aoti_torch_grad_mode_is_enabled, bool, (void)) \
    SYMBOL(torch_get_num_threads, Status, (uint32_t *)) \
    SYMBOL(aoti_torch_is_defined, Status, (Handle, bool *)) \
    SYMBOL(aoti_torch_get_dim, Status, (Handle, int64_t *)) \
    SYMBOL(aoti_torch_get_sizes, Status, (Handle, int64_t **)) \
    SYMBOL(aoti_torch_get_strides, Status, (Handle, int64_t **)) \
    SYMBOL(aoti_torch_get_dtype, Status, (Handle, int32_t *)) \
    SYMBOL(aoti_torch_get_device_type, Status, (Handle, int32_t *)) \
    SYMBOL(aoti_torch_get_layout, Status, (Handle, int32_t *)) \
    SYMBOL(aoti_torch_get_storage_offset, Status, (Handle, int64_t *)) \
    SYMBOL(aoti_torch_get_storage_size, Status, (Handle, int64_t *)) \
    SYMBOL(torch_get_const_data_ptr, Status, (Handle, const void **)) \
    SYMBOL(aoti_torch_get_data_ptr, Status, (Handle, void **)) \
    SYMBOL(aoti_torch__reinterpret_tensor, Status, \
           (Handle, int64_t, const int64_t *, const int64_t *, int64_t, Handle *)) \
    SYMBOL(aoti_torch_clone, Status, (Handle, Handle *)) \
    SYMBOL(aoti_torch_empty_strided, Status, \
           (int64_t, const int64_t *, const int64_t *, int32_t, int32_t, int32_t, Handle *)) \
    SYMBOL(aoti_torch_new_uninitialized_tensor, Status, (Handle *)) \
    SYMBOL(aoti_torch_delete_tensor_object, Status, (Handle)) \
    SYMBOL(torch_new_list_reserve_size, Status, (size_t, Handle *)) \
    SYMBOL(torch_list_size, Status, (Handle, size_t *)) \
    SYMBOL(torch_list_get_item, Status, (Handle, size_t, Value *)) \
    SYMBOL(torch_list_push_back, Status, (Handle, Value)) \
    SYMBOL(torch_delete_list, Status, (Handle)) \
    SYMBOL(torch_string_c_str, Status, (Handle, const char **)) \
    SYMBOL(torch_delete_string, Status, (Handle)) \
    SYMBOL(aoti_torch_dtype_float32, int32_t, (void)) \
    SYMBOL(aoti_torch_dtype_float64, int32_t, (void)) \
    SYMBOL(aoti_torch_dtype_bfloat16, int32_t, (void)) \
    SYMBOL(aoti_torch_dtype_float16, int32_t, (void)) \
    SYMBOL(aoti_torch_dtype_int64, int32_t, (void)) \
    SYMBOL(aoti_torch_device_type_cpu, int32_t, (void)) \
    SYMBOL(aoti_torch_layout_strided, int32_t, (void)) \
    SYMBOL(_ZdlPv, void, (void *)) /* C++'s delete, of the holder of an optional argument */

#define DECLARE(name, result, arguments) result (*name) arguments;
static struct { SYMBOLS(DECLARE) } torch;
static const char *(*exception_message)(void); /* or NULL, in an older torch */
static int32_t dtypes[TYPES], int64_dtype, cpu, strided;

/* Seen by all first: there an allocator that was loaded before all others has its own `delete`, as torch uses it. */
static void *find_symbol(void *library, const char *name)
{
    void *found = dlsym(RTLD_DEFAULT, name);
    return found ? found : dlsym(library, name);
}

/* libtorch is loaded, and perhaps not visible to all: so it is asked for by name, and not loaded anew. */
bool torch_abi_load(void)
{
#ifdef __APPLE__
    void *library = dlopen("@rpath/libtorch_cpu.dylib", RTLD_LAZY | RTLD_NOLOAD);
#else
    void *library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
#endif
    if (!library)
        return fail("libtorch_cpu isn't loaded");
#define LOOK_UP(name, result, arguments) \
    if (!(torch.name = (result (*) arguments)find_symbol(library, #name))) \
        return fail("this torch lacks %s", #name);
    SYMBOLS(LOOK_UP)
    exception_message = (const char *(*)(void))dlsym(library, "torch_exception_get_what_without_backtrace");
    dtypes[FLOAT] = torch.aoti_torch_dtype_float32(), dtypes[DOUBLE] = torch.aoti_torch_dtype_float64();
    dtypes[BFLOAT] = torch.aoti_torch_dtype_bfloat16(), dtypes[HALF] = torch.aoti_torch_dtype_float16();
    int64_dtype = torch.aoti_torch_dtype_int64();
    cpu = torch.aoti_torch_device_type_cpu(), strided = torch.aoti_torch_layout_strided();
    return true;
}

bool register_kernel(const char *name_space, const char *key, const char *name, Kernel *kernel)
{
    Handle library; /* kept: its end would take the kernel back */
    return (!torch.aoti_torch_library_init_impl(name_space, key, __FILE__, __LINE__, &library)
            && !torch.torch_library_impl(library, name, kernel, ABI_VERSION))
        || fail("torch took no kernel of %s::%s for %s", name_space, name, key);
}

bool define_operator(const char *schema)
{
    Handle library;
    return (!torch.aoti_torch_library_init_fragment("manual_rnn", __FILE__, __LINE__, &library)
            && !torch.aoti_torch_library_def(library, schema))
        || fail("torch took no operator manual_rnn::%s", schema);
}

int torch_threads(void)
{
    uint32_t threads = 1;
    torch.torch_get_num_threads(&threads);
    return threads ? (int)threads : 1;
}

bool grad_mode_is_enabled(void) { return torch.aoti_torch_grad_mode_is_enabled(); }

/* The message is that of a kernel of ours, or what torch says of the exception, which 2.13 and newer do. */
bool call_operator(const char *name, Value *stack)
{
    clear_error();
    if (!torch.torch_call_dispatcher(name, "", stack, ABI_VERSION))
        return true;
    if (!*error_message())
        fail("%s failed: %.400s", name, exception_message ? exception_message() : "see what is printed above");
    return false;
}

void raise_error(void)
{
    torch.aoti_torch_check(false, "manual_rnn", "operators.c", 0, error_message());
    abort(); /* not reached: torch has thrown */
}

bool is_defined(Value tensor)
{
    bool defined = false;
    return tensor && !torch.aoti_torch_is_defined((Handle)tensor, &defined) && defined;
}

long tensor_dims(Value tensor)
{
    int64_t dims = 0;
    torch.aoti_torch_get_dim((Handle)tensor, &dims);
    return (long)dims;
}

static bool read_type(Tensor *x, Handle from)
{
    int32_t dtype = -1, device = -1, layout = -1;
    torch.aoti_torch_get_dtype(from, &dtype);
    torch.aoti_torch_get_device_type(from, &device);
    torch.aoti_torch_get_layout(from, &layout);
    if (device != cpu || layout != strided)
        return fail("expected %s to be a dense tensor on the CPU", x->name);
    for (x->type = 0; x->type < TYPES && dtypes[x->type] != dtype; x->type++)
        ;
    return x->type < TYPES || fail("expected %s of float32, float64, bfloat16 or float16", x->name);
}

static bool ends_in_storage(const Tensor *x, Handle from)
{
    int64_t bytes = 0, offset = 0, numbers = 1;
    for (long i = 0; i < x->dims; i++) {
        if (!x->size[i])
            return true;
        numbers += (x->size[i] - 1) * x->stride[i];
    }
    torch.aoti_torch_get_storage_size(from, &bytes);
    torch.aoti_torch_get_storage_offset(from, &offset);
    return offset + numbers <= bytes / WIDTH[x->type]
        || fail("%s requires %ld bytes and is out of bounds for storage of size %ld", x->name,
                (long)(offset + numbers) * WIDTH[x->type], (long)bytes);
}

static bool read_shape(Tensor *x, Handle from, int64_t **sizes, int64_t **strides)
{
    int64_t dims = 0;
    torch.aoti_torch_get_dim(from, &dims);
    torch.aoti_torch_get_sizes(from, sizes), torch.aoti_torch_get_strides(from, strides);
    if (dims > DIMS)
        return fail("%s has too many dimensions", x->name);
    x->dims = dims;
    for (long i = 0; i < dims; i++) {
        x->size[i] = (*sizes)[i], x->stride[i] = (*strides)[i];
        if (x->size[i] < 0 || x->size[i] > MAX_EXTENT || x->stride[i] < 0)
            return fail("expected %s of sizes from 0 to %ld", x->name, MAX_EXTENT);
    }
    return true;
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

static bool is_empty_tensor(const Tensor *x)
{
    bool empty = false;
    for (long i = 0; i < x->dims; i++)
        empty |= x->size[i] == 0;
    return empty;
}

/* Where there is no memory, or numbers lie at odd addresses, a copy is read. */
static bool make_readable(Tensor *x, Handle *keep)
{
    int64_t *sizes = NULL, *strides = NULL;
    Handle copy = NULL;
    if (is_empty_tensor(x) || (has_memory(x, *keep) && (uintptr_t)x->data % WIDTH[x->type] == 0))
        return true;
    if (torch.aoti_torch_clone(*keep, &copy))
        return fail("%s has no memory", x->name);
    release_tensor((Value)*keep);
    *keep = copy;
    return read_shape(x, copy, &sizes, &strides) && read_memory(x, copy);
}

bool read_tensor(Tensor *x, const char *name, Value from, Handle *keep)
{
    int64_t *sizes = NULL, *strides = NULL;
    *x = (Tensor){.name = name}, *keep = NULL;
    if (!read_type(x, (Handle)from) || !read_shape(x, (Handle)from, &sizes, &strides))
        return false;
    if (torch.aoti_torch__reinterpret_tensor((Handle)from, x->dims, sizes, strides, 0, keep))
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

bool read_sizes(int64_t **sizes, int64_t *count, Value from)
{
    int32_t dtype = -1, device = -1, layout = -1;
    int64_t dims = 0, *shape = NULL, *strides = NULL;
    Handle alias = NULL; /* keeps the storage, whatever becomes of the tensor */
    torch.aoti_torch_get_dtype((Handle)from, &dtype), torch.aoti_torch_get_layout((Handle)from, &layout);
    torch.aoti_torch_get_device_type((Handle)from, &device), torch.aoti_torch_get_dim((Handle)from, &dims);
    if (dtype != int64_dtype || device != cpu || layout != strided || dims != 1)
        return fail("expected batch_sizes (T,) of int64 on the CPU");
    torch.aoti_torch_get_sizes((Handle)from, &shape), torch.aoti_torch_get_strides((Handle)from, &strides);
    const int64_t steps = shape[0], stride = steps > 1 ? strides[0] : 1;
    *sizes = steps < MAX_EXTENT / 8 && stride < MAX_EXTENT / (steps + 1) ? malloc(sizeof(int64_t) * (steps + 1)) : NULL;
    if (!*sizes)
        return fail("no memory for batch_sizes");
    *count = steps;
    if (!steps)
        return true;
    if (torch.aoti_torch__reinterpret_tensor((Handle)from, 1, &steps, &stride, 0, &alias))
        return fail("batch_sizes have no memory");
    const bool fine = copy_sizes(*sizes, steps, stride, alias);
    release_tensor((Value)alias);
    return fine;
}

bool new_tensor(Value *made, Tensor *x, int type, int dims, const int64_t *sizes, const int64_t *strides)
{
    int64_t contiguous[DIMS], next = 1;
    void *data = NULL;
    for (int i = dims; i-- > 0; next *= sizes[i])
        contiguous[i] = next;
    if (torch.aoti_torch_empty_strided(dims, sizes, strides ? strides : contiguous, dtypes[type], cpu, -1,
                                       (Handle *)made))
        return fail("no memory for a result");
    *x = (Tensor){.name = "a result", .type = type, .dims = dims};
    torch.aoti_torch_get_data_ptr((Handle)*made, &data);
    for (int i = 0; i < dims; i++)
        x->size[i] = sizes[i], x->stride[i] = strides ? strides[i] : contiguous[i];
    x->data = data;
    return true;
}

Value undefined_tensor(void)
{
    Handle made = NULL;
    torch.aoti_torch_new_uninitialized_tensor(&made);
    return (Value)made;
}

Value list_of(const Value *items, size_t count)
{
    Handle list = NULL;
    torch.torch_new_list_reserve_size(count, &list);
    for (size_t i = 0; i < count; i++)
        torch.torch_list_push_back(list, items[i]);
    return (Value)list;
}

size_t list_size(Value list)
{
    size_t size = 0;
    torch.torch_list_size((Handle)list, &size);
    return size;
}

Value list_item(Value list, size_t index)
{
    Value item = 0;
    torch.torch_list_get_item((Handle)list, index, &item);
    return item;
}

const char *string_of(Value string)
{
    const char *found = "";
    torch.torch_string_c_str((Handle)string, &found);
    return found;
}

void release_tensor(Value tensor)
{
    if (tensor)
        torch.aoti_torch_delete_tensor_object((Handle)tensor);
}

void release_list(Value list) { torch.torch_delete_list((Handle)list); }

void release_string(Value string) { torch.torch_delete_string((Handle)string); }

Value take_optional(Value holder)
{
    if (!holder)
        return 0;
    const Value held = *(Value *)holder;
    torch._ZdlPv((void *)holder);
    return held;
}
