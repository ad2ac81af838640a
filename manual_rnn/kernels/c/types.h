/* What Python asks for (Job), how it's done (Plan), and the rows that one thread runs through (Slice). */
#ifndef MANUAL_RNN_TYPES_H
#define MANUAL_RNN_TYPES_H
#include <stdint.h>

/* The most that a size may be, a tensor may span, and a part of a plan's memory may hold, in floats: 2^56
 * bytes, all that a processor of today can address. Sums of a few of them don't overflow. */
#define REACH (1L << 54)

enum { TANH, RELU, TANH_SLOPE, RELU_SLOPE, KINDS };
enum { APART = 16 }; /* longs from counter to counter: two cache lines, which processors fetch as a pair */

typedef struct { char *data; long group, step, row, column; } View; /* strides in floats; data may be NULL */

typedef struct {
    long kind, reverse, packed;
    long threads;              /* that may be used */
    long G, T, B, H, I, steps; /* steps: T, or N if packed; I: 0 where z is given, not x */
    int64_t *sizes;            /* rows alive at each step of packed input, else NULL */
    View z, h, y, h0, w, x, u, bias[2];
} Job;

typedef struct {
    long threads;                          /* that are used */
    long sharing;                          /* threads that share a slice, each with some of its columns */
    long slices;                           /* of the batch's rows */
    long vecs, depth;                      /* vectors in a row of the carry; products in a sum, H + I */
    long beside, ld;                       /* floats from a row's carry to its input, and from row to row */
    long block;                            /* vectors of W's columns that fit in the cache */
    long matrix, scratch;                  /* floats of a packed W, and of a slice's carry, kept twice */
    long carries, counters, biases, bytes; /* where they begin in memory, behind the matrices, and its end */
} Plan;

typedef struct { long row, apart, rows, v0, v1; } Slice; /* rows row, row + apart, ...; vectors v0 to v1 */

#endif
