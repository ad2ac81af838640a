/* The arithmetic for one instruction set and type. cpu_variants.c includes this file once for each, having defined
 *   NAME(f)  f with the set's suffix      TARGET  the compiler's attribute for the set
 *   SINGLE   whether the type is float    BYTES   of a vector
 *   SUMS     vector registers that may hold running sums
 *   SMALLER(a, b)                         the smaller of each pair, b where b is NaN
 *   LOAD_FIRST, STORE_FIRST               the first `count` numbers of a vector, zeros after them
 *   LOAD_HALF, STORE_HALF                 a vector of halves
 *   PAIRS                                 whether numbers are multiplied as bfloats, two at a time
 */
#if SINGLE
#define REAL float
#define INT int32_t
#define LANES (BYTES / 4)
#else
#define REAL double
#define INT int64_t
#define LANES (BYTES / 8)
#endif
#define TALLEST (SUMS / 2) /* rows in a tile at most */
#define OWN (SINGLE ? FLOAT : DOUBLE)
#define FACTOR (PAIRS ? 2 : (long)sizeof(REAL)) /* bytes of a number as it is multiplied */
#include "vector.inc.h"
#include "product.inc.h"

/* What a step does to the finished sum x, for each kind of Job. */
INLINE vec NAME(nonlinearity)(int kind, vec x, vec h)
{
    const vec zero = {0}, one = zero + (REAL)1;
    switch (kind) {
    case RELU: return NAME(choose)(x <= (REAL)0, zero, x);
    case SLOPE + RELU: return NAME(choose)(h <= (REAL)0, zero, x);
    case TANH: return NAME(tanh)(x);
    case SLOPE + TANH: return ((REAL)1 - h * h) * x;
    case SIGMOID: return NAME(sigmoid)(x);
    case SLOPE + SIGMOID: return h * ((REAL)1 - h) * x;
    case SOFTPLUS: return NAME(softplus)(x);
    case SLOPE + SOFTPLUS: return NAME(softplus_slope)(h) * x;
    case HARDTANH: return NAME(choose)(x < (REAL)-1, -one, NAME(choose)(x > (REAL)1, one, x));
    case SLOPE + HARDTANH: return NAME(choose)((h <= (REAL)-1) | (h >= (REAL)1), zero, x);
    case LEAKY_RELU: return NAME(choose)(x > (REAL)0, x, x * (REAL)0.01);
    case SLOPE + LEAKY_RELU: return NAME(choose)(h > (REAL)0, x, x * (REAL)0.01);
    default: return x; /* IDENTITY and its slope */
    }
}

/* Closes the products of a tile, where they lie in `next` and in y, and asks for what the next step will
 * touch. `own`: the type of all numbers, or -1 where they differ. With a leak, `last` is the state before the step or,
 * backward, the gradient g of the state after it, which is replaced:
 *
 *     forward     r = phi(x + z)                           y = (1 - alpha) last + alpha r
 *     backward    g = x + z + (1 - alpha) last             y = phi'(r) alpha g */
