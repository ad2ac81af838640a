/* The recurrences over a plan, in each variant: one instruction set of the processor. */
#ifndef MANUAL_RNN_SCAN_H
#define MANUAL_RNN_SCAN_H
#include "types.h"

typedef struct { const Job *job; const Plan *plan; long g; float *packed; } Work; /* with matrix g */
typedef struct { long *count, members, met; } Meeting;                            /* of `members` threads */

typedef struct {
    const char *name;
    long lanes;                                                            /* floats in a vector */
    void (*pack)(const Work *, long v0, long v1);                          /* fills in `packed` */
    void (*run)(const Work *, float *carry, Slice slice, Meeting *meeting); /* all steps of a slice */
} Variant;

extern const Variant variants[]; /* the widest vectors first */
extern const int variant_count;

/* Whether this processor has the instructions. */
int supported(int variant);

/* Fills job->y; 0 where there's no memory. */
int scan(const Variant *variant, const Job *job, const Plan *plan);

#endif
