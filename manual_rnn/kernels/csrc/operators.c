/* The operators of manual_rnn on the CPU: torch's dispatcher calls these functions, in Python, in compiled code and in
 * a C++ program alike.
 *
 *     manual_rnn::network, network_vjp, elman, linear_recurrence    the project's own
 *     aten::_cudnn_rnn, _cudnn_rnn_backward                         cuDNN's, which have no kernel on a CPU; their
 *                                                                   autograd node is torch's own, in C++
 *
 * Loading this library registers all of it. A kernel owns its arguments: it releases them, and raises afterwards if
 * something didn't fit.
 */
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cpu_variants.h"
#include "operators.h"
#include "recurrence.h"

#define EXPORT __attribute__((visibility("default")))

enum { PER_CORE = 8 }; /* threads at most: libgomp ends the process where it can't start all it's asked for */

static long most_threads = 1; /* until the library is loaded */
static int variant;
static const char *registered = "the library was never loaded"; /* NULL: all is */

void hold(Held *held, Value tensor)
{
    if (!tensor)
        return;
    if (!held->values)
        held->values = held->first, held->room = sizeof held->first / sizeof(Value);
    if (held->count == held->room) {
        Value *more = malloc(2 * held->room * sizeof(Value));
        if (!more)
            abort();
        memcpy(more, held->values, held->count * sizeof(Value));
        if (held->values != held->first)
            free(held->values);
        held->values = more, held->room *= 2;
    }
    held->values[held->count++] = tensor;
}

void release_all(Held *held)
{
    for (size_t i = 0; i < held->count; i++)
        release_tensor(held->values[i]);
    if (held->values != held->first)
        free(held->values);
}

Value hold_optional(Held *held, Value holder)
{
    const Value tensor = take_optional(holder);
    hold(held, tensor);
    return tensor;
}

bool read(Held *held, Tensor *x, const char *name, Value from)
{
    Handle alias = NULL;
    *x = (Tensor){.name = name};
    if (!is_defined(from))
        return true;
    const bool fine = read_tensor(x, name, from, &alias);
    hold(held, (Value)alias);
    return fine;
}

bool read_list(Held *held, Value list, Tensor *to, long count, long group, long each, const char *name)
{
    bool fine = true;
    for (long i = 0; i < count; i++) {
        const Value item = list_item(list, i);
        hold(held, item);
        fine = fine && read(held, &to[i / group * each + i % group], name, item);
    }
    release_list(list);
    return fine;
}

#define AS_ROW(kind, name, number) {name, kind},
static const struct { const char *name; long kind; } NAMED[] = {NONLINEARITIES(AS_ROW)};
enum { NAMES = sizeof NAMED / sizeof *NAMED };

bool is_nonlinearity(Value mode)
{
    for (int i = 0; i < NAMES; i++)
        if (NAMED[i].kind == (long)mode)
            return true;
    return false;
}

static bool read_kind(long *kind, Value string)
{
    const char *name = string_of(string);
    int i = 0;
    while (i < NAMES && strcmp(name, NAMED[i].name))
        i++;
    const bool fine = i < NAMES || fail("expected the name of a nonlinearity, got '%.32s'", name);
    *kind = fine ? NAMED[i].kind : 0;
    release_string(string);
    return fine;
}

bool begin_network(Network *net, long weights)
{
    const long groups = net->D * net->each;
    if (weights < groups || weights % groups)
        return fail("network: expected %ld weights for each layer, got %ld", groups, weights);
    net->variant = variant, net->threads = torch_threads(), net->most = most_threads;
    net->L = weights / groups;
    net->weights = calloc(2 * weights + 2 * net->L + 2, sizeof(Tensor));
    net->states = net->weights + weights, net->gradients = net->states + 2 * net->L;
    return net->weights || fail("network: no memory for %ld weights", weights);
}

void end_network(Network *net) { free(net->weights), free(net->sizes); }

/* A new tensor with the axis of an ensemble in front, if there is one; batch_first swaps the first two axes of
 * time-major memory. */
