/* The engine without Python: layers of odd sizes, forward and backward, in every type and direction, padded and
 * packed, against plain loops in double. For processors that have no machine here:
 *
 *     aarch64-linux-gnu-gcc -O2 -fopenmp -ffp-contract=fast -static -I manual_rnn/kernels/csrc \
 *         tests/kernels/driver.c manual_rnn/kernels/csrc/{cpu_variants,plan,layer,layer_backward,memory,schedule}.c \
 *         -lm -o driver && qemu-aarch64-static driver
 *
 * Prints the largest error of each type, and returns 1 if one is above its bound.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "schedule.h"
#include "cpu_variants.h"
#include "half.h"

enum { MOST = 1 << 16 };
static const double BOUND[TYPES] = {2e-6, 1e-14, 1e-2, 2e-3};
typedef struct { long T, B, I, H, reverse, packed, relu; } Sizes;
typedef struct { double value[MOST]; char memory[8 * MOST]; } Numbers; /* as doubles, and as the type has them */

static double uniform(void) { return 2.0 * rand() / RAND_MAX - 1; }

static double number(long type, const char *at)
{
    return type == FLOAT ? *(const float *)at : type == DOUBLE ? *(const double *)at
        : type == BFLOAT ? float_of_bfloat(*(const uint16_t *)at) : float_of_half(*(const uint16_t *)at);
}

static void write_number(long type, double x, char *at)
{
    switch (type) {
    case FLOAT: *(float *)at = (float)x; break;
    case DOUBLE: *(double *)at = x; break;
    case BFLOAT: *(uint16_t *)at = bfloat_of_float((float)x); break;
    default: *(uint16_t *)at = half_of_float((float)x);
    }
}

static void fill(Numbers *x, long type, long count, double scale)
{
    for (long i = 0; i < count; i++) {
        write_number(type, scale * uniform(), x->memory + i * WIDTH[type]);
        x->value[i] = number(type, x->memory + i * WIDTH[type]);
    }
}

/* Rows of a step and a batch, or of a batch alone; a matrix's rows are those of its batch. */
static View view(Numbers *x, long type, long step, long row, long column)
{
    const long w = WIDTH[type];
    return (View){x->memory, type, 0, step * w, row * w, column * w};
}

__attribute__((noinline)) static double worst(const Numbers *found, const double *expected, long type, long count)
{
    double error = 0, size = 1;
    for (long i = 0; i < count; i++) {
        error = fmax(error, fabs(number(type, found->memory + i * WIDTH[type]) - expected[i]));
        size = fmax(size, fabs(expected[i]));
    }
    return error / size;
}

static Numbers x, u, w, b, b2, h0, y, c, c_last, last, dx, du, dw, db, db2, dh0;
static double h[MOST], dz[MOST], expected[MOST], carry[MOST];
static int64_t sizes[64];

static long size(const Sizes *s, long t) { return t < 0 || t >= s->T ? 0 : s->packed ? sizes[t] : s->B; }

static long begins(const Sizes *s, long t)
{
    long row = 0;
    for (long i = 0; i < t; i++)
        row += size(s, i);
    return row;
}

/* h_t = phi(x_t u^T + b + b' + h_{t-1} w^T), with the numbers before step t of row b. */
static const double *before(const Sizes *s, long t, long row)
{
    const long other = s->reverse ? t + 1 : t - 1;
    return row < size(s, other) ? h + (begins(s, other) + row) * s->H : h0.value + row * s->H;
}

static void forward_loop(const Sizes *s)
{
    for (long i = 0; i < s->T; i++) {
        const long t = s->reverse ? s->T - 1 - i : i;
        for (long r = 0; r < size(s, t); r++)
            for (long j = 0; j < s->H; j++) {
                double z = b.value[j] + b2.value[j];
                for (long k = 0; k < s->I; k++)
                    z += x.value[(begins(s, t) + r) * s->I + k] * u.value[j * s->I + k];
                for (long k = 0; k < s->H; k++)
                    z += before(s, t, r)[k] * w.value[j * s->H + k];
                h[(begins(s, t) + r) * s->H + j] = s->relu ? fmax(z, 0) : tanh(z);
            }
    }
}

static void backward_loop(const Sizes *s)
{
    for (long i = 0; i < s->B * s->H; i++)
        carry[i] = c_last.value[i];
    for (long i = 0; i < s->T; i++) {
        const long t = s->reverse ? i : s->T - 1 - i;
        for (long r = 0; r < size(s, t); r++) {
            double *g = dz + (begins(s, t) + r) * s->H;
            for (long j = 0; j < s->H; j++) {
                const double state = h[(begins(s, t) + r) * s->H + j];
                const double slope = s->relu ? state > 0 : 1 - state * state;
                g[j] = slope * (c.value[(begins(s, t) + r) * s->H + j] + carry[r * s->H + j]);
            }
            for (long k = 0; k < s->H; k++) {
                carry[r * s->H + k] = 0;
                for (long j = 0; j < s->H; j++)
                    carry[r * s->H + k] += g[j] * w.value[j * s->H + k];
            }
        }
    }
}

