/* aten::_cudnn_rnn and aten::_cudnn_rnn_backward on the CPU. torch has no kernel of its own for them there; what a
 * training step gains is their autograd node, which is torch's, in C++. Its backward calls one of two operators:
 *
 *     manual_rnn::network_backward             C
 *     manual_rnn::composed_network_backward    Python: what is itself to be differentiated
 *
 *     forward     states, h_n, output, -, -  <-  input, weights, -, hx, ...
 *
 * The node saves its first result, the states of every layer, `(L, T, B, D * H)`, which no user sees: so the output,
 * its third result, may be edited in place. Without `train` there are no states.
 *
 * What an Elman network hasn't carries what the operator has no argument for: `cx` a leak's alpha, whose rates lie behind
 * the states; `proj_size` which weights are frozen, weight i by bit i, for the node asks for the gradients of all or none.
 */
#include <string.h>
#include "operators.h"

/* Where each argument stands on the stack: the options have the same order in both operators. */
enum { INPUT, WEIGHT, WEIGHT_STRIDE0, WEIGHT_BUF, HX, CX, FORWARD_OPTIONS };
enum { OUTPUT = FORWARD_OPTIONS, GRAD_OUTPUT, GRAD_HY, GRAD_CY, BACKWARD_OPTIONS };
enum {
    MODE, HIDDEN_SIZE, FROZEN, NUM_LAYERS, BATCH_FIRST, DROPOUT, TRAIN, BIDIRECTIONAL, BATCH_SIZES, DROPOUT_STATE,
    OPTIONS
};
enum { RESERVE = BACKWARD_OPTIONS + OPTIONS, OUTPUT_MASK };

/* batch_sizes as a list of numbers. */
static bool read_size_list(Call *call, Network *net, Value list)
{
    net->T = list_size(list);
    net->sizes = net->T ? hold_memory(call, net->T, sizeof *net->sizes) : NULL;
    for (int64_t t = 0; net->sizes && t < net->T; t++)
        net->sizes[t] = (int64_t)list_item(list, t);
    return !net->T || net->sizes || fail("no memory for batch_sizes");
}

/* No first states are an empty tensor of one axis. */
static bool read_hx(Call *call, Network *net, Value from)
{
    if (!read(call, &net->hx, "hx", from))
        return false;
    if (net->hx.dims == 1 && !net->hx.size[0])
        net->hx = (Tensor){.name = "hx"};
    return true;
}

/* What both operators read. */
static bool read_network(Call *call, Network *net, const Value *args, const Value *options)
{
    net->D = 1 + (options[BIDIRECTIONAL] & 1);
    net->each = (long)args[WEIGHT_STRIDE0], net->kind = (long)options[MODE];
    if (net->each != 2 && net->each != 4)
        return fail("_cudnn_rnn: expected 2 or 4 weights, no %ld", net->each);
    if (!read_size_list(call, net, options[BATCH_SIZES]))
        return false;
    net->batch_first = (options[BATCH_FIRST] & 1) && !net->sizes;
    return begin_network(call, net, list_size(args[WEIGHT]))
        && read_list(call, args[WEIGHT], net->weights, 1, 1, "a weight")
        && read(call, &net->x, "the input", args[INPUT]) && read_hx(call, net, args[HX])
        && read(call, &net->alpha, "alpha", args[CX]) && measure_network(net);
}

/* An Elman network without dropout, of these weights. */
static bool check_options(const Network *net, const Value *options)
{
    double dropout;
    memcpy(&dropout, &options[DROPOUT], sizeof dropout);
    if (!is_nonlinearity(options[MODE]) || (dropout > 0 && options[TRAIN] & 1))
        return fail("_cudnn_rnn: on the CPU there are Elman networks alone, without dropout");
    return (net->L == (long)options[NUM_LAYERS] && net->H == (long)options[HIDDEN_SIZE])
        || fail("_cudnn_rnn: expected hidden_size %ld and num_layers %ld", net->H, net->L);
}

/* States of all layers as one tensor, and of each as a part of it. */
static void split(Tensor *of_layers, long count, const Tensor *all)
{
    for (long i = 0; i < count; i++)
        of_layers[i] = part_of(all, i);
}

static bool make_empty(Call *call, const Network *net)
{
    Tensor unread;
    return make_result(call, &unread, net->type, (Shape){1, {0}}, false);
}

static bool make_states(Call *call, Network *net)
{
    Tensor all;
    if (!make_result(call, &all, net->type, prepended(saved_states(net), states_shape(net)), false))
        return false;
    split(net->states, saved_states(net), &all);
    return true;
}

static bool run_forward(Call *call, const Value *args)
{
    const Value *options = args + FORWARD_OPTIONS;
    Network net = {0};
    return read_network(call, &net, args, options) && check_network(&net) && check_options(&net, options)
        && (options[TRAIN] & 1 ? make_states(call, &net) : make_empty(call, &net)) && make_h_n(call, &net)
        && make_output(call, &net) && make_empty(call, &net) && make_empty(call, &net) && network_forward(&net);
}

