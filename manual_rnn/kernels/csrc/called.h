/* A module's call, read from the module. */
#ifndef MANUAL_RNN_CALLED_H
#define MANUAL_RNN_CALLED_H
#include "network.h"

/* To be called once, before the rest; 0 with an exception set. */
int prepare_calls(void);

/* From `vars(module)`: what its call is, all but the variant and the threads, and its weights in a new tuple, layer
 * after layer and direction after direction. NULL, and no exception, where something isn't as it should be. */
PyObject *read_module(How *how, PyObject *own);

#endif
