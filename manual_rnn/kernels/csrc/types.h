/* What Python asks for (Job), how it's done (Plan), and the parts that one thread runs through: rows of the
 * batch (Slice), a stretch of time (Block). */
#ifndef MANUAL_RNN_TYPES_H
#define MANUAL_RNN_TYPES_H
#include <stdint.h>

/* The most that a size may be, a tensor may span, and a part of a plan's memory may hold, in numbers: 2^56
 * bytes, all that a processor of today can address. Sums of a few of them don't overflow. */
#define MAX_EXTENT (1L << 53)
#define REACH MAX_EXTENT

enum { TANH, RELU, TANH_SLOPE, RELU_SLOPE, KINDS };
enum { FLOAT, DOUBLE, BFLOAT, HALF, TYPES }; /* of the numbers in memory; halves are reckoned with as floats */
enum { APART = 16 }; /* longs from counter to counter: two cache lines, which processors fetch as a pair */

typedef struct { char *data; long type, group, step, row, column; } View; /* strides in bytes */

/* One recurrence, or one direction of a layer, forward or (kind is a slope) backward. A view whose data is
 * NULL isn't there. */
typedef struct {
    long kind, reverse, packed, type;
    long threads;              /* that may be used */
    long lies;                 /* whether the weights lie in memory as rows of numbers to reckon with */
    long G, T, B, H, I, steps; /* steps: T, or N if packed; I: 0 where z is given, not x */
    int64_t *sizes;            /* rows alive at each step of packed input, else NULL */
    View z, h, y, w;           /* the recurrence's; w: what the carry is multiplied by, on its right */
    View start, end;           /* rows (B, H) that a carry begins with or, backward, has added to it; and where
                                  that of each sequence goes: its last state, or the gradient of h_0 */
    View copy;                 /* forward: where y is written to a second time */
    View x, u, bias[2];        /* the layer's; forward u stands for w_ih^T, backward for w_ih */
    View h0;                   /* backward: the first states, and the gradients */
    View dx, du, dw, db[2];
    long *claims;              /* where two directions add up dx: who came to a block first */
} Job;

typedef struct {
    long threads;                   /* that are used */
    long sharing;                   /* threads that share a slice, each with some of its columns */
    long slices;                    /* of the batch's rows */
    long vecs, ld;                  /* vectors in a row of the carry; numbers from row to row */
    long direct;                    /* whether weights are read where they lie */
    long rows;                      /* of a block, but for those of its last step */
    long matrix, input_matrix;      /* numbers of a packed W and U */
    long carry;                     /* of the carries of a matrix, kept twice */
    long pairs;                     /* where bfloats multiply: how far behind a row's numbers the same lie as bfloats */
    long wide;                      /* numbers from row to row of a block's inputs */
    long tall;                      /* and from column to column of a block that lies transposed */
    long carries, inputs, zs, dense, turned, panels, sums, counters; /* where these begin, in bytes */
    long bytes;                     /* and where all ends */
} Plan;

typedef struct { long row, apart, rows, place, v0, v1; } Slice; /* rows row, row + apart, ..., the carry of the
                                                                   first at `place`; vectors v0 to v1 */
typedef struct { long from, to, first, rows, index; } Block; /* steps `from` to `to` of time; the first of
                                                                `rows` rows is row `first` of all */
#endif
