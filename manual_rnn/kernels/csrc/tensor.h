/* A tensor as the engine reads it, and what doesn't fit: the one way of errors. */
#ifndef MANUAL_RNN_TENSOR_H
#define MANUAL_RNN_TENSOR_H
#include <stdbool.h>
#include <stdint.h>
#include "types.h"

enum { DIMS = 4 }; /* G, T, B, H */

typedef struct {
    const char *name;
    char *data;                           /* NULL where there is none */
    long type, dims;
    int64_t size[DIMS], stride[DIMS];     /* strides in numbers; none negative, no size above MAX_EXTENT */
} Tensor;

typedef struct { long dims; int64_t size[DIMS]; } Shape;

/* Keeps a message for `error_message` and returns false. */
__attribute__((format(printf, 1, 2))) bool fail(const char *format, ...);
const char *error_message(void);
void clear_error(void);

/* Whether a tensor's span can exist; a stride that is never taken becomes 1. */
bool spans(Tensor *x);

/* Whether the sizes are these. */
bool check_shape(const Tensor *x, Shape shape);

Shape shape_of(const Tensor *x);

/* A shape with one axis more, in front. */
Shape prepended(int64_t size, Shape shape);

/* A tensor as a view whose axes are these, counted from 0, or -1 where there is none; absent where the tensor is. */
View view_of(const Tensor *x, int group, int step, int row, int column);
View transposed(View x);

#endif
