/* Waves of jobs, one after the other, over threads.
 *
 * Each stage's jobs, the directions of a layer, run side by side on teams of threads where there are several, and
 * wait for each other at its end. Memory is that of the largest job, for each team, of whatever size it will be.
 */
#include "schedule.h"
#include <omp.h>
#include <stdlib.h>
#include "layer.h"
#include "memory.h"
#include "plan.h"

#define MAX_BYTES (1L << 56) /* bytes that no processor can address */
#define SMALL (16 * 16 * 16.0) /* multiply-adds of a product */

typedef struct {
    int variant;
    Job *jobs;
    Plan *plans;              /* of the jobs, for teams of `team` */
    long stages, width, sides; /* jobs of a stage that run side by side */
    long team;
    long each;                /* bytes for a job */
    char *memory;
    long *counters;
} Jobs;

/* bfloats may be multiplied as floats, which keep numbers below 2^-126, as PyTorch's own smallest products do. */
static const Variant *variant_for(int variant, const Job *job)
{
    const double H = job->H; /* can't overflow */
    const int small = job->B * H * H <= SMALL || (job->I && rows_of(job) * H * job->I <= SMALL);
    return variant_of(variant, job->type == BFLOAT && small ? FLOAT : job->type);
}

static Plan plan_for(const Jobs *all, long i, long team)
{
    const Variant *variant = variant_for(all->variant, &all->jobs[i]);
    return plan_of(&all->jobs[i], variant->lanes, variant->width, variant->pairs, team);
}

/* One thread of `size`: in every stage its side's jobs, and then it waits for the other sides. */
static void run_thread(const Jobs *all, long me, long size)
{
    const long sides = all->sides < size ? all->sides : size, team = size / sides, side = me / team;
    TeamThread member = {me % team, team, {all->counters + COUNTER_STRIDE * (1 + side), team, 0}};
    Barrier everybody = {all->counters, size, 0};
    for (long stage = 0; stage < all->stages; stage++) {
        for (long d = side; side < sides && d < all->width; d += sides) {
            const long i = stage * all->width + d;
            const Plan plan = team == all->team ? all->plans[i] : plan_for(all, i, team); /* fewer came */
            if (member.me < plan.threads) {
                TeamThread some = {member.me, plan.threads, {member.meeting.count, plan.threads, member.meeting.met}};
                run_job(variant_for(all->variant, &all->jobs[i]), &all->jobs[i], &plan,
                        all->memory + side * all->each, &some);
                member.meeting.met = some.meeting.met;
            }
        }
        barrier_wait(&everybody);
    }
}

/* The threads that pay for some job, and as many teams of them as there are jobs in a stage. */
static long partition_threads(Jobs *all, long most)
{
    long threads = 1;
    for (long i = 0; i < all->stages * all->width; i++) {
        const long pay = threads_of(&all->jobs[i], all->width, most);
        threads = pay > threads ? pay : threads;
    }
    all->sides = threads > 1 ? all->width : 1;
    all->team = threads / all->sides > 0 ? threads / all->sides : 1;
    return threads;
}

/* Plans of all jobs, and the most memory that one needs. Where a team has no more threads than there are matrices,
 * each thread has memory of its own. OpenMP may give a smaller team than was asked for: so there is memory for as
 * many threads as there are matrices, up to the whole team. */
static void plan_jobs(Jobs *all)
{
    for (long i = 0; i < all->stages * all->width; i++) {
        const Plan plan = all->plans[i] = plan_for(all, i, all->team);
        const long copies = all->jobs[i].G < plan.threads ? all->jobs[i].G : plan.threads;
        const long needed = plan.bytes > MAX_BYTES / copies ? MAX_BYTES : copies * plan.bytes;
        all->each = needed > all->each ? needed : all->each;
    }
}

/* The flags of a stage whose two directions add up dx: one for each block and thread of a team. */
static long owners_of(const Jobs *all)
{
    const Job *job = all->jobs;
    return all->width > 1 && is_backward(job) ? (rows_of(job) / all->plans->rows + 1) * all->team : 0;
}

/* Counters of barriers, and behind them the flags of each stage. */
static int count_out(Jobs *all, long threads)
{
    const long counters = COUNTER_STRIDE * (1 + (threads > all->sides ? threads : all->sides)), owners = owners_of(all);
    all->counters = calloc(counters + all->stages * owners, sizeof(long));
    for (long i = 0; all->counters && i < all->stages * all->width; i++)
        all->jobs[i].block_owner = owners ? all->counters + counters + i / all->width * owners : NULL;
    return all->counters != NULL;
}

long run_jobs(int variant, Job *jobs, long stages, long width, long most)
{
    Jobs all = {.variant = variant, .jobs = jobs, .stages = stages, .width = width};
    const long threads = partition_threads(&all, most);
    all.plans = malloc(stages * width * sizeof(Plan));
    if (!all.plans)
        return stages * width * sizeof(Plan);
    plan_jobs(&all);
    const int enough = all.each < MAX_BYTES && count_out(&all, threads)
        && (all.memory = allocate(all.sides * all.each));
    if (enough && threads == 1)
        run_thread(&all, 0, 1);
    else if (enough)
#pragma omp parallel num_threads(threads)
        run_thread(&all, omp_get_thread_num(), omp_get_num_threads());
    free(all.plans), free(all.memory), free(all.counters);
    return enough ? 0 : all.sides * all.each;
}