static double check_weights(const Sizes *s, long type)
{
    double error = 0;
    for (int of_states = 0; of_states < 2; of_states++) {
        const long columns = of_states ? s->H : s->I;
        for (long j = 0; j < s->H; j++)
            for (long k = 0; k < columns; k++) {
                double sum = 0;
                for (long t = 0; t < s->T; t++)
                    for (long r = 0; r < size(s, t); r++)
                        sum += dz[(begins(s, t) + r) * s->H + j]
                            * (of_states ? before(s, t, r)[k] : x.value[(begins(s, t) + r) * s->I + k]);
                expected[j * columns + k] = sum;
            }
        error = fmax(error, worst(of_states ? &dw : &du, expected, type, s->H * columns));
    }
    return error;
}

static double check_rest(const Sizes *s, long type)
{
    const long N = begins(s, s->T);
    for (long row = 0; row < N; row++)
        for (long k = 0; k < s->I; k++) {
            expected[row * s->I + k] = 0;
            for (long j = 0; j < s->H; j++)
                expected[row * s->I + k] += dz[row * s->H + j] * u.value[j * s->I + k];
        }
    double error = worst(&dx, expected, type, N * s->I);
    for (long j = 0; j < s->H; j++) {
        expected[j] = 0;
        for (long row = 0; row < N; row++)
            expected[j] += dz[row * s->H + j];
    }
    error = fmax(error, fmax(worst(&db, expected, type, s->H), worst(&db2, expected, type, s->H)));
    return fmax(error, worst(&dh0, carry, type, s->B * s->H));
}

/* The largest error of one layer's states and gradients. */
static double run(int variant, long type, const Sizes *s)
{
    const long N = begins(s, s->T), H = s->H, I = s->I, row = s->packed ? 0 : s->B;
    fill(&x, type, N * I, 1), fill(&u, type, H * I, 1 / sqrt(I)), fill(&w, type, H * H, 1 / sqrt(H)), fill(&b, type, H, 0.5);
    fill(&b2, type, H, 0.5), fill(&h0, type, s->B * H, 1), fill(&c, type, N * H, 1), fill(&c_last, type, s->B * H, 1);
    Job job = {.kind = s->relu ? RELU : TANH, .reverse = s->reverse, .packed = s->packed, .type = type, .threads = 2, .G = 1,
               .T = s->T, .B = s->B, .H = H, .I = I, .steps = s->packed ? N : s->T, .sizes = sizes};
    const long rows = s->packed ? 1 : row; /* from step to step */
    job.x = view(&x, type, rows * I, I, 1), job.y = view(&y, type, rows * H, H, 1);
    job.u = view(&u, type, 0, 1, I), job.w = view(&w, type, 0, 1, H); /* transposed */
    job.bias[0] = view(&b, type, 0, 0, 1), job.bias[1] = view(&b2, type, 0, 0, 1);
    job.start = view(&h0, type, 0, H, 1), job.end = view(&last, type, 0, H, 1);
    if (run_jobs(variant, &job, 1, 1, 2))
        return INFINITY;
    forward_loop(s);
    double error = worst(&y, h, type, N * H);
    for (long i = 0; i < N * H; i++) /* backward from the states as they are kept */
        h[i] = number(type, y.memory + i * WIDTH[type]);
    backward_loop(s);
    Job back = job;
    back.kind = SLOPE + job.kind, back.reverse = !s->reverse, back.z = view(&c, type, rows * H, H, 1);
    back.h = job.y, back.w = view(&w, type, 0, H, 1), back.u = view(&u, type, 0, I, 1);
    back.start = view(&c_last, type, 0, H, 1), back.end = view(&dh0, type, 0, H, 1), back.h0 = job.start;
    back.dx = view(&dx, type, rows * I, I, 1), back.du = view(&du, type, 0, I, 1), back.dw = view(&dw, type, 0, H, 1);
    back.db[0] = view(&db, type, 0, 0, 1), back.db[1] = view(&db2, type, 0, 0, 1);
    if (run_jobs(variant, &back, 1, 1, 2))
        return INFINITY;
    return fmax(error, fmax(check_weights(s, type), check_rest(s, type)));
}

int main(void)
{
    const Sizes all[] = {{1, 1, 1, 1}, {1, 2, 33, 17}, {5, 3, 4, 7}, {9, 13, 20, 35}, {40, 2, 3, 64}, {3, 30, 70, 40}};
    int failed = 0;
    for (int variant = 0; variant < variant_count; variant++)
        for (long type = 0; type < TYPES && supported(variant); type++) {
            double error = 0;
            for (unsigned i = 0; i < 8 * sizeof all / sizeof *all; i++) {
                Sizes s = all[i / 8];
                s.reverse = i & 1, s.packed = i >> 1 & 1, s.relu = i >> 2 & 1;
                for (long t = 0; t < s.T; t++)
                    sizes[t] = t < (s.T + 1) / 2 ? s.B : (s.B + 1) / 2;
                error = fmax(error, run(variant, type, &s));
            }
            printf("%-8s type %ld: largest error %.2g\n", variant_of(variant, FLOAT)->name, type, error);
            failed |= !(error <= BOUND[type]);
        }
    return failed;
}
