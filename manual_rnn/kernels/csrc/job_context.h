/* A job while it runs, as one thread of its team sees it: shared by layer.c and layer_backward.c. */
#ifndef MANUAL_RNN_JOB_CONTEXT_H
#define MANUAL_RNN_JOB_CONTEXT_H
#include "layer.h"

typedef struct {
    const Variant *variant;
    const Job *job;
    const Plan *plan;
    TeamThread *member;
    char *memory;
    Matrix u;
    ScanContext work;
} JobContext;

static inline long partition(long all, long me, long size) { return all * me / size; }
static inline long quotient_up(long a, long b) { return (a + b - 1) / b; }
static inline int is_backward(const Job *job) { return job->kind >= SLOPE; }

/* Whether all rows of a view are equally far from each other, as numbers to reckon with; and how far. */
int is_dense(const JobContext *run, const View *x);
long apart(const JobContext *run, const View *x);
char *first_row(const JobContext *run, const View *x, const Block *block);

/* rows times m, partitioned among the team: by rows, or by columns where there are few rows. */
void multiply(const JobContext *run, const Matrix *m, long rows, const char *a, long lda, ProductOutput to);

/* This thread's rows of a block's dx, from the block's dz. */
void to_input(JobContext *run, const Block *block);

/* A block's part of the gradients of both weights and of the biases. */
void to_weights(JobContext *run, const Block *block, int first);

/* Writes the gradients that were summed in the buffer bias_or_dw to their tensors. */
void store_gradients(const JobContext *run);

#endif