INLINE void NAME(epilogue_as)(int kind, int own, int leak, const ScanContext *work, Tile tile, REAL *last, REAL *next)
{
    const int slope = kind >= SLOPE, kept = slope && work->job->I, saved = leak && !slope && work->job->rates.data;
    const View *z = &work->z, *h = leak ? &work->job->rates : &work->job->h, *y = &work->y, *alpha = &work->job->alpha;
    const int z_type = own < 0 ? z->type : own, h_type = own < 0 ? h->type : own, y_type = own < 0 ? y->type : own;
    const long z_ahead = tile.ahead * z->step, h_ahead = tile.ahead * h->step, y_ahead = tile.ahead * y->step;
    const long z_column = z->column, h_column = h->column, y_column = y->column;
    const long g = work->g, first = tile.v0 * LANES;
    const vec zero = {0}, one = zero + (REAL)1;
    for (int r = 0; r < tile.rows; r++) {
        const long row = tile.row + r * tile.apart;
        const char *z_j = at_step(z, g, tile.step, row, first), *alpha_j = leak ? at(alpha, g, 0, first) : NULL;
        char *h_j = slope || saved ? at_step(h, g, tile.step, row, first) : NULL;
        char *y_j = at_step(y, g, tile.step, row, first);
        REAL *x = next + r * work->plan->ld + first, *last_j = leak ? last + r * work->plan->ld + first : NULL;
        long behind = work->plan->bf16_offset * sizeof(REAL) - first * FACTOR;
        for (long vecs = tile.v1 - tile.v0, count = work->job->H - first; vecs > 0; vecs--, count -= LANES) {
            const vec old = slope ? NAME(load)(h_type, h_j, h_column, count) : zero;
            const vec given = NAME(load)(z_type, z_j, z_column, count);
            vec sum = *(vec *)x + given;
            if (leak && slope) {
                const vec a = NAME(load)(own < 0 ? alpha->type : own, alpha_j, alpha->column, count);
                sum += (one - a) * *(vec *)last_j;
                *(vec *)last_j = sum;
                sum *= a;
            }
            vec new = NAME(nonlinearity)(kind, sum, old);
            if (leak && !slope) {
                const vec a = NAME(load)(own < 0 ? alpha->type : own, alpha_j, alpha->column, count);
                if (saved)
                    NAME(store)(h_type, new, h_j, h_column, count);
                new = (one - a) * *(vec *)last_j + a * new;
            }
            new = NAME(rounded)(y_type, new);
            *(vec *)x = new;
            NAME(store)(y_type, new, y_j, y_column, count);
            if (PAIRS)
                NAME(store_factors)(new, (char *)x + behind);
            if (PAIRS && kept)
                NAME(store_factors)(new, y_j + behind);
            behind -= LANES * FACTOR;
            __builtin_prefetch(z_j + z_ahead);
            __builtin_prefetch(y_j + y_ahead, 1);
            if (slope || saved)
                __builtin_prefetch(h_j + h_ahead);
            x += LANES, z_j += LANES * z_column, h_j += LANES * h_column, y_j += LANES * y_column;
            if (leak)
                last_j += LANES, alpha_j += LANES * alpha->column;
        }
    }
}

static TARGET void NAME(epilogue)(const ScanContext *work, Tile tile, REAL *last, REAL *next)
{
    const int own = work->z.type == OWN && work->y.type == OWN && work->job->type == OWN ? OWN : -1;
    const int leak = work->job->alpha.data != NULL;
#define AS_CASE(kind, name, number) \
    case 4 * kind: NAME(epilogue_as)(kind, OWN, 0, work, tile, last, next); break; \
    case 4 * kind + 1: NAME(epilogue_as)(kind, OWN, 1, work, tile, last, next); break; \
    case 4 * (SLOPE + kind): NAME(epilogue_as)(SLOPE + kind, OWN, 0, work, tile, last, next); break; \
    case 4 * (SLOPE + kind) + 1: NAME(epilogue_as)(SLOPE + kind, OWN, 1, work, tile, last, next); break;
    switch (4 * work->job->kind + 2 * (own < 0) + leak) {
    NONLINEARITIES(AS_CASE)
    default:
        if (leak)
            NAME(epilogue_as)(work->job->kind, -1, 1, work, tile, last, next);
        else
            NAME(epilogue_as)(work->job->kind, -1, 0, work, tile, last, next);
    }
}

/* What rows `from` to `to` begin with, h_0 or the gradient of the last state, into their carry; zeros where
 * nothing was given. */
static TARGET void NAME(start)(const ScanContext *work, Slice slice, long from, long to, REAL *carry)
{
    const View *start = &work->job->start;
    const vec zero = {0};
    for (long r = from; r < to; r++)
        for (long v = slice.v0; v < slice.v1; v++) {
            const long row = slice.row + r * slice.apart, column = v * LANES;
            const vec x = start->data ? NAME(load)(start->type, at(start, work->g, row, column), start->column,
                                                   work->job->H - column)
                                      : zero;
            *(vec *)(carry + r * work->plan->ld + column) = x;
            const long copy = r * work->plan->ld + work->plan->bf16_offset;
            if (PAIRS)
                NAME(store_factors)(x, (char *)(carry + copy) + column * FACTOR);
        }
}

/* A slice's gradients g with a leak, behind the carries of all slices. */
INLINE REAL *NAME(leaked)(const ScanContext *work, Slice slice)
{
    return (REAL *)work->carry + (2 * work->job->B + slice.place) * work->plan->ld;
}

/* This thread's columns of g, for rows that no step has had yet. */
static TARGET void NAME(clear)(const ScanContext *work, Slice slice, long from, long to)
{
    REAL *g = NAME(leaked)(work, slice) + slice.v0 * LANES;
    for (long r = from; r < to; r++)
        memset(g + r * work->plan->ld, 0, (slice.v1 - slice.v0) * LANES * sizeof(REAL));
}

