/* The sizes of what a network reads and makes, and whether what it was given has them. */
#include "network_internal.h"
#include <string.h>

long weights_of(const Network *net) { return net->L * net->D * net->each; }

long tensors_of(const Network *net) { return 2 * weights_of(net) + 2 * net->L + 2; }

void place_tensors(Network *net, Tensor *tensors)
{
    net->weights = tensors, net->states = tensors + weights_of(net), net->gradients = net->states + 2 * net->L;
}

long layer_inputs(const Network *net, long layer) { return layer ? net->D * net->H : net->I; }

bool is_empty(const Network *net) { return !net->rows || !net->B; }

long saved_states(const Network *net) { return net->L * (net->alpha.dims ? 2 : 1); }

int states_shape(const Network *net, int64_t *shape)
{
    const int64_t padded[] = {net->T, net->B, net->D * net->H}, packed[] = {net->rows, net->D * net->H};
    memcpy(shape, net->sizes ? packed : padded, (net->sizes ? 2 : 3) * sizeof *shape);
    return net->sizes ? 2 : 3;
}

int hx_shape(const Network *net, int64_t *shape)
{
    shape[0] = net->L * net->D, shape[1] = net->B, shape[2] = net->H;
    return 3;
}

int weight_shape(const Network *net, long index, int64_t *shape)
{
    const long part = index % net->each, layer = index / (net->each * net->D);
    shape[0] = net->H, shape[1] = part == 1 ? net->H : layer_inputs(net, layer);
    return part < 2 ? 2 : 1;
}

int input_shape(const Network *net, int64_t *shape)
{
    const int dims = states_shape(net, shape);
    shape[dims - 1] = net->I;
    return dims;
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

static bool fits(const Network *net, const Tensor *x, int dims, const int64_t *shape)
{
    int64_t want[DIMS] = {net->G};
    const int g = net->G > 0;
    if (!x->dims && !x->data)
        return true;
    memcpy(want + g, shape, dims * sizeof *shape);
    return check_shape(x, g + dims, want)
        && (x->type == net->type || fail("expected %s of the input's dtype", x->name));
}

bool check_network(const Network *net)
{
    int64_t shape[DIMS];
    bool fine = true;
    for (long i = 0; fine && i < weights_of(net); i++) {
        const int dims = weight_shape(net, i, shape);
        fine = fits(net, &net->weights[i], dims, shape);
    }
    shape[0] = net->H;
    fine = fine && fits(net, &net->alpha, 1, shape) && fits(net, &net->hx, hx_shape(net, shape), shape)
        && fits(net, &net->c_last, hx_shape(net, shape), shape);
    const int dims = states_shape(net, shape);
    for (long i = 0; fine && i < saved_states(net); i++)
        fine = fits(net, &net->states[i], dims, shape);
    if (net->batch_first && !net->sizes)
        shape[0] = net->B, shape[1] = net->T;
    return fine && fits(net, &net->c, dims, shape);
}
