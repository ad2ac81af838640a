#define _GNU_SOURCE
#include "torch_symbols.h"
#include <dlfcn.h>
#include <stdlib.h>

Torch torch;

/* Seen by all first: there an allocator that was loaded before all others has its own `delete`, as torch uses it. */
static void *find_symbol(void *library, const char *name)
{
    void *found = dlsym(RTLD_DEFAULT, name);
    return found ? found : dlsym(library, name);
}

/* TensorImpl::_fw_grad(uint64_t, const TensorBase &), where uint64_t is an unsigned long, or a long long as on macOS. */
static const char *const FW_GRAD[] = {"_ZNK3c1010TensorImpl8_fw_gradEmRKN2at10TensorBaseE",
                                      "_ZNK3c1010TensorImpl8_fw_gradEyRKN2at10TensorBaseE"};

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
    torch.exception_message = (const char *(*)(void))dlsym(library, "torch_exception_get_what_without_backtrace");
    for (int i = 0; i < 2 && !torch.forward_gradient; i++)
        torch.forward_gradient = (const void *(*)(const void *, uint64_t, const void *))find_symbol(library, FW_GRAD[i]);
    torch.dtypes[FLOAT] = torch.aoti_torch_dtype_float32(), torch.dtypes[DOUBLE] = torch.aoti_torch_dtype_float64();
    torch.dtypes[BFLOAT] = torch.aoti_torch_dtype_bfloat16(), torch.dtypes[HALF] = torch.aoti_torch_dtype_float16();
    torch.dtypes[INT64] = torch.aoti_torch_dtype_int64();
    torch.cpu = torch.aoti_torch_device_type_cpu(), torch.strided = torch.aoti_torch_layout_strided();
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
        fail("%s failed: %.400s", name,
             torch.exception_message ? torch.exception_message() : "see what is printed above");
    return false;
}

void raise_error(void)
{
    torch.aoti_torch_check(false, "manual_rnn", "call.c", 0, error_message());
    abort(); /* not reached: torch has thrown */
}

Value new_list(size_t room)
{
    Handle list = NULL;
    torch.torch_new_list_reserve_size(room, &list);
    return (Value)list;
}

void list_append(Value list, Value item) { torch.torch_list_push_back((Handle)list, item); }

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

void release_list(void *list) { torch.torch_delete_list(list); }

void release_string(void *string) { torch.torch_delete_string(string); }

Value take_optional(Value holder)
{
    if (!holder)
        return 0;
    const Value held = *(Value *)holder;
    torch._ZdlPv((void *)holder);
    return held;
}
