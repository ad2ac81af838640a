/* Threads, slices, blocks and memory.
 *
 * The batch is cut into slices of rows; a thread runs all steps of a slice, so that no step waits for another
 * thread. Where there are too few rows to pay for reading a wide W, threads share a slice, each with some
 * columns of W, and meet at each step. With at least as many matrices as threads, each thread has matrices of
 * its own.
 *
 * Time is cut into blocks where products stand before or after the recurrence: forward z = x W_ih^T, backward
 * all gradients. A block's rows stay in the cache from the one to the other.
 */
#include "plan.h"

enum {
    LIMIT = 128,      /* rows in a slice at most: their carry, kept twice, is 1 MiB of cache at H = 1024 */
    ALONE = 500000,   /* multiply-adds below which a second thread doesn't pay (measured) */
    PACKING = 4,      /* rows whose products cost as much as packing W (measured) */
    NARROW = 256,     /* columns below which meeting at each step costs more than sharing saves (measured) */
    MIDDLING = 384,   /* columns from which it takes MIDDLING_ROWS to pay for reading W once more, and */
    WIDE = 640,       /* columns from which it takes WIDE_ROWS (measured) */
    MIDDLING_ROWS = 3,
    WIDE_ROWS = 12,
    FEW = 4,             /* rows for which packing W doesn't pay, whatever its size; of a wide W */
    PER_ROW = 32,        /* one row for so many columns, */
    MANY = 64,           /* up to so many (all measured) */
    CACHED = 1 << 17,    /* numbers of a block's rows that stay in a second cache of 1 MiB */
    LEAST = 128,         /* rows of a block, so that products over them are worth their sums */
    MOST = 1024,
    SAMPLES = 8,         /* that take a step together (measured) */
    SUMMED_PLAINLY = 4096, /* rows over which the gradient of a weight is summed without its rounding errors */
    GAP = 16,            /* numbers, a cache line, between rows: those of 2^n would meet in a few sets */
};

/* a b for positive a and b, or MAX_EXTENT where that's less. */
static long times(long a, long b) { return a > MAX_EXTENT / b ? MAX_EXTENT : a * b; }

static long rows_that_pay(long H)
{
    return H < MIDDLING ? 1 : H < WIDE ? MIDDLING_ROWS : WIDE_ROWS;
}

long rows_of(const Job *job) { return job->packed ? job->steps : times(job->steps, job->B); }

/* One where a second thread doesn't pay: a single row can't be cut into slices, only its columns be
 * shared. */
long threads_of(const Job *job, long jobs, long most)
{
    const double rows = (double)rows_of(job) + PACKING;
    const double products = jobs * job->G * rows * job->H * (job->H + job->I); /* no integer could overflow */
    const int single = jobs * job->G == 1 && job->B == 1 && job->H < NARROW && !job->I;
    return single || products < ALONE ? 1 : smaller(job->threads, most);
}

/* Each part of the memory behind the one before, aligned for vectors. */
static long reserve(Plan *plan, long width, long numbers)
{
    const long at = plan->bytes;
    plan->bytes += quotient_up(width * numbers, 64) * 64;
    return at;
}

long samples_at_once(long T) { return T > SUMMED_PLAINLY ? 1 : SAMPLES; }

static long rows_of_block(const Job *job)
{
    if (!keeps_rows(job))
        return MAX_EXTENT;
    return job->samples ? job->samples * smaller(job->T, LEAST) : smaller(MOST, larger(LEAST, CACHED / job->H));
}

