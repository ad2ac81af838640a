/* The arithmetic for one instruction set. scan.c includes this file once per set, having defined
 *   NAME(f)  f with the set's suffix      TARGET  the compiler's attribute for the set
 *   LANES    floats in a vector           SUMS    vector registers that may hold running sums
 *   SMALLER(a, b)                         the smaller of each pair, b where b is NaN
 *   TALLEST                               rows in a tile at most
 *   LOAD_FIRST, STORE_FIRST               the first `count` floats of a vector, zeros after them
 */
#include "vector.h"
#include "product.h"

/* What a step does to the finished products x, for each kind of Job. */
INLINE vec NAME(close)(int kind, vec x, vec z, vec h)
{
    const vec zero = {0};
    switch (kind) {
    case TANH: return NAME(tanh)(x + z);
    case RELU: return NAME(choose)(x + z <= 0.0f, zero, x + z);
    case TANH_SLOPE: return (1.0f - h * h) * (x + z);
    default: return NAME(choose)(h <= 0.0f, zero, x + z);
    }
}

/* Closes the products of a tile, where they lie in `next` and in y, and asks for what the next step will
 * touch. */
INLINE void NAME(finish_as)(int kind, const Work *work, Tile tile, float *next)
{
    const int slope = kind == TANH_SLOPE || kind == RELU_SLOPE;
    const View *z = &work->job->z, *h = &work->job->h, *y = &work->job->y;
    const long z_ahead = tile.ahead * z->step, h_ahead = tile.ahead * h->step, y_ahead = tile.ahead * y->step;
    const long z_column = z->column, h_column = h->column, y_column = y->column;
    const long g = work->g, first = tile.v0 * LANES;
    const vec zero = {0};
    for (int r = 0; r < tile.rows; r++) {
        const long row = tile.row + r * tile.apart;
        const float *z_j = at_step(z, g, tile.step, row, first), *h_j = at_step(h, g, tile.step, row, first);
        float *y_j = (float *)at_step(y, g, tile.step, row, first), *x = next + r * work->plan->ld + first;
        for (long vecs = tile.v1 - tile.v0, count = work->job->H - first; vecs > 0; vecs--, count -= LANES) {
            const vec old = slope ? NAME(load)(h_j, h_column, count) : zero;
            const vec new = NAME(close)(kind, *(vec *)x, NAME(load)(z_j, z_column, count), old);
            *(vec *)x = new;
            NAME(store)(new, y_j, y_column, count);
            __builtin_prefetch(z_j + z_ahead);
            __builtin_prefetch(y_j + y_ahead, 1);
            if (slope)
                __builtin_prefetch(h_j + h_ahead);
            x += LANES, z_j += LANES * z_column, h_j += LANES * h_column, y_j += LANES * y_column;
        }
    }
}

static TARGET void NAME(finish)(const Work *work, Tile tile, float *next)
{
    switch (work->job->kind) {
    case TANH: NAME(finish_as)(TANH, work, tile, next); break;
    case RELU: NAME(finish_as)(RELU, work, tile, next); break;
    case TANH_SLOPE: NAME(finish_as)(TANH_SLOPE, work, tile, next); break;
    default: NAME(finish_as)(RELU_SLOPE, work, tile, next);
    }
}

/* h_0 as the carry of rows `from` to `to` before their first step. */
static TARGET void NAME(start)(const Work *work, Slice slice, long from, long to, float *prev)
{
    const View *h0 = &work->job->h0;
    for (long r = from; r < to; r++)
        for (long v = slice.v0; v < slice.v1; v++) {
            const long row = slice.row + r * slice.apart, column = v * LANES;
            *(vec *)(prev + r * work->plan->ld + column)
                = NAME(load)(at(h0, work->g, row, column), h0->column, work->job->H - column);
        }
}

/* Zeros in place of products. */
static TARGET void NAME(clear)(long rows, long vecs, long ld, float *next)
{
    const vec zero = {0};
    for (long r = 0; r < rows; r++)
        for (long v = 0; v < vecs; v++)
            *(vec *)(next + r * ld + v * LANES) = zero;
}

/* The input of a step, for the first `live` rows of a slice, beside their carry. */
static TARGET void NAME(take)(const Work *work, Slice slice, long step, long live, float *prev)
{
    const View *x = &work->job->x;
    const long I = work->job->I;
    for (long r = 0; r < live; r++)
        for (long i = 0; i < I; i += LANES)
            *(vec *)(prev + r * work->plan->ld + work->plan->beside + i) = NAME(load)(
                at_step(x, work->g, step, slice.row + r * slice.apart, i), x->column, I - i);
}

/* One step of the first `live` rows of a slice, from `prev` to `next`: a block of W for tile after tile of
 * rows of about the same height, then the next block. Only the first `known` rows have a carry. For others
 * the product is left out, since 0 times an infinity in W would be NaN. */
static TARGET void NAME(advance)(const Work *work, Slice slice, long step, long ahead, long known, long live,
                                 const float *prev, float *next)
{
    const long ld = work->plan->ld, block = work->plan->block;
    for (long v = slice.v0; v < slice.v1; v += block)
        for (long r = 0, rows; r < live; r += rows) {
            const long end = r < known ? known : live, tiles = (end - r + TALLEST - 1) / TALLEST;
            const long vecs = v + block < slice.v1 ? block : slice.v1 - v;
            const vec *w = (const vec *)work->packed + v * work->plan->depth;
            float *to = next + r * ld + v * LANES;
            rows = (end - r + tiles - 1) / tiles;
            const Tile tile = {step, ahead, slice.row + r * slice.apart, slice.apart, rows, v, v + vecs};
            if (r < known)
                NAME(products)(rows, vecs, work, prev + r * ld, w, to);
            else
                NAME(clear)(rows, vecs, ld, to);
            NAME(finish)(work, tile, next + r * ld);
        }
}

/* All steps of one slice: its rows, and vectors v0 to v1 of their columns. Threads that share rows meet at
 * each step; those that begin at this step must be there too. `step` is T's index or, if packed, that of
 * the step's first row. */
static TARGET void NAME(run)(const Work *work, float *carry, Slice slice, Meeting *meeting)
{
    const Job *job = work->job;
    const int slope = job->kind >= TANH_SLOPE; /* starts from nothing */
    float *prev = carry, *next = carry + slice.rows * work->plan->ld;
    long live = 0, step = job->reverse ? job->steps : 0;
    for (long i = 0; i < job->T; i++) {
        const long size = job->packed ? job->sizes[job->reverse ? job->T - 1 - i : i] : job->B;
        const long before = live, moved = job->packed ? size : 1;
        live = alive(slice, size);
        const long known = slope && before < live ? before : live;
        step -= job->reverse ? moved : 0;
        if (!slope)
            NAME(start)(work, slice, before, live, prev);
        NAME(take)(work, slice, step, live, prev);
        if (live > before)
            meet(meeting);
        NAME(advance)(work, slice, step, job->reverse ? -moved : moved, known, live, prev, next);
        step += job->reverse ? 0 : moved;
        float *swap = prev;
        prev = next, next = swap;
        meet(meeting);
    }
}
#undef INLINE
#undef vec
#undef loose
#undef bits
#undef NAME
#undef TARGET
#undef LANES
#undef SUMS
#undef TALLEST
#undef SMALLER
#undef LOAD_FIRST
#undef STORE_FIRST
