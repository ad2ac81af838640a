/* A layer in one direction, block of time after block, each with the products around its recurrence:
 *
 *     forward     z = x W_ih^T + b_ih + b_hh                 then elman over the block
 *     backward    the linear recurrence gives dz             then, while dz is in the cache,
 *                 dx = dz W_ih    dW_ih += dz^T x    dW_hh += dz^T h_before    db += sum dz
 *
 * so that neither z nor dz is ever kept whole. Cost: forward 2 N H (H + I) flops, backward twice as much.
 *
 * The threads of a team meet between these parts. Two directions of a layer run side by side on half of the
 * threads each. layer_backward.c has what follows dz.
 */
#include "layer.h"
#include <string.h>
#include "half.h"
#include "plan.h"

enum { ROWS_TO_SHARE = 12 }; /* per thread; of fewer, columns are shared */

static Matrix matrix_of(const JobContext *run, const View *w, long K, long columns, char *packed)
{
    const bool direct = run->plan->unpacked_weights;
    const long form = !direct ? PANELS : w->row == run->variant->width ? COLUMN_DOTS : ROWS;
    return (Matrix){*w, K, columns, form, packed};
}

/* This thread's panels of both weights. */
static void pack(JobContext *run, long g)
{
    const Job *job = run->job;
    Matrix *both[] = {&run->work.w, &run->u};
    View w = job->w;
    w.data += w.data ? g * w.group : 0; /* none for a single step backward */
    run->work.w = matrix_of(run, &w, job->H, job->H, run->memory);
    run->u = matrix_of(run, &job->u, is_backward(job) ? job->H : job->I, is_backward(job) ? job->I : job->H,
                       run->memory + run->plan->inputs);
    const bool given[] = {w.data != NULL, job->u.data != NULL};
    for (int i = 0; i < 2; i++) {
        const Share vecs = my_share(run, quotient_up(both[i]->columns, run->variant->lanes));
        if (given[i])
            run->variant->pack(both[i], vecs.from, vecs.to);
    }
}

/* Whether all rows of a view are equally far from each other, as numbers to reckon with. */
bool is_dense(const JobContext *run, const View *x)
{
    const Job *job = run->job;
    const bool even = job->packed || job->B == 1 || job->T == 1 || x->step == job->B * x->row;
    return x->type <= DOUBLE && x->column == run->variant->width && even
        && x->row % run->variant->width == 0 && x->step % run->variant->width == 0;
}

long apart(const JobContext *run, const View *x)
{
    return (run->job->packed || run->job->B > 1 ? x->row : x->step) / run->variant->width;
}

char *first_row(const JobContext *run, const View *x, const Block *block)
{
    return at_step(x, 0, run->job->packed ? block->first : block->from, 0, 0);
}

/* rows times m, shared among the team: by rows, or by columns where there are few rows. */
void multiply(const JobContext *run, const Matrix *m, long rows, const char *a, long lda, ProductOutput to)
{
    const long size = run->member->size, vecs = quotient_up(m->columns, run->variant->lanes);
    const long width = run->variant->width;
    if (rows >= ROWS_TO_SHARE * size || size == 1) {
        const Share mine = my_share(run, rows);
        to.at += mine.from * to.ld * width, to.base += to.base ? mine.from * to.base_ld * width : 0;
        run->variant->multiply(m, mine.to - mine.from, a + mine.from * lda * width, lda, 0, vecs, to);
    } else {
        const Share mine = my_share(run, vecs);
        run->variant->multiply(m, rows, a, lda, mine.from, mine.to, to);
    }
}

/* z of a block, where the recurrence reads it. */
static void project(JobContext *run, const Block *block)
{
    const Job *job = run->job;
    const Plan *plan = run->plan;
    const bool dense = is_dense(run, &job->x);
    char *a = dense ? first_row(run, &job->x, block) : run->memory + plan->x_packed;
    if (!dense) {
        const Share mine = my_share(run, block->rows);
        run->variant->factors(job, &job->x, job->I, block, mine.from, mine.to, a, plan->x_ld);
        barrier_wait(&run->member->meeting);
    }
    const char *bias = job->bias[0].data ? run->memory + plan->bias_or_dw : NULL;
    const ProductOutput to = {run->memory + plan->z, plan->ld, bias, 0, plan->ld};
    multiply(run, &run->u, block->rows, a, dense ? apart(run, &job->x) : plan->x_ld, to);
    barrier_wait(&run->member->meeting);
}

/* The sum of both biases; of a backward job, zeros for their gradient to grow on. */
static void begin_sums(const JobContext *run)
{
    const Job *job = run->job, row = {.T = 1, .B = 1};
    const Block block = {0, 1, 0, 1, 0};
    char *sums = run->memory + run->plan->bias_or_dw;
    memset(sums, 0, larger(1, job->samples) * run->plan->ld * run->variant->width);
    if (is_backward(job))
        memset(run->memory + run->plan->residues, 0, run->plan->counters - run->plan->residues);
    for (int i = 0; i < 2; i++)
        if (job->bias[i].data && !is_backward(job))
            run->variant->gather(&row, &job->bias[i], job->H, &block, 0, 1, i, sums, run->plan->ld);
}

