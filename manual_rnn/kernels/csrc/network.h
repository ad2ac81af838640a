/* The whole network in one call, of torch's tensors. */
#ifndef MANUAL_RNN_NETWORK_H
#define MANUAL_RNN_NETWORK_H
#include "exchange.h"

/* The numbers before all else. */
typedef struct { long variant, kind, threads, batch_first, D, reverse, H, I, bias; } How; /* I: 0 for any */

/* (output, h_n, states): with `keep`, and where some tensor wants a gradient, of every layer but the last, else
 * None. NotImplemented where
 * something isn't as it should be, which the caller then finds a name for; NULL with an exception set. */
PyObject *network(const How *how, long most, int keep, PyObject *batch_sizes, PyObject *input, PyObject *hx,
                  PyObject *weights);

/* The gradients of the input, of hx and of the weights, each None where `need` doesn't ask for it: from those
 * of the output and of h_n, either of which may be None, and the states of every layer. Of the tensors of the
 * forward pass those may be None that no gradient wants. */
PyObject *network_vjp(const How *how, long most, PyObject *batch_sizes, PyObject *input, PyObject *hx,
                      PyObject *weights, PyObject *states, PyObject *c, PyObject *c_last, PyObject *need);

#endif
