/* The project's own operators: from arguments on torch's stack to a network, or to a recurrence alone, and back. */
#include "operators.h"
#include <string.h>
#include "recurrence.h"

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
    for (int i = 0; i < NAMES; i++)
        if (!strcmp(name, NAMED[i].name)) {
            *kind = NAMED[i].kind;
            return true;
        }
    return fail("expected the name of a nonlinearity, got '%.32s'", name);
}

bool begin_network(Call *call, Network *net, long weights)
{
    const long groups = net->D * net->each;
    if (weights < groups || weights % groups)
        return fail("network: expected %ld weights for each layer, got %ld", groups, weights);
    net->variant = engine.variant, net->threads = torch_threads(), net->most = engine.most_threads;
    net->L = weights / groups;
    Tensor *tensors = hold_memory(call, tensors_of(net), sizeof(Tensor));
    place_tensors(net, tensors);
    return tensors || fail("network: no memory for %ld weights", weights);
}

bool make_output(Call *call, Network *net)
{
    return make_result(call, &net->output, net->type, states_shape(net), net->batch_first);
}

bool make_h_n(Call *call, Network *net) { return make_result(call, &net->h_n, net->type, hx_shape(net), false); }

static bool make_states(Call *call, Network *net)
{
    for (long i = 0; i < saved_states(net); i++)
        if (!make_result(call, &net->states[i], net->type, states_shape(net), false))
            return false;
    return true;
}

bool make_gradients(Call *call, Network *net, const bool *need)
{
    for (long i = 0; i < weights_of(net) + 2; i++) {
        const bool swapped = i == 0 && net->batch_first;
        if (need[i] && !make_result(call, &net->gradients[i], net->type, gradient_shape(net, i), swapped))
            return false;
    }
    return true;
}

/* What both operators of a network read, once its weights are known. */
static bool read_inputs(Call *call, Network *net, Value input, Value hx, Value sizes)
{
    net->G = net->weights[0].dims == 3 ? net->weights[0].size[0] : 0;
    return read_batch_sizes(call, &net->sizes, &net->T, sizes) && read(call, &net->x, "the input", input)
        && read(call, &net->hx, "hx", hx);
}

static bool run_network(Call *call, const Value *args)
{
    enum { INPUT, HX, WEIGHTS, SIZES, KIND, BIDIRECTIONAL, HAS_BIASES, SAVE_STATES, ALPHA };
    Network net = {.D = 1 + (args[BIDIRECTIONAL] & 1), .each = args[HAS_BIASES] & 1 ? 4 : 2};
    return read_kind(&net.kind, args[KIND]) && begin_network(call, &net, list_size(args[WEIGHTS]))
        && read_list(call, args[WEIGHTS], net.weights, 1, 1, "a weight")
        && read_inputs(call, &net, args[INPUT], args[HX], args[SIZES]) && read(call, &net.alpha, "alpha", args[ALPHA])
        && measure_network(&net) && check_network(&net) && make_output(call, &net) && make_h_n(call, &net)
        && (!(args[SAVE_STATES] & 1) || make_states(call, &net)) && network_forward(&net);
}

/* From a list of bools; NULL where there is no memory. */
static bool *read_flags(Call *call, Value list)
{
    const size_t count = list_size(list);
    bool *flags = hold_memory(call, count, sizeof(bool));
    for (size_t i = 0; flags && i < count; i++)
        flags[i] = list_item(list, i) & 1;
    return flags;
}

/* The layers, and whether there are biases, are told by how many gradients there are. */
static bool begin_vjp(Call *call, Network *net, long flags, long matrices, long states)
{
    net->each = flags - 2 == 2 * matrices ? 4 : 2;
    if (flags - 2 != matrices * net->each / 2)
        return fail("network_vjp: expected a flag for the input, hx and each weight, got %ld", flags);
    if (!begin_network(call, net, flags - 2))
        return false;
    return states == saved_states(net)
        || fail("network_vjp: expected %ld tensors of states, got %ld", saved_states(net), states);
}

static bool run_network_vjp(Call *call, const Value *args)
{
    enum { NEED, INPUT, HX, MATRICES, STATES, GRAD_OUTPUT, GRAD_H_N, SIZES, KIND, BIDIRECTIONAL, ALPHA };
    Network net = {.D = 1 + (args[BIDIRECTIONAL] & 1)};
    const long flags = list_size(args[NEED]), matrices = list_size(args[MATRICES]), states = list_size(args[STATES]);
    if (!read_kind(&net.kind, args[KIND]) || !read(call, &net.alpha, "alpha", args[ALPHA])
        || !begin_vjp(call, &net, flags, matrices, states))
        return false;
    const bool *need = read_flags(call, args[NEED]);
    if (!need)
        return fail("network_vjp: no memory");
    return read_list(call, args[MATRICES], net.weights, 2, net.each, "a matrix")
        && read_list(call, args[STATES], net.states, 1, 1, "states")
        && read_inputs(call, &net, args[INPUT], args[HX], args[SIZES])
        && read(call, &net.c, "grad_output", args[GRAD_OUTPUT]) && read(call, &net.c_last, "grad_h_n", args[GRAD_H_N])
        && measure_network(&net) && check_network(&net) && make_gradients(call, &net, need) && network_backward(&net);
}

static bool run_one(Call *call, const Value *args, bool slope)
{
    enum { Z, OTHER, W, SIZES, KIND, REVERSE };
    Recurrence all = {.variant = engine.variant, .threads = torch_threads(), .most = engine.most_threads,
                      .reverse = args[REVERSE] & 1};
    if (!read_kind(&all.kind, args[KIND]))
        return false;
    all.kind += slope ? SLOPE : 0;
    return read_batch_sizes(call, &all.sizes, &all.T, args[SIZES]) && read(call, &all.z, "the input", args[Z])
        && read(call, &all.other, slope ? "h" : "h0", args[OTHER]) && read(call, &all.w, "w", args[W])
        && check_recurrence(&all) && make_result(call, &all.y, all.z.type, shape_of(&all.z), false)
        && run_recurrence(&all);
}

static bool run_elman(Call *call, const Value *args) { return run_one(call, args, false); }
static bool run_linear_recurrence(Call *call, const Value *args) { return run_one(call, args, true); }

static bool run_copies(Call *call, const Value *args)
{
    const size_t count = list_size(args[0]);
    for (size_t i = 0; i < count; i++) {
        Tensor x; /* whose memory is checked */
        if (!read(call, &x, "a tensor to copy", list_item(args[0], i)) || !copy_result(call, list_item(args[0], i)))
            return false;
    }
    return true;
}

KERNEL(network_kernel, "tolos---o", "ttl", run_network)
KERNEL(network_vjp_kernel, "ntollooos-o", "l", run_network_vjp)
KERNEL(elman_kernel, "tttos-", "t", run_elman)
KERNEL(linear_recurrence_kernel, "tttos-", "t", run_linear_recurrence)
KERNEL(copies_kernel, "l", "l", run_copies)
