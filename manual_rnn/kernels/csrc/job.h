/* From tensors to a job: which can't be, and which don't fit each other. What judges gives 1, or 0 with a
 * Python exception set. */
#ifndef MANUAL_RNN_JOB_H
#define MANUAL_RNN_JOB_H
#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include "half.h"
#include "types.h"

enum { DIMS = 4 }; /* G, T, B, H */

/* 0, with an exception set. */
#define RAISE(type, ...) (PyErr_Format(PyExc_##type, __VA_ARGS__), 0)

typedef struct {
    const char *name;
    char *data;
    long type, dims, size[DIMS], stride[DIMS]; /* in numbers; none negative, no size above MAX_EXTENT */
    PyObject *storage; /* that is held while C reads it, or NULL */
} Tensor;

/* An address of numbers of `width` bytes; NULL only where there are none. */
int check_address(const void *data, const char *name, int width, int empty);

/* Memory aligned to floats, and a span that can exist. */
int check_memory(Tensor *x);

/* Copies batch_sizes before they're judged, since another thread may write to them at any time. */
int copy_sizes(Job *job, const void *from, long count);

/* What every job has: z, h_0 or h, w, y. */
int fit_scan(Job *job, const Tensor *z, const Tensor *other, const Tensor *w, const Tensor *y);

/* Whether a tensor's span can exist; a stride that's never taken becomes 1. */
int spans(Tensor *x);

/* A tensor as a view whose axes are these, counted from 0, or -1 where there is none. */
View view_of(const Tensor *x, int group, int step, int row, int column);

View transposed(View x);

/* Whether batch_sizes are those of a packed batch of `job->steps` rows that begins with `job->B`. */
int sizes_fit(const Job *job);

/* `run_jobs`, while other threads may run Python. */
int run_without_python(int variant, Job *jobs, long stages, long width, long most);

#endif
