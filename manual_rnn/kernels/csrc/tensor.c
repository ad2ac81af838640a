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

static void print_shape(char *to, size_t room, long dims, const int64_t *sizes)
{
    size_t end = 0;
    to[0] = 0;
    for (long i = 0; i < dims && end < room; i++)
        end += snprintf(to + end, room - end, i ? ", %ld" : "%ld", (long)sizes[i]);
}

bool check_shape(const Tensor *x, long dims, const int64_t *sizes)
{
    char expected[24 * DIMS], got[24 * DIMS];
    if (x->dims == dims && !memcmp(x->size, sizes, dims * sizeof *sizes))
        return true;
    print_shape(expected, sizeof expected, dims, sizes), print_shape(got, sizeof got, x->dims, x->size);
    return fail("%s: expected shape (%s), got (%s)", x->name, expected, got);
}

View view_of(const Tensor *x, int group, int step, int row, int column)
{
    const int axes[] = {group, step, row, column};
    long stride[4];
    for (int i = 0; i < 4; i++)
        stride[i] = axes[i] < 0 ? 0 : x->stride[axes[i]] * WIDTH[x->type];
    return (View){x->data, x->type, stride[0], stride[1], stride[2], stride[3]};
}

View transposed(View x)
{
    return (View){x.data, x.type, x.group, x.step, x.column, x.row};
}
