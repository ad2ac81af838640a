/* A recurrence alone, of tensors that have been read. */
#ifndef MANUAL_RNN_RECURRENCE_H
#define MANUAL_RNN_RECURRENCE_H
#include "tensor.h"

typedef struct {
    int variant;
    long kind, threads, most; /* a nonlinearity, or the slope of one */
    bool reverse;
    int64_t *sizes;           /* rows at each of `T` steps of packed input, else NULL */
    long T;
    Tensor z, other, w, y;    /* `other`: h_0, or of a slope h; y: the result, shaped as z */
} Recurrence;

bool check_recurrence(const Recurrence *all);
bool run_recurrence(const Recurrence *all);

#endif