static bool make(const Network *net, Value *made, Tensor *x, int dims, const int64_t *shape, bool batch_first)
{
    int64_t sizes[DIMS] = {net->G}, strides[DIMS], next = 1;
    const int g = net->G > 0;
    memcpy(sizes + g, shape, dims * sizeof *shape);
    for (int i = g + dims; i-- > 0; next *= sizes[i])
        strides[i] = next;
    if (batch_first) {
        const int64_t T = sizes[0], step = strides[0];
        sizes[0] = sizes[1], sizes[1] = T, strides[0] = strides[1], strides[1] = step;
    }
    return new_tensor(made, x, (int)net->type, g + dims, sizes, strides);
}

bool make_results(Network *net, Value *output, Value *h_n)
{
    int64_t shape[DIMS];
    int dims = states_shape(net, shape);
    if (!make(net, output, &net->output, dims, shape, net->batch_first && !net->sizes))
        return false;
    dims = hx_shape(net, shape);
    return make(net, h_n, &net->h_n, dims, shape, false);
}

void release_results(const Value *results, size_t count)
{
    for (size_t i = 0; i < count; i++)
        release_tensor(results[i]);
}

/* network(input, hx?, weights, batch_sizes?, nonlinearity, bidirectional, has_biases, save_states, alpha?) */
static bool run_network(Held *held, const Value *args, Network *net, Value *results, Value *states)
{
    const Value input = args[0], hx = hold_optional(held, args[1]), sizes = hold_optional(held, args[3]);
    const Value alpha = hold_optional(held, args[8]);
    const long weights = list_size(args[2]);
    int64_t shape[DIMS];
    hold(held, input);
    net->D = 1 + (args[5] & 1), net->each = args[6] & 1 ? 4 : 2;
    bool fine = read_kind(&net->kind, args[4]);
    fine = begin_network(net, weights) && fine;
    if (!net->weights) {
        release_list(args[2]);
        return false;
    }
    fine = read_list(held, args[2], net->weights, weights, 1, 1, "a weight") && fine;
    int64_t T = 0;
    fine = fine && (!sizes || read_sizes(&net->sizes, &T, sizes));
    net->T = T;
    fine = fine && read(held, &net->x, "the input", input) && read(held, &net->hx, "hx", hx)
        && read(held, &net->alpha, "alpha", alpha);
    net->G = net->weights[0].dims == 3 ? net->weights[0].size[0] : 0;
    if (!fine || !measure_network(net) || !check_network(net) || !make_results(net, &results[0], &results[1]))
        return false;
    const int dims = states_shape(net, shape);
    for (long i = 0; args[7] & 1 && i < saved_states(net); i++)
        if (!make(net, &states[i], &net->states[i], dims, shape, false))
            return false;
    return network_forward(net);
}

static void network_kernel(Value *stack, uint64_t arguments, uint64_t count)
{
    Held held = {0};
    Network net = {0};
    Value results[2] = {0};
    (void)arguments, (void)count;
    const bool saves = stack[7] & 1;
    const size_t most = list_size(stack[2]);
    Value *states = calloc(most + 1, sizeof(Value));
    const bool done = states && run_network(&held, stack, &net, results, states);
    const long saved = saves ? saved_states(&net) : 0;
    if (done)
        stack[0] = results[0], stack[1] = results[1], stack[2] = list_of(states, saved);
    else
        release_results(results, 2), release_results(states, most);
    free(states);
    end_network(&net), release_all(&held);
    if (!done)
        raise_error();
}

bool make_gradients(Network *net, const bool *need, Value *made)
{
    const long weights = net->L * net->D * net->each;
    for (long i = 0; i < weights + 2; i++) {
        int64_t shape[DIMS];
        const int dims = i == 0 ? input_shape(net, shape) : i == 1 ? hx_shape(net, shape) : weight_shape(net, i - 2, shape);
        const bool swapped = i == 0 && net->batch_first && !net->sizes;
        if (need[i] && !make(net, &made[i], &net->gradients[i], dims, shape, swapped))
            return false;
    }
    return true;
}

/* network_vjp(need, input, hx?, matrices, states, grad_output?, grad_h_n?, batch_sizes?, nonlinearity, bidirectional,
 * alpha?) */
