/* The sizes of what a network reads and makes, and whether what it was given has them. */
#include "network_internal.h"
#include <string.h>

long weights_of(const Network *net) { return net->L * net->D * net->each; }

long tensors_of(const Network *net) { return 2 * weights_of(net) + 3 * net->L + 2; }

void place_tensors(Network *net, Tensor *tensors)
{
    net->weights = tensors, net->states = tensors + weights_of(net), net->c_states = net->states + 2 * net->L;
    net->gradients = net->c_states + net->L;
}

long layer_inputs(const Network *net, long layer) { return layer ? net->D * net->H : net->I; }

bool is_empty(const Network *net) { return !net->rows || !net->B; }

long saved_states(const Network *net) { return net->L * (net->alpha.dims ? 2 : 1); }

static Shape of_members(const Network *net, Shape shape) { return net->G ? prepended(net->G, shape) : shape; }

static Shape rows_shape(const Network *net, long columns)
{
    return of_members(net, net->sizes ? (Shape){2, {net->rows, columns}} : (Shape){3, {net->T, net->B, columns}});
}

Shape states_shape(const Network *net) { return rows_shape(net, net->D * net->H); }

Shape hx_shape(const Network *net) { return of_members(net, (Shape){3, {net->L * net->D, net->B, net->H}}); }

static Shape weight_shape(const Network *net, long index)
{
    const long part = index % net->each, inputs = layer_inputs(net, index / (net->each * net->D));
    return of_members(net, part < 2 ? (Shape){2, {net->H, part ? net->H : inputs}} : (Shape){1, {net->H}});
}

Shape gradient_shape(const Network *net, long index)
{
    if (index > 1)
        return weight_shape(net, index - 2);
    return index ? hx_shape(net) : rows_shape(net, net->I);
}

/* Stops where the sum passes the rows, and so never overflows. */
bool sizes_fit(const int64_t *sizes, long T, long B, long rows)
{
    long sum = 0, last = B;
    for (long t = 0; t < T && sum <= rows; last = sizes[t++], sum += last)
        if (sizes[t] > last || sizes[t] < 0 || (t == 0 && sizes[t] != B))
            return false;
    return sum == rows;
}

bool measure_network(Network *net)
{
    const Tensor *x = &net->x, *w = &net->weights[0];
    const long g = net->G > 0, dims = g + (net->sizes ? 2 : 3);
    if (w->dims != g + 2)
        return fail("network: expected weight_ih of %ld axes, got %ld", g + 2, w->dims);
    net->H = w->size[g], net->type = x->type;
    if (!net->H)
        return fail("network: expected a hidden size of at least 1");
    if (x->dims != dims)
        return fail("network: expected an input of %ld axes, got %ld", dims, x->dims);
    if (g && x->size[0] != net->G)
        return fail("network: expected an input of %ld members, got %ld", net->G, x->size[0]);
    net->I = x->size[dims - 1];
    if (net->sizes) {
        net->rows = x->size[g];
        net->B = net->T ? net->sizes[0] : net->hx.data || net->hx.dims ? net->hx.size[g + 1] : 0;
        return sizes_fit(net->sizes, net->T, net->B, net->rows)
            || fail("network: expected batch_sizes that never grow and add up to %ld rows", net->rows);
    }
    net->T = x->size[g + net->batch_first], net->B = x->size[g + !net->batch_first];
    net->rows = net->T && net->B > MAX_EXTENT / net->T ? MAX_EXTENT : net->T * net->B;
    return true;
}

static bool fits(const Network *net, const Tensor *x, Shape shape)
{
    if (!x->dims && !x->data)
        return true;
    return check_shape(x, shape) && (x->type == net->type || fail("expected %s of the input's dtype", x->name));
}

bool check_network(const Network *net)
{
    Shape states = states_shape(net);
    for (long i = 0; i < weights_of(net); i++)
        if (!fits(net, &net->weights[i], weight_shape(net, i)))
            return false;
    if (!fits(net, &net->alpha, of_members(net, (Shape){1, {net->H}})) || !fits(net, &net->hx, hx_shape(net))
        || !fits(net, &net->c_last, hx_shape(net)))
        return false;
    for (long i = 0; i < saved_states(net); i++)
        if (!fits(net, &net->states[i], states) || (i < net->L && !fits(net, &net->c_states[i], states)))
            return false;
    if (net->batch_first)
        states.size[0] = net->B, states.size[1] = net->T;
    return fits(net, &net->c, states);
}
