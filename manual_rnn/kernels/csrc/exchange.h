/* torch's tensors, read and made without Python in between. What judges gives 1, or 0 with a Python
 * exception set. */
#ifndef MANUAL_RNN_EXCHANGE_H
#define MANUAL_RNN_EXCHANGE_H
#include "job.h"

/* Takes what `exchange` in module.c is given. */
int exchange_with_torch(PyObject *const *args);

/* Exactly one of torch's two types of tensors, or None. Of these alone it's certain that no Python code runs
 * when they're read. */
int is_exact(PyObject *x);

/* Whether the memory of each that isn't None holds the numbers that it stands for, all of one type, on the
 * CPU: no wrapper, no pending negation, nothing sparse. Raises nothing. An empty tensor has no memory, as a wrapper has none,
 * so the answer is no. */
int are_numbers(PyObject *const *xs, long count);

/* Lets go of the storage that is held, if one is. */
void release(Tensor *x);

/* An exact tensor of numbers to reckon with; its storage is held until `release`. */
int take_floats(Tensor *x, const char *name, PyObject *from);

/* The same of a tensor with at least one number in every direction, and no exception where it isn't one: no
 * pending negation, and no storage that ends before it does. Like `take_floats` it holds the storage. */
int see(Tensor *x, PyObject *from);

/* Whether it shares its memory with another until either is written to, as the output of a network does: DLPack
 * would make a copy first. Looked for where a gradient is wanted, since only then is such memory made. */
int is_shared(PyObject *x);

/* `see` of one that doesn't. */
int see_owned(Tensor *x, PyObject *from);

/* The same of one that was just made, or of whose shape alone is asked. */
int see_fresh(Tensor *x, PyObject *from);

/* Whether autograd is to record what is done with it. */
int wants_gradient(PyObject *x);

/* The same of one whose memory is another tensor's too until either is written to, which stays so; and of any
 * its shape and type alone, as if it were contiguous. */
int see_shared(Tensor *x, PyObject *from);
int see_shape(Tensor *x, PyObject *from);

/* batch_sizes, or None. */
int take_sizes(Job *job, PyObject *from);

/* torch's own new_empty, of the last dims of a shape; this may run Python code, in modes and in the garbage
 * collector. NULL with an exception set. */
PyObject *new_floats(PyObject *like, const long *shape, long dims);

#endif