static bool run_network_vjp(Held *held, const Value *args, Network *net, const bool *need, Value *made)
{
    const Value hx = hold_optional(held, args[2]), c = hold_optional(held, args[5]);
    const Value c_last = hold_optional(held, args[6]), sizes = hold_optional(held, args[7]);
    const Value alpha = hold_optional(held, args[10]);
    const long flags = list_size(args[0]), matrices = list_size(args[3]), layers = list_size(args[4]);
    hold(held, args[1]);
    release_list(args[0]);
    net->D = 1 + (args[9] & 1), net->each = flags - 2 == 2 * matrices ? 4 : 2;
    bool fine = read_kind(&net->kind, args[8]) && read(held, &net->alpha, "alpha", alpha);
    fine = fine && (flags - 2 == matrices * net->each / 2
        || fail("network_vjp: expected a flag for the input, hx and each weight, got %ld", flags));
    fine = fine && begin_network(net, flags - 2) && (layers == saved_states(net)
        || fail("network_vjp: expected %ld tensors of states, got %ld", saved_states(net), layers));
    if (!fine) {
        release_list(args[3]), release_list(args[4]);
        return false;
    }
    fine = read_list(held, args[3], net->weights, matrices, 2, net->each, "a matrix");
    fine = read_list(held, args[4], net->states, layers, 1, 1, "states") && fine;
    int64_t T = 0;
    fine = fine && (!sizes || read_sizes(&net->sizes, &T, sizes));
    net->T = T;
    fine = fine && read(held, &net->x, "the input", args[1]) && read(held, &net->hx, "hx", hx)
        && read(held, &net->c, "grad_output", c) && read(held, &net->c_last, "grad_h_n", c_last);
    net->G = net->weights[0].dims == 3 ? net->weights[0].size[0] : 0;
    return fine && measure_network(net) && check_network(net) && make_gradients(net, need, made)
        && network_backward(net);
}

static void network_vjp_kernel(Value *stack, uint64_t arguments, uint64_t count)
{
    Held held = {0};
    Network net = {0};
    (void)arguments, (void)count;
    const size_t flags = list_size(stack[0]);
    bool *need = calloc(flags + 1, sizeof(bool));
    Value *made = calloc(flags + 1, sizeof(Value));
    for (size_t i = 0; need && i < flags; i++)
        need[i] = list_item(stack[0], i) & 1;
    const bool done = need && made && run_network_vjp(&held, stack, &net, need, made);
    size_t wanted = 0;
    for (size_t i = 0; done && i < flags; i++)
        if (made[i])
            made[wanted++] = made[i];
    if (done)
        stack[0] = list_of(made, wanted);
    else
        release_results(made, flags);
    free(need), free(made);
    end_network(&net), release_all(&held);
    if (!done)
        raise_error();
}

/* elman(z, h0, w, batch_sizes?, nonlinearity, reverse), linear_recurrence(v, h, a, ...) */
static bool run_one(Held *held, const Value *args, bool slope, Recurrence *all, Value *made)
{
    const Value sizes = hold_optional(held, args[3]);
    int64_t strides[DIMS], shape[DIMS], next = 1;
    for (int i = 0; i < 3; i++)
        hold(held, args[i]);
    *all = (Recurrence){.variant = variant, .threads = torch_threads(), .most = most_threads, .reverse = args[5] & 1};
    bool fine = read_kind(&all->kind, args[4]);
    all->kind += slope ? SLOPE : 0;
    fine = fine && (!sizes || read_sizes(&all->sizes, &all->T, sizes)) && read(held, &all->z, "the input", args[0])
        && read(held, &all->other, slope ? "h" : "h0", args[1]) && read(held, &all->w, "w", args[2]);
    if (!fine || !check_recurrence(all))
        return false;
    for (long i = all->z.dims; i-- > 0; next *= shape[i])
        shape[i] = all->z.size[i], strides[i] = next;
    return new_tensor(made, &all->y, (int)all->z.type, (int)all->z.dims, shape, strides) && run_recurrence(all);
}

static void recurrence_kernel(Value *stack, bool slope)
{
    Held held = {0};
    Recurrence all;
    Value made = 0;
    const bool done = run_one(&held, stack, slope, &all, &made);
    if (done)
        stack[0] = made;
    else
        release_tensor(made);
    free(all.sizes), release_all(&held);
    if (!done)
        raise_error();
}

