/* What the functions of module.c are given. What reads gives 1, or 0 with an exception set. */
#ifndef MANUAL_RNN_ARGUMENTS_H
#define MANUAL_RNN_ARGUMENTS_H
#include "network.h"

/* An int from `low` to `high`. */
int read_long(PyObject *from, const char *name, long low, long high, long *to);

/* One that this processor supports. */
int read_variant(PyObject *from, long *to);
int read_threads(PyObject *from, long *to);

/* The numbers before all else: variant, kind, threads, reverse. */
int read_how(Job *job, long *variant, PyObject *const *args);

/* type, packed, sizes, T, and what every job has: z, h_0 or h, w, y; each tensor as its data_ptr(), stride() and
 * shape. */
int read_scan(Job *job, PyObject *const *args);
const char *name_of_other(const Job *job);

/* The numbers before a network's tensors, and that its weights are as many as layers and directions have. */
int read_network(How *how, PyObject *const *args, PyObject *weights);

#endif
