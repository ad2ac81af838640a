/* The kernels of all operators, and what those of a whole network share. */
#ifndef MANUAL_RNN_OPERATORS_H
#define MANUAL_RNN_OPERATORS_H
#include "call.h"
#include "network.h"

/* How the engine runs: set when the library is loaded. */
typedef struct { int variant; long most_threads; } Engine;
extern Engine engine;

/* Room for the tensors of a network whose D and `each` are known: its weights, its states and its gradients. */
bool begin_network(Call *call, Network *net, long weights);

/* Whether a mode of ATen's operator is the number of a nonlinearity. */
bool is_nonlinearity(Value mode);

bool make_output(Call *call, Network *net);
bool make_h_n(Call *call, Network *net);
bool make_gradients(Call *call, Network *net, const bool *need);

Kernel network_kernel, network_vjp_kernel, elman_kernel, linear_recurrence_kernel, copies_kernel;
Kernel cudnn_rnn_kernel, network_backward_kernel, cudnn_rnn_backward_kernel;

#endif