/* This thread's part of the recurrence: the slices of its group, and of their columns its own. */
static void recur(JobContext *run, const Block *block, Barrier *crews_meeting)
{
    const Plan *plan = run->plan;
    const TeamThread *member = run->member;
    const long sharing = plan->sharing < member->size ? plan->sharing : member->size;
    const long crews = member->size / sharing, crew = member->me / sharing, part = member->me % sharing;
    for (long i = crew; crew < crews && i < plan->slices; i += crews) {
        Slice slice = slice_of(run->job, plan, i);
        const Share mine = share_of(plan->vecs, part, sharing);
        slice.v0 = mine.from, slice.v1 = mine.to;
        run->variant->run(&run->work, slice, block, crews_meeting);
    }
}

/* A block's rows as the recurrence sees them; those of each step in one place, where nothing else reads them. */
static View block_view(const JobContext *run, const Block *block)
{
    const long row = run->plan->ld * run->variant->width;
    const long step = !keeps_rows(run->job) ? 0 : run->job->packed ? row : run->job->B * row;
    const long first = run->job->packed ? block->first : block->from;
    const long type = run->variant->width == sizeof(double) ? DOUBLE : FLOAT;
    return (View){run->memory + run->plan->z - first * step, type, 0, step, row, run->variant->width};
}

/* A second copy of a block of y. The rows of both are equally far apart. */
static void copy_states(const JobContext *run, const Block *block)
{
    const Job *job = run->job;
    const Share mine = my_share(run, block->rows);
    const long bytes = job->H * WIDTH[job->type], first = job->packed ? block->first : block->from * job->B;
    const long row = job->packed || job->B > 1 ? job->y.row : job->y.step;
    const long r0 = first + mine.from, r1 = first + mine.to;
    if (row == bytes)
        memcpy(job->copy.data + r0 * row, job->y.data + r0 * row, (r1 - r0) * bytes);
    else
        for (long r = r0; r < r1; r++)
            memcpy(job->copy.data + r * row, job->y.data + r * row, bytes);
}

/* The sum of two cotangents of a block's states, where dz will be written over it. */
static void add_cotangents(JobContext *run, const Block *block)
{
    const Job *job = run->job;
    const Share mine = my_share(run, block->rows);
    const View *both[] = {&job->z, &job->added};
    for (int i = 0; i < 2; i++)
        run->variant->gather(job, both[i], job->H, block, mine.from, mine.to, i, run->memory + run->plan->z,
                             run->plan->ld);
    barrier_wait(&run->member->meeting);
    run->work.z = block_view(run, block);
}

static void run_block(JobContext *run, const Block *block, bool first, Barrier *crew)
{
    const Job *job = run->job;
    const bool layer = job->I > 0, backward = is_backward(job);
    if (layer && !backward) {
        project(run, block);
        run->work.z = block_view(run, block);
    } else if (layer)
        run->work.y = block_view(run, block);
    if (job->added.data)
        add_cotangents(run, block);
    recur(run, block, crew);
    if (!layer)
        return;
    barrier_wait(&run->member->meeting); /* before the block's memory is written again */
    if (job->copy.data)
        copy_states(run, block);
    if (!backward)
        return;
    if (job->dx.data)
        to_input(run, block);
    if (wants_weights(job))
        to_weights(run, block, first);
    barrier_wait(&run->member->meeting);
}

/* What a member of a team does for a job; of many matrices only its own. */
void run_job(const Variant *variant, const Job *job, const Plan *plan, char *memory, TeamThread *member)
{
    const bool together = job->G < plan->threads || plan->threads == 1;
    TeamThread alone = {0, 1, {NULL, 1, 0}};
    JobContext run = {.variant = variant, .job = job, .plan = plan, .member = together ? member : &alone,
               .memory = together ? memory : memory + member->me * plan->bytes};
    const long sharing = plan->sharing < run.member->size ? plan->sharing : run.member->size;
    for (long g = together ? 0 : member->me; g < job->G; g += together ? 1 : member->size) {
        long *counters = (long *)(run.memory + plan->counters);
        Barrier crew = {counters + COUNTER_STRIDE * (run.member->me / sharing), sharing, 0};
        run.work = (ScanContext){.job = job, .plan = plan, .g = g, .z = job->z, .y = job->y,
                                 .carry = run.memory + plan->carries};
        pack(&run, g);
        if (run.member->me == 0) {
            memset(counters, 0, sizeof(long) * COUNTER_STRIDE * plan->threads);
            if (job->I)
                begin_sums(&run);
        }
        barrier_wait(&run.member->meeting);
        bool first = true;
        for (Block block = block_after(job, plan, (Block){.to = -1}); block.rows;
             block = block_after(job, plan, block), first = false)
            run_block(&run, &block, first, &crew);
        if (job->I && is_backward(job) && run.member->me == 0)
            store_gradients(&run);
        barrier_wait(&run.member->meeting);
    }
}
