/* The functions of libtorch that are called, each found by its name: shared by torch_abi.c and torch_tensors.c. */
#ifndef MANUAL_RNN_TORCH_SYMBOLS_H
#define MANUAL_RNN_TORCH_SYMBOLS_H
#include "torch_abi.h"

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
enum { INT64 = TYPES }; /* of batch_sizes: one type more than numbers have */

typedef struct {
    SYMBOLS(DECLARE)
    const char *(*exception_message)(void);  /* or NULL, in an older torch */
    const void *(*forward_gradient)(const void *, uint64_t, const void *); /* or NULL, see `finds_tangents` */
    int32_t dtypes[INT64 + 1], cpu, strided; /* torch's numbers of our types, of the device and the layout */
} Torch;
extern Torch torch;

#endif
