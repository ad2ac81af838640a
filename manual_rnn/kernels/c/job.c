#include "job.h"
#include <stdlib.h>
#include <string.h>

int check_address(const void *data, const char *name, int width, int empty)
{
    if ((uintptr_t)data % width)
        return RAISE(ValueError, "expected %s aligned to %d bytes", name, width);
    return data || empty || RAISE(ValueError, "%s has no memory", name);
}

/* Checks that sum_i (size_i - 1) stride_i <= REACH. A stride that's never taken may be anything, and
 * becomes 1. */
static int check_span(Tensor *x)
{
    long span = 0;
    for (long i = 0; i < x->dims; i++) {
        if (x->size[i] == 1)
            x->stride[i] = 1;
        else if (x->stride[i] > (REACH - span) / (x->size[i] - 1))
            return RAISE(ValueError, "%s spans more memory than there can be", x->name);
        span += (x->size[i] - 1) * x->stride[i];
    }
    return 1;
}

int check_memory(Tensor *x)
{
    int empty = 0;
    for (long i = 0; i < x->dims; i++)
        empty |= x->size[i] == 0;
    return check_address(x->data, x->name, sizeof(float), empty) && (empty || check_span(x));
}

static int refuse_shape(const Tensor *x)
{
    char shape[24 * DIMS] = "";
    for (long i = 0, end = 0; i < x->dims; i++)
        end += sprintf(shape + end, i ? ", %ld" : "%ld", x->size[i]);
    return RAISE(ValueError, "%s has shape (%s), which does not fit the other tensors", x->name, shape);
}

/* Checks a tensor's shape, which must be `want`: `dims` sizes, and G before them if the tensors are
 * grouped. Where rows are all there is, as in a packed batch, they are steps too. */
static int fit(View *view, const Tensor *x, int grouped, int dims, const long *want)
{
    const long *stride = x->stride + grouped; /* of step, row and column, or the last of them */
    int fits = x->dims == grouped + dims;
    for (long i = 0; fits && i < x->dims; i++)
        fits = x->size[i] == want[grouped ? i : i + 1];
    if (!fits)
        return refuse_shape(x);
    const long row = dims == 1 ? 0 : stride[dims - 2], step = dims == 3 ? stride[0] : row;
    *view = (View){x->data, grouped ? x->stride[0] : 0, step, row, stride[dims - 1]};
    return 1;
}

static View transposed(View x)
{
    return (View){x.data, x.group, x.step, x.column, x.row};
}

/* B = size_0 >= size_1 >= ... >= 0, and their sum is N. Stops where the sum passes N, and so never
 * overflows. */
static int check_sizes(const Job *job)
{
    long sum = 0, last = job->B;
    for (long t = 0; t < job->T && sum <= job->steps; last = job->sizes[t++], sum += last)
        if (job->sizes[t] > last || job->sizes[t] < 0 || (t == 0 && job->sizes[t] != job->B))
            return RAISE(ValueError,
                         "expected batch_sizes that begin with the batch, never grow and are never negative");
    return sum == job->steps || RAISE(ValueError, "expected batch_sizes that add up to the input's rows");
}

/* The sizes of a job, from the shapes of z and of `other`, which is h_0 or, for a slope, h. */
static int measure(Job *job, const Tensor *z, const Tensor *other, int grouped)
{
    const int packed = job->packed, slope = job->kind >= TANH_SLOPE;
    if (z->dims != grouped + (packed ? 2 : 3) || other->dims < 2)
        return RAISE(ValueError, "expected an input of (T, B, H), or (N, H) if packed, with a leading G if "
                                 "the weights have one");
    job->G = grouped ? z->size[0] : 1;
    job->steps = z->size[grouped];
    job->T = packed ? job->T : job->steps;
    job->B = !packed ? z->size[grouped + 1] : !slope ? other->size[grouped] : job->T ? job->sizes[0] : 0;
    job->H = z->size[z->dims - 1];
    return !packed || check_sizes(job);
}

int copy_sizes(Job *job, const void *from, long count)
{
    job->T = count;
    job->sizes = malloc(sizeof(int64_t) * (count + 1));
    if (!job->sizes)
        return RAISE(MemoryError, "batch_sizes");
    if (count)
        memcpy(job->sizes, from, sizeof(int64_t) * count);
    return 1;
}

int fit_scan(Job *job, const Tensor *z, const Tensor *other, const Tensor *w, const Tensor *y)
{
    const int slope = job->kind >= TANH_SLOPE, dims = job->packed ? 2 : 3, grouped = w->dims == 3;
    if (!measure(job, z, other, grouped))
        return 0;
    const long rows[] = {job->G, job->steps, job->packed ? job->H : job->B, job->H};
    const long start[] = {job->G, job->B, job->H}, square[] = {job->G, job->H, job->H};
    if (!fit(&job->z, z, grouped, dims, rows) || !fit(&job->w, w, grouped, 2, square)
        || !fit(slope ? &job->h : &job->h0, other, grouped, slope ? dims : 2, slope ? rows : start)
        || !fit(&job->y, y, grouped, dims, rows))
        return 0;
    job->w = slope ? job->w : transposed(job->w); /* elman multiplies by w^T */
    return 1;
}

int fit_layer(Job *job, const Tensor *x, const Tensor *u, const Tensor *biases)
{
    const int dims = job->packed ? 2 : 3;
    job->I = x->dims == dims ? x->size[dims - 1] : 0;
    if (job->I < 1)
        return RAISE(ValueError, "expected an input of at least one feature");
    const long rows[] = {1, job->steps, job->packed ? job->I : job->B, job->I};
    const long wide[] = {1, job->H, job->I}, column[] = {1, job->H};
    if (!fit(&job->x, x, 0, dims, rows) || !fit(&job->u, u, 0, 2, wide))
        return 0;
    job->u = transposed(job->u);
    return !biases
        || (fit(&job->bias[0], biases, 0, 1, column) && fit(&job->bias[1], biases + 1, 0, 1, column));
}

/* As torch sees it: nothing lies in any order. */
static int contiguous(const Tensor *x)
{
    long span = 1, fits = 1;
    for (long i = x->dims; i-- > 0; span *= x->size[i])
        fits &= x->size[i] == 1 || x->stride[i] == span;
    return fits || !span;
}

int fit_last(const Job *job, const Tensor *y, const Tensor *last)
{
    const long want[] = {1, job->B, job->H};
    View view;
    if (job->B && !job->T)
        return RAISE(ValueError, "expected at least one step");
    return fit(&view, last, 0, 2, want)
        && ((contiguous(y) && contiguous(last)) || RAISE(ValueError, "expected contiguous states"));
}

/* Rows from `first` of a step at row `step` of y. */
static void copy_rows(const Job *job, long step, long first, long rows, float *last)
{
    const float *y = (const float *)job->y.data;
    if (rows && job->H)
        memcpy(last + first * job->H, y + (step + first) * job->H, sizeof(float) * rows * job->H);
}

/* Where time runs backward, all sequences end at the first step. Else those of a packed batch end at the
 * step after which fewer rows live. */
void copy_last(const Job *job, float *last)
{
    if (job->reverse || !job->packed) {
        copy_rows(job, job->reverse || !job->T ? 0 : (job->T - 1) * job->B, 0, job->B, last);
        return;
    }
    for (long t = 0, step = 0; t < job->T; step += job->sizes[t++]) {
        const long on = t + 1 < job->T ? job->sizes[t + 1] : 0;
        copy_rows(job, step, on, job->sizes[t] - on, last);
    }
}
