/* A layer in one direction, or a bare recurrence: what a member of a team of threads does for it. */
#ifndef MANUAL_RNN_LAYER_H
#define MANUAL_RNN_LAYER_H
#include "cpu_variants.h"

typedef struct { long me, size; Barrier meeting; } TeamThread; /* of a team */

void run_job(const Variant *variant, const Job *job, const Plan *plan, char *memory, TeamThread *member);

#endif
