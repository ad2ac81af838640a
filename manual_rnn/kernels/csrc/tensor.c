#include "tensor.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "half.h"

static _Thread_local char message[512];

bool fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return false;
}

const char *error_message(void) { return message; }

void clear_error(void) { message[0] = 0; }

/* Whether sum_i (size_i - 1) stride_i <= MAX_EXTENT. */
bool spans(Tensor *x)
{
    long span = 0;
    for (long i = 0; i < x->dims; i++) {
        if (x->size[i] == 1)
            x->stride[i] = 1;
        else if (x->size[i] && x->stride[i] > (MAX_EXTENT - span) / (x->size[i] - 1 ? x->size[i] - 1 : 1))
            return false;
        span += x->size[i] ? (x->size[i] - 1) * x->stride[i] : 0;
    }
    return true;
}

static void print_shape(char *to, size_t room, Shape shape)
{
    size_t end = 0;
    to[0] = 0;
    for (long i = 0; i < shape.dims && end < room; i++)
        end += snprintf(to + end, room - end, i ? ", %ld" : "%ld", (long)shape.size[i]);
}

bool check_shape(const Tensor *x, Shape shape)
{
    char expected[24 * DIMS], got[24 * DIMS];
    if (x->dims == shape.dims && !memcmp(x->size, shape.size, shape.dims * sizeof *shape.size))
        return true;
    print_shape(expected, sizeof expected, shape), print_shape(got, sizeof got, shape_of(x));
    return fail("%s: expected shape (%s), got (%s)", x->name, expected, got);
}

Shape shape_of(const Tensor *x)
{
    Shape shape = {.dims = x->dims};
    memcpy(shape.size, x->size, sizeof shape.size);
    return shape;
}

Shape prepended(int64_t size, Shape shape)
{
    Shape all = {1 + shape.dims, {size}};
    memcpy(all.size + 1, shape.size, shape.dims * sizeof *shape.size);
    return all;
}

View view_of(const Tensor *x, int group, int step, int row, int column)
{
    const int axes[] = {group, step, row, column};
    long stride[4];
    if (!x->data)
        return (View){0};
    for (int i = 0; i < 4; i++)
        stride[i] = axes[i] < 0 ? 0 : x->stride[axes[i]] * WIDTH[x->type];
    return (View){x->data, x->type, stride[0], stride[1], stride[2], stride[3]};
}

View transposed(View x)
{
    return (View){x.data, x.type, x.group, x.step, x.column, x.row};
}
