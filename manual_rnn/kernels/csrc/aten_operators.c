/* aten::_cudnn_rnn and aten::_cudnn_rnn_backward on the CPU. torch has no kernel of its own for them there; what a
 * training step gains is their autograd node, which is torch's, in C++. Its backward calls one of two operators:
 *
 *     manual_rnn::network_backward             C
 *     manual_rnn::composed_network_backward    Python: what is itself to be differentiated
 *
 *     forward     states, h_n, output, -, -  <-  input, weights, -, hx, ...
 *
 * The node saves its first result, the states of every layer, `(L, T, B, D * H)`, which no user sees: so the output,
 * its third result, may be edited in place. Without `train` there are no states. A leak's alpha comes as `cx`, which an
 * Elman network hasn't; its rates lie behind the states.
 */
#include <stdlib.h>
#include <string.h>
#include "operators.h"

/* Where each argument stands on the stack. */
enum {
    INPUT, WEIGHT, WEIGHT_STRIDE0, WEIGHT_BUF, HX, CX, MODE, HIDDEN_SIZE, PROJ_SIZE, NUM_LAYERS, BATCH_FIRST, DROPOUT,
    TRAIN, BIDIRECTIONAL, BATCH_SIZES, DROPOUT_STATE
};
enum {
    B_INPUT, B_WEIGHT, B_WEIGHT_STRIDE0, B_WEIGHT_BUF, B_HX, B_CX, B_OUTPUT, B_GRAD_OUTPUT, B_GRAD_HY, B_GRAD_CY, B_MODE,
    B_HIDDEN_SIZE, B_PROJ_SIZE, B_NUM_LAYERS, B_BATCH_FIRST, B_DROPOUT, B_TRAIN, B_BIDIRECTIONAL, B_BATCH_SIZES,
    B_DROPOUT_STATE, B_RESERVE, B_OUTPUT_MASK
};

/* batch_sizes as a list of numbers, which is released. */
static bool read_size_list(Network *net, Value list)
{
    net->T = list_size(list);
    net->sizes = net->T ? malloc(net->T * sizeof(int64_t)) : NULL;
    for (long t = 0; net->sizes && t < net->T; t++)
        net->sizes[t] = (int64_t)list_item(list, t);
    release_list(list);
    return !net->T || net->sizes || fail("no memory for batch_sizes");
}

static bool read_weights(Held *held, Network *net, Value list, const Value *options, bool bidirectional)
{
    const long weights = list_size(list);
    net->D = 1 + bidirectional, net->each = (long)options[0], net->kind = (long)options[1];
    const bool known = net->each == 2 || net->each == 4 || fail("_cudnn_rnn: expected 2 or 4 weights, no %ld", net->each);
    if (!known || !begin_network(net, weights)) {
        release_list(list);
        return false;
    }
    return read_list(held, list, net->weights, weights, 1, 1, "a weight");
}

/* From `mode` on, in either operator's order: an Elman network without projection and dropout, of these weights. */
static bool check_options(const Network *net, const Value *options)
{
    enum { KIND, WIDTH_OF_STATE, PROJECTION, LAYERS, FIRST, DROPPED, TRAINS };
    double dropout;
    memcpy(&dropout, &options[DROPPED], sizeof dropout);
    if (!is_nonlinearity(options[KIND]) || options[PROJECTION] || (dropout > 0 && options[TRAINS] & 1))
        return fail("_cudnn_rnn: on the CPU there are Elman networks alone, without projection or dropout");
    return (net->L == (long)options[LAYERS] && net->H == (long)options[WIDTH_OF_STATE])
        || fail("_cudnn_rnn: expected hidden_size %ld and num_layers %ld", net->H, net->L);
}

/* No first states are an empty tensor of one axis. */
static bool read_hx(Held *held, Network *net, Value from)
{
    if (!read(held, &net->hx, "hx", from))
        return false;
    if (net->hx.dims == 1 && !net->hx.size[0])
        net->hx = (Tensor){.name = "hx"};
    return true;
}

/* States of all layers as one tensor, and of each as a part of it. */
static void split_states(Network *net, const Tensor *all)
{
    for (long i = 0; i < saved_states(net) && all->data; i++) {
        Tensor *part = &net->states[i];
        *part = (Tensor){.name = "states", .type = all->type, .dims = all->dims - 1};
        part->data = all->data + i * all->stride[0] * WIDTH[all->type];
        for (long j = 0; j < part->dims; j++)
            part->size[j] = all->size[j + 1], part->stride[j] = all->stride[j + 1];
    }
}

static bool make_states(Network *net, Value *made)
{
    int64_t shape[DIMS] = {saved_states(net)};
    Tensor all;
    const int dims = states_shape(net, shape + 1);
    if (!new_tensor(made, &all, (int)net->type, 1 + dims, shape, NULL))
        return false;
    split_states(net, &all);
    return true;
}

static bool make_empty(const Network *net, Value *made)
{
    const int64_t none[] = {0};
    Tensor unread;
    return new_tensor(made, &unread, (int)net->type, 1, none, NULL);
}

static bool run_forward(Held *held, const Value *args, Network *net, Value *results)
{
    const Value options[] = {args[WEIGHT_STRIDE0], args[MODE]};
    hold(held, args[INPUT]), hold(held, args[HX]);
    const Value alpha = hold_optional(held, args[CX]);
    hold_optional(held, args[WEIGHT_BUF]), hold_optional(held, args[DROPOUT_STATE]);
    bool fine = read_size_list(net, args[BATCH_SIZES]);
    fine = read_weights(held, net, args[WEIGHT], options, args[BIDIRECTIONAL] & 1) && fine;
    fine = fine && read(held, &net->x, "the input", args[INPUT]) && read_hx(held, net, args[HX])
        && read(held, &net->alpha, "alpha", alpha);
    net->batch_first = (args[BATCH_FIRST] & 1) && !net->sizes;
    if (!fine || !measure_network(net) || !check_network(net) || !check_options(net, &args[MODE]))
        return false;
    return make_results(net, &results[2], &results[1])
        && (args[TRAIN] & 1 ? make_states(net, &results[0]) : make_empty(net, &results[0]))
        && make_empty(net, &results[3]) && make_empty(net, &results[4]) && network_forward(net);
}

