/* What a block of dz gives: dx, and its part of the gradients of weights and biases.
 *
 * Two directions of a layer add up dx: the direction that comes to a block first writes its product there. The other
 * direction finishes its own product, rounds it as the first was rounded, and then adds it. So dx is the sum of two
 * finished numbers, which has the same bits in either order. A product of more than RUN terms is finished in the
 * block's memory, since `multiply` would add its first RUN terms to what is there.
 */
#include "layer.h"
#include <sched.h>
#include <string.h>

enum { FREE, TAKEN, DONE }; /* values of a flag in block_owner */

/* Whether the other direction came to these rows of dx first; then this one waits until they are written. */
static bool add_after_first(long *owner)
{
    long found = FREE;
    if (__atomic_compare_exchange_n(owner, &found, TAKEN, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return false;
    while (__atomic_load_n(owner, __ATOMIC_ACQUIRE) != DONE)
        sched_yield();
    return true;
}

void to_input(JobContext *run, const Block *block)
{
    const Job *job = run->job;
    const Plan *plan = run->plan;
    const TeamThread *member = run->member;
    const Share mine = my_share(run, block->rows);
    const long r0 = mine.from, r1 = mine.to;
    const long width = run->variant->width, vecs = quotient_up(job->I, run->variant->lanes);
    long *owner = job->block_owner ? job->block_owner + block->index * member->size + member->me : NULL;
    const bool add = owner && add_after_first(owner);
    const bool direct = is_dense(run, &job->dx) && (!add || job->H <= RUN);
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

/* The gradient of a weight: the product of dz and `factors`, which the weight multiplied. Its sum in float32, for half
 * precision, begins `place` numbers after bias_or_dw, and its rows are `ld` numbers apart; the rounding errors of the
 * sum lie in the same way after residues. */
typedef struct { const View *factors, *dw; long columns, place, ld; } WeightGradient;

static WeightGradient gradient_of(const JobContext *run, bool of_states)
{
    const Job *job = run->job;
    const Plan *plan = run->plan;
    if (of_states)
        return (WeightGradient){&job->h, &job->dw, job->H, plan->ld + job->H * plan->x_ld, plan->ld};
    return (WeightGradient){&job->x, &job->du, job->I, plan->ld, plan->x_ld};
}

/* Where the sum is: in the tensor itself or, for half precision, in the job's memory. */
static ProductOutput sum_of(const JobContext *run, const WeightGradient *of, bool first)
{
    const bool half = of->dw->type >= BFLOAT;
    char *at = half ? run->memory + run->plan->bias_or_dw + of->place * run->variant->width : of->dw->data;
    const long ld = half ? of->ld : of->dw->row / run->variant->width;
    return (ProductOutput){at, ld, first ? NULL : at, ld, of->columns};
}

/* A product over the rows of a block, added to the gradient of a weight. Over many rows that sum knows its rounding
 * errors, and is of products over so many rows, however many threads there are. */
static void add_product(const JobContext *run, const Matrix *m, const char *a, const WeightGradient *of, bool first)
{
    enum { PART = 8 * RUN };
    const Plan *plan = run->plan;
    const long width = run->variant->width, lanes = run->variant->lanes, vecs = quotient_up(m->columns, lanes);
    const ProductOutput to = sum_of(run, of, first);
    const Share mine = my_share(run, run->job->H);
    const long r0 = mine.from, r1 = mine.to;
    char *part = run->memory + plan->parts + (of->place - plan->ld + r0 * of->ld) * width;
    char *residue = run->memory + plan->residues + (of->place + r0 * of->ld) * width;
    if (plan->parts == plan->residues) {
        multiply(run, m, run->job->H, a, plan->dzt_ld, to);
        return;
    }
    if (first)
        for (long r = r0; r < r1; r++)
            memset(to.at + r * to.ld * width, 0, to.columns * width);
    const long K = run->variant->pairs ? (m->K + 1) / 2 : m->K;
    for (long k = 0; k < K; k += PART) {
        const ProductOutput product = {part, of->ld, NULL, 0, of->ld};
        run->variant->multiply_part(m, r1 - r0, a + r0 * plan->dzt_ld * width, plan->dzt_ld, 0, vecs, k,
                                    k + PART < K ? k + PART : K, product);
        run->variant->add_rows(r1 - r0, to.columns, part, residue, of->ld, to.at + r0 * to.ld * width, to.ld);
    }
}

/* A block's rows of dz, their distance, and where their sum and its rounding error are. */
typedef struct { const char *dz; long ld; char *sum, *residue; } BlockRows;

static void rows_to_weights(JobContext *run, const Block *block, BlockRows rows, bool first)
{
    const Plan *plan = run->plan;
    const long lanes = run->variant->lanes, width = run->variant->width;
    const WeightGradient both[] = {gradient_of(run, false), gradient_of(run, true)};
    const Share columns = my_share(run, plan->vecs);
    char *turned = run->memory + plan->dz_transposed, *panels = run->memory + plan->panels;
    char *panels_of[] = {panels, panels + quotient_up(run->job->I, lanes) * lanes * block->rows * width};
    run->variant->transpose_and_sum(block->rows, columns.from * lanes, columns.to * lanes, rows.dz, rows.ld, turned,
                                    plan->dzt_ld, rows.sum, rows.residue);
    for (int i = 0; i < 2; i++) {
        const WeightGradient *of = &both[i];
        const Share mine = my_share(run, quotient_up(of->columns, lanes));
        if (of->dw->data)
            run->variant->pack_block(run->job, of->factors, i, of->columns, block, mine.from, mine.to, panels_of[i]);
    }
    barrier_wait(&run->member->meeting);
    for (int i = 0; i < 2; i++) {
        const Matrix m = {{0}, block->rows, both[i].columns, PANELS, panels_of[i]};
        if (both[i].dw->data)
            add_product(run, &m, turned, &both[i], first);
    }
}

static View moved(View x, long bytes)
{
    x.data += x.data ? bytes : 0;
    return x;
}

/* The job of one sample: of its row of the batch, and of its gradients. */
static Job sample_of(const Job *job, long index)
{
    Job one = *job;
    one.B = 1, one.samples = 0;
    View *const rows[] = {&one.x, &one.h, &one.h0}, *const gradients[] = {&one.du, &one.dw, &one.db[0], &one.db[1]};
    for (int i = 0; i < 3; i++)
        *rows[i] = moved(*rows[i], index * rows[i]->row);
    for (int i = 0; i < 4; i++)
        *gradients[i] = moved(*gradients[i], index * gradients[i]->group);
    return one;
}

void to_weights(JobContext *run, const Block *block, bool first)
{
    const Job *job = run->job;
    const Plan *plan = run->plan;
    const long row = plan->ld * run->variant->width, steps = block->to - block->from;
    BlockRows rows = {run->memory + plan->z, larger(1, job->samples) * plan->ld, run->memory + plan->bias_or_dw,
                      run->memory + plan->residues};
    if (!job->samples)
        rows_to_weights(run, block, rows, first);
    for (long i = 0; i < job->samples; i++) {
        const Job one = sample_of(job, i);
        const Block own = {block->from, block->to, block->from, steps, block->index};
        run->job = &one;
        rows_to_weights(run, &own, rows, first);
        rows.dz += row, rows.sum += row, rows.residue += row;
    }
    run->job = job;
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

void store_gradients(const JobContext *run)
{
    const Job *job = run->job;
    for (int i = 0; i < 2; i++) {
        const WeightGradient of = gradient_of(run, i);
        for (long g = 0; g < larger(1, job->samples); g++) {
            const View db = moved(job->db[i], g * job->db[i].group);
            store_rows(run, &db, 1, job->H, g * run->plan->ld, run->plan->ld);
        }
        if (job->type >= BFLOAT)
            store_rows(run, of.dw, job->H, of.columns, of.place, of.ld);
    }
}
