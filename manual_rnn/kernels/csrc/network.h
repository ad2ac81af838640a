/* A network and its gradients, of tensors that have been read: from them to the jobs of its layers.
 *
 * L layers, D directions; what layer l reads is what layer l - 1 wrote, directions side by side. An ensemble is as many
 * networks as it has members.
 */
#ifndef MANUAL_RNN_NETWORK_H
#define MANUAL_RNN_NETWORK_H
#include "tensor.h"

typedef struct {
    int variant;
    long kind, threads, most; /* a nonlinearity; threads that may be used, and the most that OpenMP is asked for */
    long L, D, H, I, each;    /* `each`: weights of a layer in one direction */
    long G;                   /* members of an ensemble; 0 where tensors have no such axis */
    long samples;             /* members that share their weights as rows of one batch: only the gradients of weights
                                 have their axis; else 0 */
    bool batch_first;         /* of x, output and their gradients; neither packed nor of an ensemble */
    int64_t T;                /* steps, and */
    int64_t *sizes;           /* rows at each of packed input, else NULL */
    long B, rows;             /* batch; rows of all steps */
    long type;
    Tensor x, hx;             /* data NULL where there is none, here and below */
    Tensor *weights;          /* L * D * each; the other arrays lie behind them */
    Tensor *states;           /* of each layer, and with a leak behind them its rates; forward, data NULL where they
                                 aren't saved */
    Tensor alpha;             /* of a leak, (H,); data NULL where there is none */
    Tensor output, h_n;       /* forward */
    Tensor c, c_last;         /* backward: cotangents of output and h_n, and */
    Tensor *c_states;         /* of the states of each layer, which a second derivative brings */
    Tensor *gradients;        /* backward: of x, hx and the weights, data NULL where they aren't wanted */
} Network;

/* How many tensors there are of weights, of states, and in all: `place_tensors` puts them behind each other. */
long weights_of(const Network *net);
long saved_states(const Network *net);
long tensors_of(const Network *net);
void place_tensors(Network *net, Tensor *tensors);

/* Shapes of what a network reads and makes, with the axis of an ensemble if there is one. */
Shape states_shape(const Network *net);
Shape hx_shape(const Network *net);
Shape gradient_shape(const Network *net, long index);

/* T, B and rows from x and the sizes; whether all that was read fits. */
bool measure_network(Network *net);
bool check_network(const Network *net);

bool network_forward(const Network *net);
bool network_backward(const Network *net);

/* Part `index` along a tensor's first axis; absent where the tensor has no memory. */
Tensor part_of(const Tensor *x, int64_t index);

/* Whether sizes begin with B, never grow, are never negative and add up to `rows`. */
bool sizes_fit(const int64_t *sizes, long T, long B, long rows);

#endif
