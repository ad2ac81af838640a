/* How a job is done. Nothing here reads a tensor, keeps a state, or fails. */
#ifndef MANUAL_RNN_PLAN_H
#define MANUAL_RNN_PLAN_H
#include "types.h"

/* The plan of a job with no size of 0, for vectors of `lanes` numbers of `width` bytes, which are multiplied as
 * `pairs` of bfloats or as they are, and at most `most` threads. Memory that can't be addressed is planned as
 * MAX_EXTENT numbers, which no allocator grants. */
Plan plan_of(const Job *job, long lanes, long width, int pairs, long most);

/* Rows of all steps, or MAX_EXTENT if there are more. */
long rows_of(const Job *job);

/* The threads that pay for each of so many jobs alike. */
long threads_of(const Job *job, long jobs, long most);

/* How many samples of T steps run as one batch, whatever the threads; 1 where their sums have to know their rounding
 * errors. */
long samples_at_once(long T);

/* Slice i of `plan->slices`, which together hold every row of the batch once. */
Slice slice_of(const Job *job, const Plan *plan, long i);

/* The block that comes after `last` in the job's order of time; no rows after the last. Of a block that is
 * nowhere yet, to = -1, the first. Both directions of a layer have the same blocks. */
Block block_after(const Job *job, const Plan *plan, Block last);

#endif
