/* What a block of dz gives: dx, and its part of the gradients of weights and biases.
 *
 * Two directions of a layer add up dx: the direction that comes to a block first writes its product there. The other
 * direction finishes its own product, rounds it as the first was rounded, and then adds it. So dx is the sum of two
 * finished numbers, which has the same bits in either order. A product of more than RUN terms is finished in the
 * block's memory, since `multiply` would add its first RUN terms to what is there.
 */
#include "job_context.h"
#include <sched.h>
#include <string.h>

enum { FREE, TAKEN, DONE }; /* values of a flag in block_owner */

/* Whether the other direction came to these rows of dx first; then this one waits until they are written. */
static int add_after_first(long *owner)
{
    long found = FREE;
    if (__atomic_compare_exchange_n(owner, &found, TAKEN, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return 0;
    while (__atomic_load_n(owner, __ATOMIC_ACQUIRE) != DONE)
        sched_yield();
    return 1;
}

/* This thread's rows of dx = dz W_ih. */
void to_input(JobContext *run, const Block *block)
{
    const Job *job = run->job;
    const Plan *plan = run->plan;
    const TeamThread *member = run->member;
    const long r0 = partition(block->rows, member->me, member->size);
    const long r1 = partition(block->rows, member->me + 1, member->size);
    const long width = run->variant->width, vecs = quotient_up(job->I, run->variant->lanes);
    long *owner = job->block_owner ? job->block_owner + block->index * member->size + member->me : NULL;
    const int add = owner && add_after_first(owner);
    const int direct = is_dense(run, &job->dx) && (!add || job->H <= RUN);
    const long ld = direct ? apart(run, &job->dx) : plan->x_ld;
    char *rows = direct ? first_row(run, &job->dx, block) : run->memory + plan->x_packed;
    const ProductOutput to = {rows + r0 * ld * width, ld, direct && add ? rows + r0 * ld * width : NULL, ld,
                       direct ? job->I : ld};
    const char *dz = run->memory + plan->z + (r0 * plan->ld + plan->bf16_offset) * width;
    run->variant->multiply(&run->u, r1 - r0, dz, plan->ld, 0, vecs, to);
    if (!direct)
        run->variant->scatter_rows(job, &job->dx, job->I, block, r0, r1, add, rows, plan->x_ld);
    if (owner)
        __atomic_store_n(owner, DONE, __ATOMIC_RELEASE);
}

/* Where the gradient of a weight is summed: in the tensor itself or, for half precision, in float32 at `place`. */
static ProductOutput sum_of(const JobContext *run, const View *dw, long columns, long place, long ld, int first)
{
    const int half = dw->type >= BFLOAT;
    char *at = half ? run->memory + run->plan->bias_or_dw + place * run->variant->width : dw->data;
    ld = half ? ld : dw->row / run->variant->width;
    return (ProductOutput){at, ld, first ? NULL : at, ld, columns};
}

/* A product over the rows of a block, added to the gradient of a weight. Over many rows that sum knows its rounding
 * errors, and is of products over so many rows, however many threads there are. */
static void add_product(const JobContext *run, const Matrix *m, const char *a, ProductOutput to, long place, long ld)
{
    enum { PART = 8 * RUN };
    const Plan *plan = run->plan;
    const TeamThread *member = run->member;
    const long width = run->variant->width, lanes = run->variant->lanes, vecs = quotient_up(m->columns, lanes);
    const long r0 = partition(run->job->H, member->me, member->size);
    const long r1 = partition(run->job->H, member->me + 1, member->size);
    char *part = run->memory + plan->parts + (place - plan->ld + r0 * ld) * width;
    char *residue = run->memory + plan->residues + (place + r0 * ld) * width;
    if (plan->parts == plan->residues) {
        multiply(run, m, run->job->H, a, plan->dzt_ld, to);
        return;
    }
    if (!to.base)
        for (long r = r0; r < r1; r++)
            memset(to.at + r * to.ld * width, 0, to.columns * width);
    const long K = run->variant->pairs ? (m->K + 1) / 2 : m->K;
    for (long k = 0; k < K; k += PART) {
        const ProductOutput product = {part, ld, NULL, 0, ld};
        run->variant->multiply_part(m, r1 - r0, a + r0 * plan->dzt_ld * width, plan->dzt_ld, 0, vecs, k,
                                    k + PART < K ? k + PART : K, product);
        run->variant->add_rows(r1 - r0, to.columns, part, residue, ld, to.at + r0 * to.ld * width, to.ld);
    }
}

/* A block's part of the gradients of both weights and of the biases. */
void to_weights(JobContext *run, const Block *block, int first)
{
    const Job *job = run->job;
    const Plan *plan = run->plan;
    const TeamThread *member = run->member;
    const long lanes = run->variant->lanes, width = run->variant->width;
    const long before = plan->ld + job->H * plan->x_ld; /* numbers before the sum of dW_hh */
    char *turned = run->memory + plan->dz_transposed, *panels = run->memory + plan->panels;
    const long inputs = quotient_up(job->I, lanes), states = plan->vecs;
    char *of_states = panels + inputs * lanes * block->rows * width;
    run->variant->transpose_and_sum(block->rows, partition(plan->vecs, member->me, member->size) * lanes,
                       partition(plan->vecs, member->me + 1, member->size) * lanes, run->memory + plan->z,
                       plan->ld, turned, plan->dzt_ld, run->memory + plan->bias_or_dw, run->memory + plan->residues);
    if (job->du.data)
        run->variant->pack_block(job, &job->x, 0, job->I, block, partition(inputs, member->me, member->size),
                            partition(inputs, member->me + 1, member->size), panels);
    if (job->dw.data)
        run->variant->pack_block(job, &job->h, 1, job->H, block, partition(states, member->me, member->size),
                            partition(states, member->me + 1, member->size), of_states);
    barrier_wait(&run->member->meeting);
    const Matrix x = {{0}, block->rows, job->I, PANELS, panels};
    const Matrix h = {{0}, block->rows, job->H, PANELS, of_states};
    if (job->du.data)
        add_product(run, &x, turned, sum_of(run, &job->du, job->I, plan->ld, plan->x_ld, first), plan->ld, plan->x_ld);
    if (job->dw.data)
        add_product(run, &h, turned, sum_of(run, &job->dw, job->H, before, plan->ld, first), before, plan->ld);
}

/* Rows of the buffer bias_or_dw, written to a tensor. */
static void store_rows(const JobContext *run, const View *to, long rows, long columns, long place, long ld)
{
    const Job all = {.T = 1, .B = rows};
    const Block block = {0, 1, 0, rows, 0};
    const char *from = run->memory + run->plan->bias_or_dw + place * run->variant->width;
    if (to->data)
        run->variant->scatter_rows(&all, to, columns, &block, 0, rows, 0, from, ld);
}

/* Writes the gradients that were summed in the buffer bias_or_dw to their tensors. */
void store_gradients(const JobContext *run)
{
    const Job *job = run->job;
    const Plan *plan = run->plan;
    for (int i = 0; i < 2; i++)
        store_rows(run, &job->db[i], 1, job->H, 0, plan->ld);
    if (job->type < BFLOAT)
        return;
    store_rows(run, &job->du, job->H, job->I, plan->ld, plan->x_ld);
    store_rows(run, &job->dw, job->H, job->H, plan->ld + job->H * plan->x_ld, plan->ld);
}
