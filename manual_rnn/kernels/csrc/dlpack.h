/* DLPack's exchange of C functions (https://dmlc.github.io/dlpack/latest/c_api.html), version 1.3, shortened from
 * torch's include/ATen/dlpack.h. */
#ifndef MANUAL_RNN_DLPACK_H
#define MANUAL_RNN_DLPACK_H
#include <stdint.h>

enum { MAJOR = 1, CPU = 1, INTEGER_CODE = 0, FLOAT_CODE = 2, BFLOAT_CODE = 4 };

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

#endif
