#include "job.h"
#include "schedule.h"
#include <stdlib.h>
#include <string.h>

int check_address(const void *data, const char *name, int width, int empty)
{
    if ((uintptr_t)data % width)
        return RAISE(ValueError, "expected %s aligned to %d bytes", name, width);
    return data || empty || RAISE(ValueError, "%s has no memory", name);
}

/* Whether sum_i (size_i - 1) stride_i <= MAX_EXTENT. */
int spans(Tensor *x)
{
    long span = 0;
    for (long i = 0; i < x->dims; i++) {
        if (x->size[i] == 1)
            x->stride[i] = 1;
        else if (x->stride[i] > (MAX_EXTENT - span) / (x->size[i] - 1))
            return 0;
        span += (x->size[i] - 1) * x->stride[i];
    }
    return 1;
}

int check_memory(Tensor *x)
{
    int empty = 0;
    for (long i = 0; i < x->dims; i++)
        empty |= x->size[i] == 0;
    return check_address(x->data, x->name, WIDTH[x->type], empty)
        && (empty || spans(x) || RAISE(ValueError, "%s spans more memory than there can be", x->name));
}

static int refuse_shape(const Tensor *x)
{
    char shape[24 * DIMS] = "";
    for (long i = 0, end = 0; i < x->dims; i++)
        end += sprintf(shape + end, i ? ", %ld" : "%ld", x->size[i]);
    return RAISE(ValueError, "%s has shape (%s), which does not fit the other tensors", x->name, shape);
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

/* Checks a tensor's shape, which must be `want`: `dims` sizes, and G before them if the tensors are
 * grouped. Where rows are all there is, as in a packed batch, they are steps too. */
static int fit(View *view, const Job *job, const Tensor *x, int grouped, int dims, const long *want)
{
    const int last = x->dims - 1;
    int fits = x->dims == grouped + dims;
    for (long i = 0; fits && i < x->dims; i++)
        fits = x->size[i] == want[grouped ? i : i + 1];
    if (!fits)
        return refuse_shape(x);
    if (x->type != job->type)
        return RAISE(TypeError, "expected %s of the other tensors' type", x->name);
    *view = view_of(x, grouped ? 0 : -1, dims == 3 ? grouped : last - 1, last - 1, last);
    return 1;
}

/* B = size_0 >= size_1 >= ... >= 0, and their sum is N. Stops where the sum passes N, and so never
 * overflows. */
int sizes_fit(const Job *job)
{
    long sum = 0, last = job->B;
    for (long t = 0; t < job->T && sum <= job->steps; last = job->sizes[t++], sum += last)
        if (job->sizes[t] > last || job->sizes[t] < 0 || (t == 0 && job->sizes[t] != job->B))
            return 0;
    return sum == job->steps;
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
    return !packed || sizes_fit(job)
        || RAISE(ValueError, "expected batch_sizes that begin with the batch, never grow, are never negative "
                             "and add up to the input's rows");
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
    job->type = z->type;
    if (!measure(job, z, other, grouped))
        return 0;
    const long rows[] = {job->G, job->steps, job->packed ? job->H : job->B, job->H};
    const long start[] = {job->G, job->B, job->H}, square[] = {job->G, job->H, job->H};
    if (!fit(&job->z, job, z, grouped, dims, rows) || !fit(&job->w, job, w, grouped, 2, square)
        || !fit(slope ? &job->h : &job->start, job, other, grouped, slope ? dims : 2, slope ? rows : start)
        || !fit(&job->y, job, y, grouped, dims, rows))
        return 0;
    job->w = slope ? job->w : transposed(job->w); /* elman multiplies by w^T */
    return 1;
}

int run_without_python(int variant, Job *jobs, long stages, long width, long most)
{
    long missing;
    Py_BEGIN_ALLOW_THREADS
    missing = run_jobs(variant, jobs, stages, width, most);
    Py_END_ALLOW_THREADS
    return !missing || RAISE(MemoryError, "%ld bytes", missing);
}
