/* The parts of a network, as C sees them: what its forward and its backward pass share. What judges gives 1, or 0,
 * and no exception but for want of memory. */
#ifndef MANUAL_RNN_PARTS_H
#define MANUAL_RNN_PARTS_H
#include "network.h"

typedef struct {
    const How *how;
    long L, each;      /* layers; weights of a direction */
    Job like;          /* what all jobs have in common */
    Tensor x, hx;      /* data NULL where there is none */
    Tensor *weights;   /* L * D * each */
    Tensor *states;    /* of each layer */
    Job *jobs;
    void *nothing;     /* zeros, a row of them */
} Network;

/* Room for the parts, in one piece; 0 with an exception set. */
int begin(Network *net, const How *how, long weights);
void forget(Network *net);

/* A tensor of the network's type, or none where None is allowed. */
int see_alike(const Network *net, Tensor *x, PyObject *from, int optional);

/* Of a step, a row and a column; of packed rows each may be a step's first. */
View rows_view(const Network *net, const Tensor *x, int swapped);
View columns_from(View x, long column);
View state_view(const Tensor *x, long index);
View weight_view(const Tensor *w);

/* T, B and the rows, from the shape of an input or of states; 0 where it isn't one. */
int measure(Network *net, const Tensor *x, int swapped, PyObject *batch_sizes);

/* Features of what a layer reads. */
long inputs_of(const Network *net, long layer, long I);
int see_weights(Network *net, PyObject *weights, long I, int optional);
int see_hx(Network *net, Tensor *hx, PyObject *from);
/* What forward and backward jobs of a layer and direction share: all but the results. */
void share_job(const Network *net, Job *job, long layer, long d, long I);
/* Whether x is (T, B, columns), or (N, columns) if packed. */
int is_rows(const Network *net, const Tensor *x, long columns);
/* A tensor that was just made: under a mode it may be anything. */
int see_made(const Network *net, Tensor *x, PyObject *from, long dims, const long *shape);
int see_states(Network *net, PyObject *states, int (*seen)(Tensor *x, PyObject *from));

#endif
