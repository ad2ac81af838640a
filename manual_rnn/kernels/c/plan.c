/* Threads, slices and memory.
 *
 * The batch is cut into slices of rows; a thread runs all steps of a slice, so that no step waits for another
 * thread. Where there are too few rows to pay for reading a wide W, threads share a slice, each with some
 * columns of W, and meet at each step. With at least as many matrices as threads, each thread has matrices of
 * its own.
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
    CACHED = 1 << 18, /* floats of W that stay in a second cache of 1 MiB while a slice's rows pass */
    GAP = 16,         /* floats, a cache line, between rows: those of 2^n floats would meet in a few sets */
};

static long smaller(long a, long b) { return a < b ? a : b; }
static long larger(long a, long b) { return a > b ? a : b; }
static long quotient_up(long a, long b) { return (a + b - 1) / b; }

/* a b for positive a and b, or REACH where that's less. */
static long times(long a, long b) { return a > REACH / b ? REACH : a * b; }

static long rows_that_pay(long H)
{
    return H < MIDDLING ? 1 : H < WIDE ? MIDDLING_ROWS : WIDE_ROWS;
}

/* One where a second thread doesn't pay: a single row can't be cut into slices, only its columns be
 * shared. */
static long threads_of(const Job *job, long most)
{
    const double rows = (double)job->steps * (job->packed ? 1 : job->B) + PACKING;
    const double products = job->G * rows * job->H * (job->H + job->I); /* no integer could overflow */
    const int single = job->G == 1 && job->B == 1 && job->H < NARROW;
    return single || products < ALONE ? 1 : smaller(job->threads, most);
}

/* W, the carries, a counter per thread, and the sum of the biases, one after the other. */
static void reserve(Plan *plan, long matrices)
{
    plan->carries = sizeof(float) * times(plan->matrix, matrices);
    plan->counters = plan->carries + sizeof(float) * times(plan->scratch, plan->threads);
    plan->biases = plan->counters + sizeof(long) * APART * plan->threads;
    plan->bytes = plan->biases + sizeof(float) * plan->beside;
}

Plan plan_of(const Job *job, long lanes, long most)
{
    Plan plan = {.threads = threads_of(job, most), .depth = job->H + job->I};
    const long team = job->G < plan.threads ? plan.threads : 1; /* threads at one W */
    const long crews = larger(1, smaller(team, job->B / rows_that_pay(job->H)));
    plan.sharing = job->H < NARROW || job->I ? 1 : team / crews;
    plan.slices = crews * quotient_up(job->B, crews * LIMIT);
    plan.vecs = quotient_up(job->H, lanes);
    plan.beside = plan.vecs * lanes;
    plan.ld = plan.beside + quotient_up(job->I, lanes) * lanes + GAP;
    plan.block = 1 + CACHED / (plan.depth * lanes);
    plan.matrix = times(plan.beside, plan.depth);
    plan.scratch = times(2 * quotient_up(job->B, plan.slices), plan.ld);
    reserve(&plan, team > 1 ? 1 : plan.threads);
    return plan;
}

/* Rows of a packed batch are dealt out in turn, since the first rows live longest; others are cut into
 * runs, of which the first few are one row longer. */
Slice slice_of(const Job *job, const Plan *plan, long i)
{
    const long rows = job->B / plan->slices, more = job->B % plan->slices, mine = rows + (i < more);
    if (job->packed)
        return (Slice){i, plan->slices, mine, 0, 0};
    return (Slice){i * rows + smaller(i, more), 1, mine, 0, 0};
}