/* What rows `from` to `to` end with: their last state or, backward, the gradient of their first: one product
 * more, which `spare` takes, and with a leak (1 - alpha) g. */
static TARGET void NAME(end)(const ScanContext *work, Slice slice, long from, long to, const REAL *carry, REAL *spare)
{
    const int leak = work->job->kind >= SLOPE && work->job->alpha.data;
    const View *alpha = &work->job->alpha;
    const vec zero = {0}, one = zero + (REAL)1;
    const View *end = &work->job->end;
    const long ld = work->plan->ld, factors = from * ld + work->plan->bf16_offset;
    if (from >= to)
        return;
    if (work->job->kind >= SLOPE) {
        const ProductOutput product = {(char *)(spare + from * ld), ld, NULL, 0, ld};
        NAME(multiply)(&work->w, to - from, (const char *)(carry + factors), ld, slice.v0, slice.v1, product);
        carry = spare;
    }
    for (long r = from; r < to; r++)
        for (long v = slice.v0; v < slice.v1; v++) {
            const long column = v * LANES;
            vec sum = *(vec *)(carry + r * ld + column);
            if (leak)
                sum += (one - NAME(load)(alpha->type, at(alpha, 0, 0, column), alpha->column, work->job->H - column))
                    * *(vec *)(NAME(leaked)(work, slice) + r * ld + column);
            NAME(store)(end->type, sum, at(end, work->g, slice.row + r * slice.apart, column), end->column,
                        work->job->H - column);
        }
}

/* One step of the first `live` rows of a slice, from `prev` to `next`. Only the first `known` rows have a
 * carry to multiply; backward others begin with what was given, for 0 times an infinity in W would be NaN. */
static TARGET void NAME(advance)(const ScanContext *work, Slice slice, long step, long ahead, long known, long live,
                                 REAL *prev, REAL *next)
{
    const int slope = work->job->kind >= SLOPE;
    REAL *last = slope ? NAME(leaked)(work, slice) : prev;
    const long ld = work->plan->ld;
    if (known < live)
        NAME(start)(work, slice, known, live, next);
    if (known < live && work->job->alpha.data)
        NAME(clear)(work, slice, known, live);
    for (long v = slice.v0, end; v < slice.v1; v = end) {
        end = smaller(v + BLOCK, slice.v1);
        const ProductOutput to = {(char *)next, ld, NULL, 0, ld};
        if (known)
            NAME(multiply)(&work->w, known, (const char *)(prev + work->plan->bf16_offset), ld, v, end, to);
        const Tile tile = {step, ahead, slice.row, slice.apart, live, v, end};
        NAME(epilogue)(work, tile, last, next);
    }
}

/* The steps of a block for one slice: its rows, and vectors v0 to v1 of their columns. Threads that share
 * rows meet at each step; those that begin at this step must be there too. */
static TARGET void NAME(run)(const ScanContext *work, Slice slice, const Block *block, Barrier *meeting)
{
    const Job *job = work->job;
    const int slope = job->kind >= SLOPE; /* starts from nothing */
    const long on = job->reverse ? -1 : 1;
    REAL *carries[2] = {(REAL *)work->carry + 2 * slice.place * work->plan->ld};
    carries[1] = carries[0] + slice.rows * work->plan->ld;
    long step = !job->packed ? (job->reverse ? block->to : block->from)
                             : block->first + (job->reverse ? block->rows : 0);
    for (long i = 0; i < block->to - block->from; i++) {
        const long t = job->reverse ? block->to - 1 - i : block->from + i, size = size_at(job, t);
        const long moved = job->packed ? size : 1, live = live_rows(slice, size);
        const long before = live_rows(slice, size_at(job, t - on)), after = live_rows(slice, size_at(job, t + on));
        const long known = slope && before < live ? before : live;
        REAL *prev = carries[t & 1], *next = carries[!(t & 1)];
        step -= job->reverse ? moved : 0;
        if (!slope)
            NAME(start)(work, slice, before, live, prev);
        if (live > before)
            barrier_wait(meeting);
        NAME(advance)(work, slice, step, on * moved, known, live, prev, next);
        barrier_wait(meeting);
        if (job->end.data)
            NAME(end)(work, slice, after, live, next, prev);
        step += job->reverse ? 0 : moved;
    }
}

#include "block.inc.h"
