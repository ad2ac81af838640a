/* The library: the operators of manual_rnn on the CPU, which torch's dispatcher calls in Python, in compiled code and
 * in a C++ program alike.
 *
 *     manual_rnn::network, network_vjp, elman, linear_recurrence    the project's own
 *     manual_rnn::copies                                            of what a compiled backward pass reads
 *     aten::_cudnn_rnn, _cudnn_rnn_backward                         cuDNN's, which have no kernel on a CPU; their
 *                                                                   autograd node is torch's own, in C++
 *
 * Loading it registers the project's own; cuDNN's are registered when Python asks for it.
 */
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include "cpu_variants.h"
#include "operators.h"

#define EXPORT __attribute__((visibility("default")))

enum { PER_CORE = 8 }; /* threads at most: libgomp ends the process where it can't start all it's asked for */

Engine engine = {.most_threads = 1};
static const char *registered = "the library was never loaded"; /* NULL: all is */

static const struct { const char *name, *signature; Kernel *kernel; } OPERATORS[] = {
    {"elman", "(Tensor z, Tensor h0, Tensor w, Tensor? batch_sizes, str nonlinearity, bool reverse) -> Tensor",
     elman_kernel},
    {"linear_recurrence",
     "(Tensor v, Tensor h, Tensor a, Tensor? batch_sizes, str nonlinearity, bool reverse) -> Tensor",
     linear_recurrence_kernel},
    {"network", "(Tensor input, Tensor? hx, Tensor[] weights, Tensor? batch_sizes, str nonlinearity, "
     "bool bidirectional, bool has_biases, bool save_states, Tensor? alpha=None) -> (Tensor, Tensor, Tensor[])",
     network_kernel},
    {"network_vjp", "(bool[] need, Tensor input, Tensor? hx, Tensor[] matrices, Tensor[] states, Tensor? grad_output, "
     "Tensor? grad_h_n, Tensor? batch_sizes, str nonlinearity, bool bidirectional, Tensor? alpha=None) -> Tensor[]",
     network_vjp_kernel},
};

/* The backward of ATen's operator once more: what its autograd node calls, below autograd. */
#define BACKWARD_SCHEMA \
    "network_backward(Tensor input, Tensor[] weight, int weight_stride0, Tensor weight_buf, Tensor hx, Tensor? cx, " \
    "Tensor output, Tensor? grad_output, Tensor? grad_hy, Tensor? grad_cy, int mode, SymInt hidden_size, " \
    "SymInt proj_size, int num_layers, bool batch_first, float dropout, bool train, bool bidirectional, " \
    "SymInt[] batch_sizes, Tensor? dropout_state, Tensor reserve, bool[4] output_mask) " \
    "-> Tensor[]"

/* A child made by fork has none of OpenMP's threads, and asking for them would hang, in torch's products too. So they
 * are released before, and both parent and child get new ones when they next want some. Within a parallel region they
 * can't be, and the child goes on alone. */
static bool threads_released;
static void before_fork(void) { threads_released = !omp_pause_resource_all(omp_pause_soft); }
static void after_fork(void) { engine.most_threads = threads_released ? engine.most_threads : 1; }

/* ATen's own operators; without them the project's serve. */
static bool register_aten(void)
{
    return (finds_tangents() || fail("this torch lacks TensorImpl::_fw_grad")) && define_operator(BACKWARD_SCHEMA)
        && register_kernel("manual_rnn", "CPU", "network_backward", network_backward_kernel)
        && register_kernel("aten", "CPU", "_cudnn_rnn", cudnn_rnn_kernel)
        && register_kernel("aten", "AutogradCPU", "_cudnn_rnn_backward", cudnn_rnn_backward_kernel)
        && register_kernel("aten", "CPU", "_cudnn_rnn_backward", cudnn_rnn_backward_kernel); /* in inference mode */
}

/* The second is for compiled code: it has no rule of autograd, whose derivatives are part of the graph. */
static const char *const OVERLOADS[] = {"", ".compiled"};

static bool register_all(void)
{
    if (!torch_abi_load())
        return false;
    for (size_t i = 0; i < sizeof OPERATORS / sizeof *OPERATORS; i++)
        for (size_t j = 0; j < sizeof OVERLOADS / sizeof *OVERLOADS; j++) {
            char name[64], schema[512];
            snprintf(name, sizeof name, "%s%s", OPERATORS[i].name, OVERLOADS[j]);
            snprintf(schema, sizeof schema, "%s%s", name, OPERATORS[i].signature);
            if (!define_operator(schema) || !register_kernel("manual_rnn", "CPU", name, OPERATORS[i].kernel))
                return false;
        }
    return define_operator("copies(Tensor[] tensors) -> Tensor[]")
        && register_kernel("manual_rnn", "CPU", "copies", copies_kernel);
}

__attribute__((constructor)) static void load(void)
{
    while (engine.variant < variant_count - 1 && !supported(engine.variant))
        engine.variant++;
    engine.most_threads = PER_CORE * (long)omp_get_num_procs();
    pthread_atfork(before_fork, NULL, after_fork);
    registered = register_all() ? NULL : error_message();
}

/* Takes ATen's operators, once their schemas have been looked at; why torch didn't let it, or NULL. */
EXPORT const char *manual_rnn_register_aten(void) { return register_aten() ? NULL : error_message(); }

/* Why the operators have no kernels here, or NULL. */
EXPORT const char *manual_rnn_unavailable(void) { return registered; }

/* The instruction sets that there is code for, from the widest vectors on; which one runs; and another one to run. */
EXPORT const char *manual_rnn_variant_name(int index)
{
    return index < 0 || index >= variant_count || !supported(index) ? NULL : variant_of(index, FLOAT)->name;
}
EXPORT int manual_rnn_variant(void) { return engine.variant; }
EXPORT int manual_rnn_set_variant(int index)
{
    engine.variant = manual_rnn_variant_name(index) ? index : engine.variant;
    return engine.variant;
}

/* Multiply-adds of registers alone; returns how many were made. */
EXPORT double manual_rnn_peak(int type, long rounds)
{
    return type < 0 || type >= TYPES || rounds < 1 ? 0 : variant_of(engine.variant, type)->peak(rounds);
}