void cudnn_rnn_kernel(Value *stack, uint64_t arguments, uint64_t count)
{
    Held held = {0};
    Network net = {0};
    Value results[5] = {0};
    (void)arguments, (void)count;
    const bool done = run_forward(&held, stack, &net, results);
    if (done)
        memcpy(stack, results, sizeof results);
    else
        release_results(results, 5);
    end_network(&net), release_all(&held);
    if (!done)
        raise_error();
}

static bool run_backward(Held *held, const Value *args, Network *net, Value *made, const bool *mask)
{
    const Value options[] = {args[B_WEIGHT_STRIDE0], args[B_MODE]};
    const Value unread = hold_optional(held, args[B_GRAD_OUTPUT]);
    const Value c_last = hold_optional(held, args[B_GRAD_HY]), c = hold_optional(held, args[B_GRAD_CY]);
    Tensor states;
    hold(held, args[B_INPUT]), hold(held, args[B_WEIGHT_BUF]), hold(held, args[B_HX]), hold(held, args[B_OUTPUT]);
    hold(held, args[B_RESERVE]), hold_optional(held, args[B_DROPOUT_STATE]);
    const Value alpha = hold_optional(held, args[B_CX]);
    bool fine = read_size_list(net, args[B_BATCH_SIZES]);
    fine = read_weights(held, net, args[B_WEIGHT], options, args[B_BIDIRECTIONAL] & 1) && fine;
    fine = fine && (!is_defined(unread) || fail("_cudnn_rnn_backward: its states have no cotangent here"));
    fine = fine && read(held, &net->x, "the input", args[B_INPUT]) && read_hx(held, net, args[B_HX])
        && read(held, &net->alpha, "alpha", alpha) && read(held, &states, "states", args[B_OUTPUT])
        && read(held, &net->c, "grad_output", c) && read(held, &net->c_last, "grad_h_n", c_last);
    net->batch_first = (args[B_BATCH_FIRST] & 1) && !net->sizes;
    if (!fine || !measure_network(net) || !check_options(net, &args[B_MODE]))
        return false;
    if (states.dims < 1 || states.size[0] != saved_states(net))
        return fail("_cudnn_rnn_backward: expected %ld tensors of states", saved_states(net));
    split_states(net, &states);
    if (!check_network(net))
        return false;
    const long weights = net->L * net->D * net->each;
    bool *need = malloc(weights + 2);
    for (long i = 0; need && i < weights + 2; i++)
        need[i] = mask[i < 2 ? i : 3] && (i != 1 || net->hx.dims);
    fine = need && make_gradients(net, need, made) && network_backward(net);
    free(need);
    return fine;
}

/* The gradients that the mask asks for, as one list. */
void network_backward_kernel(Value *stack, uint64_t arguments, uint64_t count)
{
    (void)arguments, (void)count;
    Held held = {0};
    Network net = {0};
    bool mask[4];
    const size_t weights = list_size(stack[B_WEIGHT]);
    Value *made = calloc(weights + 2, sizeof(Value));
    for (int i = 0; i < 4; i++)
        mask[i] = list_item(stack[B_OUTPUT_MASK], i) & 1;
    release_list(stack[B_OUTPUT_MASK]);
    const bool done = made && run_backward(&held, stack, &net, made, mask);
    size_t wanted = 0;
    for (size_t i = 0; done && i < weights + 2; i++)
        if (made[i])
            made[wanted++] = made[i];
    if (done)
        stack[0] = list_of(made, wanted);
    else
        release_results(made, made ? weights + 2 : 0);
    free(made);
    end_network(&net), release_all(&held);
    if (!done)
        raise_error();
}

/* The list of gradients that the mask asks for, in their places. */
static void spread(Value *stack, const bool *mask, bool has_hx)
{
    const Value list = stack[0];
    const size_t count = list_size(list);
    size_t next = 0;
    Value *weights = calloc(count + 1, sizeof(Value));
    stack[0] = mask[0] ? list_item(list, next++) : undefined_tensor();
    stack[1] = mask[1] && has_hx ? list_item(list, next++) : undefined_tensor();
    stack[2] = undefined_tensor();
    for (size_t i = next; weights && i < count; i++)
        weights[i - next] = list_item(list, i);
    stack[3] = list_of(weights, weights ? count - next : 0);
    free(weights), release_list(list);
}

/* Above autograd: gradients that are themselves to be differentiated, or that of the states, which a second derivative
 * brings, are Python's to compose. All others go on through the dispatcher, so that a mode sees them. */
void cudnn_rnn_backward_autograd(Value *stack, uint64_t arguments, uint64_t count)
{
    (void)arguments, (void)count;
    const Value of_states = stack[B_GRAD_OUTPUT] ? *(Value *)stack[B_GRAD_OUTPUT] : 0;
    const bool plain = !grad_mode_is_enabled() && !is_defined(of_states);
    bool mask[4];
    for (int i = 0; i < 4; i++)
        mask[i] = list_item(stack[B_OUTPUT_MASK], i) & 1;
    const bool has_hx = tensor_dims(stack[B_HX]) != 1;
    if (!call_operator(plain ? "manual_rnn::network_backward" : "manual_rnn::composed_network_backward", stack))
        raise_error();
    spread(stack, mask, has_hx);
}