static void read_mask(bool *mask, Value list)
{
    for (int i = 0; i < 4; i++)
        mask[i] = list_item(list, i) & 1;
}

static bool read_states(Call *call, Tensor *of_layers, long count, const char *name, Value from)
{
    Tensor all;
    if (!read(call, &all, name, from))
        return false;
    if (all.dims < 1 || all.size[0] != count)
        return fail("_cudnn_rnn_backward: expected %ld tensors of %s", count, name);
    split(of_layers, count, &all);
    return true;
}

static bool is_frozen(Value frozen, long weight) { return weight < 63 && frozen >> weight & 1; }

/* The gradients that the mask asks for, in the order of the operator network_vjp. */
static bool make_masked_gradients(Call *call, Network *net, const bool *mask, Value frozen)
{
    const long count = 2 + weights_of(net);
    bool *need = hold_memory(call, count, sizeof *need);
    for (long i = 0; need && i < count; i++)
        need[i] = i < 2 ? mask[i] && (!i || net->hx.dims) : mask[3] && !is_frozen(frozen, i - 2);
    return need ? make_gradients(call, net, need) : fail("_cudnn_rnn_backward: no memory");
}

static bool has_cotangent(const Value *args)
{
    return is_defined(args[GRAD_OUTPUT]) || is_defined(args[GRAD_HY]) || is_defined(args[GRAD_CY]);
}

static bool run_backward(Call *call, const Value *args)
{
    const Value *options = args + BACKWARD_OPTIONS;
    Network net = {0};
    bool mask[4];
    read_mask(mask, args[OUTPUT_MASK]);
    return read_network(call, &net, args, options) && check_options(&net, options)
        && read_states(call, net.states, saved_states(&net), "states", args[OUTPUT])
        && (!is_defined(args[GRAD_OUTPUT]) || read_states(call, net.c_states, net.L, "grad_output", args[GRAD_OUTPUT]))
        && read(call, &net.c, "grad_output", args[GRAD_CY])
        && read(call, &net.c_last, "grad_h_n", args[GRAD_HY]) && check_network(&net)
        && (!has_cotangent(args)
            || (make_masked_gradients(call, &net, mask, options[FROZEN]) && network_backward(&net)));
}

KERNEL(cudnn_rnn_kernel, "tl-oto--------no", "ttttt", run_forward)
KERNEL(network_backward_kernel, "tl-ttotooo--------notn", "l", run_backward)

static Value next_of(Value list, size_t *next, bool wanted)
{
    return wanted && *next < list_size(list) ? list_item(list, (*next)++) : undefined_tensor();
}

/* The list of gradients that the mask asks for, which is empty where there was no cotangent, in their places; of weights
 * there are as many as they are. */
static void spread(Value *stack, const bool *mask, bool has_hx, long weights, Value frozen)
{
    const Value list = stack[0];
    size_t next = 0;
    stack[0] = next_of(list, &next, mask[0]);
    stack[1] = next_of(list, &next, mask[1] && has_hx);
    stack[2] = undefined_tensor();
    stack[3] = new_list(weights);
    for (long i = 0; mask[3] && i < weights; i++)
        list_append(stack[3], next_of(list, &next, !is_frozen(frozen, i)));
    release_list((Handle)list);
}

static bool is_given(Value optional) { return optional && is_defined(*(Value *)optional); }

static bool is_dual(Value optional) { return optional && carries_tangent(*(Value *)optional); }

/* Above autograd: gradients that are themselves to be differentiated, in forward mode too, are Python's to compose, and
 * so is that of a leak's states and rates, which a second derivative brings. All others go on through the dispatcher, so
 * that a mode sees them. */
void cudnn_rnn_backward_kernel(Value *stack, uint64_t arguments, uint64_t count)
{
    (void)arguments, (void)count;
    const bool leaky_states = is_given(stack[GRAD_OUTPUT]) && is_given(stack[CX]);
    const bool dual = is_dual(stack[GRAD_OUTPUT]) || is_dual(stack[GRAD_HY]) || is_dual(stack[GRAD_CY]);
    const bool plain = !grad_mode_is_enabled() && !leaky_states && !dual;
    bool mask[4];
    read_mask(mask, stack[OUTPUT_MASK]);
    const bool has_hx = tensor_dims(stack[HX]) != 1;
    const Value frozen = stack[BACKWARD_OPTIONS + FROZEN];
    const long weights = list_size(stack[WEIGHT]);
    if (!call_operator(plain ? "manual_rnn::network_backward" : "manual_rnn::composed_network_backward", stack))
        raise_error();
    spread(stack, mask, has_hx, weights, frozen);
}
