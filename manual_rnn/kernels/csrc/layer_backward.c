/* What a block of dz gives: dx, and its part of the gradients of weights and biases.
 *
 * Two directions of a layer add up dx: the direction that comes to a block first writes its product there. The other
 * direction finishes its own product, rounds it as the first was rounded, and then adds it. So dx is the sum of two
 * finished numbers, which has the same bits in either order. A product of more than RUN terms is finished in the
 * block's memory, since `multiply` would add its first RUN terms to what is there.
 */
#include "job_context.h"
#include <sched.h>

enum { FREE, TAKEN, DONE }; /* a claim */

/* Of two directions whoever comes first to these rows of dx writes them, and the other waits until that's
 * done. */
static int comes_second(long *claim)
{
    long found = FREE;
    if (__atomic_compare_exchange_n(claim, &found, TAKEN, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return 0;
    while (__atomic_load_n(claim, __ATOMIC_ACQUIRE) != DONE)
        sched_yield();
    return 1;
}

/* Its share of the rows of dx = dz W_ih. */
void to_input(Run *run, const Block *block)
{
    const Job *job = run->job;
    const Plan *plan = run->plan;
    const Member *member = run->member;
    const long r0 = share(block->rows, member->me, member->size);
    const long r1 = share(block->rows, member->me + 1, member->size);
    const long width = run->variant->width, vecs = quotient_up(job->I, run->variant->lanes);
    long *claim = job->claims ? job->claims + block->index * member->size + member->me : NULL;
    const int add = claim && comes_second(claim);
    const int direct = is_dense(run, &job->dx) && (!add || job->H <= RUN);
    const long ld = direct ? apart(run, &job->dx) : plan->wide;
    char *rows = direct ? first_row(run, &job->dx, block) : run->memory + plan->dense;
    const Target to = {rows + r0 * ld * width, ld, direct && add ? rows + r0 * ld * width : NULL, ld,
                       direct ? job->I : ld};
    run->variant->multiply(&run->u, r1 - r0, run->memory + plan->zs + (r0 * plan->ld + plan->pairs) * width, plan->ld, 0, vecs, to);
    if (!direct)
        run->variant->spread(job, &job->dx, job->I, block, r0, r1, add, rows, plan->wide);
    if (claim)
        __atomic_store_n(claim, DONE, __ATOMIC_RELEASE);
}

/* Where the gradient of a weight grows: in its own memory or, of halves, as floats at `place`. */
static Target sum_of(const Run *run, const View *dw, long columns, long place, long ld, int first)
{
    const int half = dw->type >= BFLOAT;
    char *at = half ? run->memory + run->plan->sums + place * run->variant->width : dw->data;
    ld = half ? ld : dw->row / run->variant->width;
    return (Target){at, ld, first ? NULL : at, ld, columns};
}

/* A block's part of the gradients of both weights and of the biases. */
void to_weights(Run *run, const Block *block, int first)
{
    const Job *job = run->job;
    const Plan *plan = run->plan;
    const Member *member = run->member;
    const long lanes = run->variant->lanes, width = run->variant->width;
    const long before = plan->ld + job->H * plan->wide; /* numbers before the sum of dW_hh */
    char *turned = run->memory + plan->turned, *panels = run->memory + plan->panels;
    const long inputs = quotient_up(job->I, lanes), states = plan->vecs;
    char *of_states = panels + inputs * lanes * block->rows * width;
    run->variant->turn(block->rows, share(plan->vecs, member->me, member->size) * lanes,
                       share(plan->vecs, member->me + 1, member->size) * lanes, run->memory + plan->zs,
                       plan->ld, turned, plan->tall, run->memory + plan->sums);
    if (job->du.data)
        run->variant->panel(job, &job->x, 0, job->I, block, share(inputs, member->me, member->size),
                            share(inputs, member->me + 1, member->size), panels);
    if (job->dw.data)
        run->variant->panel(job, &job->h, 1, job->H, block, share(states, member->me, member->size),
                            share(states, member->me + 1, member->size), of_states);
    meet(&run->member->meeting);
    const Matrix x = {{0}, block->rows, job->I, PACKED, panels};
    const Matrix h = {{0}, block->rows, job->H, PACKED, of_states};
    if (job->du.data)
        multiply(run, &x, job->H, turned, plan->tall, sum_of(run, &job->du, job->I, plan->ld, plan->wide, first));
    if (job->dw.data)
        multiply(run, &h, job->H, turned, plan->tall, sum_of(run, &job->dw, job->H, before, plan->ld, first));
}

/* Numbers to reckon with, as rows of a view. */
static void put(const Run *run, const View *to, long rows, long columns, long place, long ld)
{
    const Job all = {.T = 1, .B = rows};
    const Block block = {0, 1, 0, rows, 0};
    const char *from = run->memory + run->plan->sums + place * run->variant->width;
    if (to->data)
        run->variant->spread(&all, to, columns, &block, 0, rows, 0, from, ld);
}

/* What has grown as floats, where it's wanted. */
void put_gradients(const Run *run)
{
    const Job *job = run->job;
    const Plan *plan = run->plan;
    for (int i = 0; i < 2; i++)
        put(run, &job->db[i], 1, job->H, 0, plan->ld);
    if (job->type < BFLOAT)
        return;
    put(run, &job->du, job->H, job->I, plan->ld, plan->wide);
    put(run, &job->dw, job->H, job->H, plan->ld + job->H * plan->wide, plan->ld);
}