static void lay_out(Plan *plan, const Job *job, long lanes, long width)
{
    const bool backward = is_backward(job);
    const long columns = quotient_up(job->I, lanes) * lanes, one = backward ? lanes : 1;
    const long of_block = keeps_rows(job) ? smaller(rows_of(job), times(1, plan->rows) + job->B) : job->B;
    const long rows = larger(1, job->I ? of_block : 0);
    const int half = job->type >= BFLOAT;
    plan->x_ld = columns + GAP;
    plan->dzt_ld = quotient_up(rows, lanes) * lanes + GAP;
    plan->matrix = times(plan->unpacked_weights ? one : plan->vecs * lanes, job->H);
    plan->input_matrix = backward ? times(plan->unpacked_weights ? one : larger(1, columns), job->H)
                                  : times(plan->unpacked_weights ? 1 : plan->vecs * lanes, larger(1, job->I));
    plan->carry = times((2 + (backward && job->alpha.data)) * job->B, plan->ld); /* with a leak, g too */
    reserve(plan, width, plan->matrix);
    plan->inputs = reserve(plan, width, job->I ? plan->input_matrix : 0);
    plan->carries = reserve(plan, width, plan->carry);
    plan->z = reserve(plan, width, job->I ? times(rows, plan->ld) : 0);
    plan->x_packed = reserve(plan, width, job->I ? times(rows, plan->x_ld) : 0);
    plan->dz_transposed = reserve(plan, width, job->I && backward ? times(plan->vecs * lanes, plan->dzt_ld) : 0);
    plan->panels = reserve(plan, width, job->I && backward ? times(rows, columns + plan->vecs * lanes) : 0);
    const long sums_of_rows = times(larger(1, job->samples), plan->ld);
    plan->bias_or_dw = reserve(plan, width,
                         job->I ? sums_of_rows + (half && backward ? times(job->H, plan->ld + plan->x_ld) : 0) : 0);
    const long summed = rows_of(job) / larger(1, job->samples);
    const long sums = job->I && backward && summed > SUMMED_PLAINLY ? times(job->H, plan->ld + plan->x_ld) : 0;
    plan->parts = reserve(plan, width, sums);
    plan->residues = reserve(plan, width, job->I && backward ? sums_of_rows + sums : 0);
    plan->counters = reserve(plan, sizeof(long), COUNTER_STRIDE * (plan->threads + 1));
}

Plan plan_of(const Job *job, long lanes, long width, int pairs, long most)
{
    Plan plan = {.threads = threads_of(job, 1, most)};
    const long team = job->G < plan.threads ? plan.threads : 1; /* threads at one W */
    const long crews = larger(1, smaller(team, job->B / rows_that_pay(job->H)));
    plan.sharing = job->H < NARROW ? 1 : team / crews;
    plan.slices = crews * quotient_up(job->B, crews * LIMIT);
    plan.vecs = quotient_up(job->H, lanes);
    plan.bf16_offset = pairs ? plan.vecs * lanes : 0;
    plan.ld = (plan.vecs + (pairs ? quotient_up(plan.vecs, 2) : 0)) * lanes + GAP;
    plan.unpacked_weights = job->contiguous_weights && rows_of(job) <= smaller(MANY, larger(FEW, job->H / PER_ROW));
    plan.rows = rows_of_block(job);
    lay_out(&plan, job, lanes, width);
    return plan;
}

/* Rows of a packed batch are dealt out in turn, since the first rows live longest; others are cut into
 * runs, of which the first few are one row longer. */
Slice slice_of(const Job *job, const Plan *plan, long i)
{
    const long rows = job->B / plan->slices, more = job->B % plan->slices, mine = rows + (i < more);
    const long before = i * rows + smaller(i, more);
    return job->packed ? (Slice){i, plan->slices, mine, before, 0, 0} : (Slice){before, 1, mine, before, 0, 0};
}

static long size_of(const Job *job, long t) { return job->packed ? job->sizes[t] : job->B; }

/* Steps whose rows begin in the same stretch of `plan->rows` rows. */
Block block_after(const Job *job, const Plan *plan, Block last)
{
    Block block;
    if (!job->reverse) {
        block = (Block){last.to < 0 ? 0 : last.to, 0, last.first + last.rows, 0, 0};
        block.to = block.from, block.index = block.first / plan->rows;
        while (block.to < job->T && (block.first + block.rows) / plan->rows == block.index)
            block.rows += size_of(job, block.to++);
        return block;
    }
    block = (Block){last.to < 0 ? job->T : last.from, 0, last.to < 0 ? rows_of(job) : last.first, 0, 0};
    block.to = block.from;
    if (block.to)
        block.index = (block.first - size_of(job, block.to - 1)) / plan->rows;
    while (block.from && (block.first - size_of(job, block.from - 1)) / plan->rows == block.index) {
        const long size = size_of(job, --block.from);
        block.first -= size, block.rows += size;
    }
    return block;
}
