/* How a job is done. Nothing here reads a tensor, keeps a state, or fails. */
#ifndef MANUAL_RNN_PLAN_H
#define MANUAL_RNN_PLAN_H
#include "types.h"

/* The plan of a job with no size of 0, for vectors of `lanes` floats and at most `most` threads. Memory
 * that can't be addressed is planned as REACH floats, which no allocator grants. */
Plan plan_of(const Job *job, long lanes, long most);

/* Slice i of `plan->slices`, which together hold every row of the batch once. */
Slice slice_of(const Job *job, const Plan *plan, long i);

#endif
