/* A job at work, as one member of a team of threads sees it: what layer.c and its gradients share. */
#ifndef MANUAL_RNN_JOB_CONTEXT_H
#define MANUAL_RNN_JOB_CONTEXT_H
#include "layer.h"

typedef struct {
    const Variant *variant;
    const Job *job;
    const Plan *plan;
    Member *member;
    char *memory;
    Matrix u;
    Work work;
} Run;

static inline long share(long all, long me, long size) { return all * me / size; }
static inline long quotient_up(long a, long b) { return (a + b - 1) / b; }
static inline int is_backward(const Job *job) { return job->kind >= TANH_SLOPE; }

/* Whether all rows of a view are equally far from each other, as numbers to reckon with; and how far. */
int is_dense(const Run *run, const View *x);
long apart(const Run *run, const View *x);
char *first_row(const Run *run, const View *x, const Block *block);

/* rows times m, shared among the team: by rows, or by columns where there are few rows. */
void multiply(const Run *run, const Matrix *m, long rows, const char *a, long lda, Target to);

/* A member's share of dx of a block, from its dz. */
void to_input(Run *run, const Block *block);

/* A block's part of the gradients of both weights and of the biases. */
void to_weights(Run *run, const Block *block, int first);

/* What has grown as floats, where it's wanted. */
void put_gradients(const Run *run);

#endif
