/* From tensors to a job: which can't be, and which don't fit each other. What judges gives 1, or 0 with a
 * Python exception set. */
#ifndef MANUAL_RNN_JOB_H
#define MANUAL_RNN_JOB_H
#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include "types.h"

enum { DIMS = 4 }; /* G, T, B, H */

/* 0, with an exception set. */
#define RAISE(type, ...) (PyErr_Format(PyExc_##type, __VA_ARGS__), 0)

typedef struct {
    const char *name;
    char *data;
    long dims, size[DIMS], stride[DIMS]; /* none negative, no size above REACH */
} Tensor;

/* An address of numbers of `width` bytes; NULL only where there are none. */
int check_address(const void *data, const char *name, int width, int empty);

/* Memory aligned to floats, and a span that can exist. */
int check_memory(Tensor *x);

/* Copies batch_sizes before they're judged, since another thread may write to them at any time. */
int copy_sizes(Job *job, const void *from, long count);

/* What every job has: z, h_0 or h, w, y. */
int fit_scan(Job *job, const Tensor *z, const Tensor *other, const Tensor *w, const Tensor *y);

/* What a layer has beyond a scan: x, w_ih, and two biases or NULL. */
int fit_layer(Job *job, const Tensor *x, const Tensor *u, const Tensor *biases);

/* Room for the last state of each sequence, in a contiguous tensor of a layer. */
int fit_last(const Job *job, const Tensor *y, const Tensor *last);

/* Fills it in, from the states. */
void copy_last(const Job *job, float *last);

#endif
