#include "recurrence.h"
#include <stddef.h>
#include "network.h"
#include "schedule.h"

static bool is_slope(const Recurrence *all) { return all->kind >= SLOPE; }

static long batch_of(const Recurrence *all)
{
    const long g = all->w.dims == 3;
    if (!all->sizes)
        return all->z.size[g + 1];
    return !is_slope(all) ? all->other.size[g] : all->T ? all->sizes[0] : 0;
}

static bool check_alike(const Recurrence *all, const Tensor *x)
{
    return x->type == all->z.type || fail("expected %s of the other tensors' dtype", x->name);
}

/* With the axis of G in front where the weights have one. */
static Shape of_matrices(const Recurrence *all, Shape shape)
{
    return all->w.dims == 3 ? prepended(all->z.size[0], shape) : shape;
}

bool check_recurrence(const Recurrence *all)
{
    const Tensor *z = &all->z;
    const long g = all->w.dims == 3, rows = all->sizes ? 2 : 3, H = z->dims ? z->size[z->dims - 1] : 0;
    if ((all->w.dims != 2 && !g) || z->dims != g + rows || all->other.dims != g + (is_slope(all) ? rows : 2))
        return fail("expected an input of (T, B, H), or (N, H) if packed, with a leading G if the weights have one");
    const Shape square = of_matrices(all, (Shape){2, {H, H}});
    const Shape start = of_matrices(all, (Shape){2, {batch_of(all), H}});
    if (!check_shape(&all->w, square) || !check_alike(all, &all->w) || !check_alike(all, &all->other)
        || !check_shape(&all->other, is_slope(all) ? shape_of(z) : start))
        return false;
    return !all->sizes || sizes_fit(all->sizes, all->T, batch_of(all), z->size[g])
        || fail("expected batch_sizes that begin with the batch, never grow, are never negative and add up to the "
                "input's rows");
}

/* Where rows are all there is, as in a packed batch, they are steps too. */
static View rows_of_tensor(const Recurrence *all, const Tensor *x)
{
    const int g = all->w.dims == 3, last = (int)x->dims - 1;
    return view_of(x, g ? 0 : -1, all->sizes ? last - 1 : g, last - 1, last);
}

bool run_recurrence(const Recurrence *all)
{
    const int g = all->w.dims == 3;
    const long H = all->z.size[all->z.dims - 1];
    Job job = {.kind = all->kind, .reverse = all->reverse, .packed = all->sizes != NULL, .type = all->z.type,
               .threads = all->threads, .G = g ? all->w.size[0] : 1, .T = all->sizes ? all->T : all->z.size[g],
               .B = batch_of(all), .H = H, .steps = all->z.size[g], .sizes = all->sizes};
    if (!job.G || !job.T || !job.B || !job.H || !job.steps)
        return true;
    job.z = rows_of_tensor(all, &all->z), job.y = rows_of_tensor(all, &all->y);
    job.w = view_of(&all->w, g ? 0 : -1, -1, g, g + 1);
    if (is_slope(all))
        job.h = rows_of_tensor(all, &all->other);
    else {
        job.w = transposed(job.w); /* elman multiplies by w^T */
        job.start = view_of(&all->other, g ? 0 : -1, -1, g, g + 1);
    }
    const long missing = run_jobs(all->variant, &job, 1, 1, all->most);
    return !missing || fail("no memory, %ld bytes", missing);
}
