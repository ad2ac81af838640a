/* What an operator asks for (Job), how it is done (Plan), and the parts that one thread runs through: rows of the
 * batch (Slice), a stretch of time (Block). */
#ifndef MANUAL_RNN_TYPES_H
#define MANUAL_RNN_TYPES_H
#include <stdbool.h>
#include <stdint.h>

/* The most that a size may be, a tensor may span, and a part of a plan's memory may hold, in numbers: 2^56
 * bytes, all that a processor of today can address. Sums of a few of them don't overflow. */
#define MAX_EXTENT (1L << 53)

/* The nonlinearities: each with the name of its row in nonlinearities.py, and the number that it has there as a mode of
 * ATen's operator, for which 2 and 3 are LSTM and GRU. Its cases are in tile.inc.h. */
#define NONLINEARITIES(each) \
    each(RELU, "relu", 0) \
    each(TANH, "tanh", 1) \
    each(IDENTITY, "identity", 4) \
    each(SIGMOID, "sigmoid", 5) \
    each(SOFTPLUS, "softplus", 6) \
    each(HARDTANH, "hardtanh", 7) \
    each(LEAKY_RELU, "leaky_relu", 8)
#define AS_CONSTANT(kind, name, number) kind = number,
enum { NONLINEARITIES(AS_CONSTANT) SLOPE = 16 }; /* SLOPE + one of them: its slope */

enum { FLOAT, DOUBLE, BFLOAT, HALF, TYPES }; /* of the numbers in memory; halves are reckoned with as floats */
enum { COUNTER_STRIDE = 16 }; /* longs from counter to counter: two cache lines, which processors fetch as a pair */

typedef struct { char *data; long type, group, step, row, column; } View; /* strides in bytes */

/* One recurrence, or one direction of a layer, forward or, where its kind is a slope, backward. A view whose data is
 * NULL isn't there. */
typedef struct {
    long kind, reverse, packed, type;
    long threads;              /* that may be used */
    long contiguous_weights;   /* whether each row of the weights is contiguous, in the type that is multiplied */
    long G, T, B, H, I, steps; /* steps: T, or N if packed; I: 0 where z is given, not x */
    int64_t *sizes;            /* rows alive at each step of packed input, else NULL */
    View z, h, y, w;           /* the recurrence's; w: what the carry is multiplied by, on its right */
    View start, end;           /* rows (B, H) that a carry begins with or, backward, has added to it; and where
                                  that of each sequence goes: its last state, or the gradient of h_0 */
    View copy;                 /* forward: where y is written to a second time */
    View added;                /* backward: what is added to z, a second cotangent of the states */
    View alpha, rates;         /* of a leak, one for each column; and r = phi(z + y W), y = (1 - alpha) y + alpha r:
                                  forward where it is written, backward what the slope is written through */
    View x, u, bias[2];        /* the layer's; forward u stands for w_ih^T, backward for w_ih */
    View h0;                   /* backward: the first states, and the gradients */
    View dx, du, dw, db[2];
    long samples;              /* how many rows of the batch have gradients of the weights of their own, a group
                                  apart; 0 where all are summed. One thread runs them. */
    long *block_owner;         /* two directions add up dx: a flag for each block and thread, which the direction that
                                  comes to the block first sets */
} Job;

static inline bool is_backward(const Job *job) { return job->kind >= SLOPE; }
static inline bool wants_weights(const Job *job)
{
    return job->du.data || job->dw.data || job->db[0].data || job->db[1].data;
}

/* Whether rows of a block are read outside of the recurrence: forward they are projected; backward there is a second
 * cotangent, or a gradient is made of dz. */
static inline bool keeps_rows(const Job *job)
{
    return job->I && (!is_backward(job) || job->added.data || job->dx.data || wants_weights(job));
}
static inline long quotient_up(long a, long b) { return (a + b - 1) / b; }
static inline long smaller(long a, long b) { return a < b ? a : b; }
static inline long larger(long a, long b) { return a > b ? a : b; }

typedef struct {
    long threads;                   /* that are used */
    long sharing;                   /* threads that share a slice, each with some of its columns */
    long slices;                    /* of the batch's rows */
    long vecs, ld;                  /* vectors in a row of the carry; numbers from row to row */
    long unpacked_weights;          /* whether weights are read in place */
    long rows;                      /* of a block, but for those of its last step */
    long matrix, input_matrix;      /* numbers of a packed W and U */
    long carry;                     /* of the carries of a matrix, kept twice */
    long bf16_offset;               /* of the bf16 copy of a row of the carry, in numbers; 0 if there is none */
    long x_ld;                      /* numbers from row to row of a block's packed inputs */
    long dzt_ld;                    /* numbers from row to row of a block's transposed dz */
    /* Where each buffer begins, in bytes: the carries; packed U; a block's z or dz; its inputs or dx, as dense rows;
     * its dz, transposed; its inputs and states, in panels; the sum of both biases or, backward, its gradient, with
     * those of half-precision weights in float32; the counters of barriers. */
    long carries, inputs, z, x_packed, dz_transposed, panels, bias_or_dw, counters;
    long parts;                     /* over many rows, what is added to the gradients of both weights; else empty */
    long residues;                  /* the rounding errors of the sums: of the biases and, over many rows, of weights */
    long bytes;                     /* of all buffers */
} Plan;

typedef struct { long row, apart, rows, place, v0, v1; } Slice; /* rows row, row + apart, ..., the carry of the
                                                                   first at `place`; vectors v0 to v1 */
typedef struct { long from, to, first, rows, index; } Block; /* steps `from` to `to` of time; the first of
                                                                `rows` rows is row `first` of all */
#endif
