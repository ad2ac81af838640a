/* What the kernels of operators share: their arguments, and a network's tensors. */
#ifndef MANUAL_RNN_OPERATORS_H
#define MANUAL_RNN_OPERATORS_H
#include "half.h"
#include "network.h"
#include "torch_abi.h"

/* Tensors to be released when a kernel ends: its arguments, the items of its lists, and what holds their storages. */
typedef struct { Value *values, first[48]; size_t count, room; } Held;

void hold(Held *held, Value tensor);
Value hold_optional(Held *held, Value holder); /* an optional argument's tensor, or 0 */
void release_all(Held *held);

/* A tensor that is held already; absent where there is none. */
bool read(Held *held, Tensor *x, const char *name, Value from);

/* The tensors of a list, which is released: `group` of them into every `each` places. */
bool read_list(Held *held, Value list, Tensor *to, long count, long group, long each, const char *name);

/* Room for the tensors of a network whose D and `each` are known: its weights, its states and its gradients. */
bool begin_network(Network *net, long weights);
void end_network(Network *net);

/* Whether a mode of ATen's operator is the number of a nonlinearity. */
bool is_nonlinearity(Value mode);

bool make_results(Network *net, Value *output, Value *h_n);
bool make_gradients(Network *net, const bool *need, Value *made);
void release_results(const Value *results, size_t count);

Kernel cudnn_rnn_kernel, network_backward_kernel, cudnn_rnn_backward_autograd;

#endif
