/* Jobs over threads. */
#ifndef MANUAL_RNN_SCHEDULE_H
#define MANUAL_RNN_SCHEDULE_H
#include "types.h"

/* Runs stages of `width` jobs each, the jobs of a stage in any order, on at most `most` threads. All jobs are of
 * one type, none has a size of 0. Returns the bytes of memory that it couldn't get, or 0. */
long run_jobs(int variant, Job *jobs, long stages, long width, long most);

#endif