static void elman_kernel(Value *stack, uint64_t arguments, uint64_t count)
{
    (void)arguments, (void)count;
    recurrence_kernel(stack, false);
}

static void linear_recurrence_kernel(Value *stack, uint64_t arguments, uint64_t count)
{
    (void)arguments, (void)count;
    recurrence_kernel(stack, true);
}

static const struct { const char *schema, *name; Kernel *kernel; } OPERATORS[] = {
    {"elman(Tensor z, Tensor h0, Tensor w, Tensor? batch_sizes, str nonlinearity, bool reverse) -> Tensor", "elman",
     elman_kernel},
    {"linear_recurrence(Tensor v, Tensor h, Tensor a, Tensor? batch_sizes, str nonlinearity, bool reverse) -> Tensor",
     "linear_recurrence", linear_recurrence_kernel},
    {"network(Tensor input, Tensor? hx, Tensor[] weights, Tensor? batch_sizes, str nonlinearity, bool bidirectional, "
     "bool has_biases, bool save_states, Tensor? alpha=None) -> (Tensor, Tensor, Tensor[])", "network", network_kernel},
    {"network_vjp(bool[] need, Tensor input, Tensor? hx, Tensor[] matrices, Tensor[] states, Tensor? grad_output, "
     "Tensor? grad_h_n, Tensor? batch_sizes, str nonlinearity, bool bidirectional, Tensor? alpha=None) -> Tensor[]",
     "network_vjp",
     network_vjp_kernel},
};

/* A child made by fork has none of OpenMP's threads, and asking for them would hang, in torch's products too. So they
 * are released before, and both parent and child get new ones when they next want some. Within a parallel region they
 * can't be, and the child goes on alone. */
static int threads_released;
static void before_fork(void) { threads_released = !omp_pause_resource_all(omp_pause_soft); }
static void after_fork(void) { most_threads = threads_released ? most_threads : 1; }

/* The backward of ATen's operator once more: what its autograd node calls, below autograd. */
#define BACKWARD_SCHEMA \
    "network_backward(Tensor input, Tensor[] weight, int weight_stride0, Tensor weight_buf, Tensor hx, Tensor? cx, " \
    "Tensor output, Tensor? grad_output, Tensor? grad_hy, Tensor? grad_cy, int mode, SymInt hidden_size, " \
    "SymInt proj_size, int num_layers, bool batch_first, float dropout, bool train, bool bidirectional, " \
    "SymInt[] batch_sizes, Tensor? dropout_state, Tensor reserve, bool[4] output_mask) " \
    "-> Tensor[]"

/* ATen's own operators; without them the project's serve. */
static bool register_aten(void)
{
    return define_operator(BACKWARD_SCHEMA)
        && register_kernel("manual_rnn", "CPU", "network_backward", network_backward_kernel)
        && register_kernel("aten", "CPU", "_cudnn_rnn", cudnn_rnn_kernel)
        && register_kernel("aten", "AutogradCPU", "_cudnn_rnn_backward", cudnn_rnn_backward_autograd);
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
            snprintf(schema, sizeof schema, "%s%s", name, OPERATORS[i].schema + strlen(OPERATORS[i].name));
            if (!define_operator(schema) || !register_kernel("manual_rnn", "CPU", name, OPERATORS[i].kernel))
                return false;
        }
    return true;
}

__attribute__((constructor)) static void load(void)
{
    while (variant < variant_count - 1 && !supported(variant))
        variant++;
    most_threads = PER_CORE * (long)omp_get_num_procs();
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
EXPORT int manual_rnn_variant(void) { return variant; }
EXPORT int manual_rnn_set_variant(int index)
{
    variant = manual_rnn_variant_name(index) ? index : variant;
    return variant;
}

/* Multiply-adds of registers alone; returns how many were made. */
EXPORT double manual_rnn_peak(int type, long rounds)
{
    return type < 0 || type >= TYPES || rounds < 1 ? 0 : variant_of(variant, type)->peak(rounds);
}
