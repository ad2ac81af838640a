/* A network's backward pass: jobs from its last layer down to the lowest that a wanted gradient needs. The gradient of
 * what a layer reads is the cotangent of the layer below, in memory of its own.
 */
#include <stdlib.h>
#include <string.h>
#include "half.h"
#include "network_internal.h"
#include "plan.h"

static View zero_row(const Network *net, void *zeros)
{
    return (View){zeros, net->type, 0, 0, 0, WIDTH[net->type]};
}

/* Of a weight's gradient, which samples have a group apart. */
static View gradient_view(const Network *net, const Tensor *dw)
{
    if (!net->samples || !dw->data)
        return weight_view(dw);
    const Tensor first = part_of(dw, 0);
    View view = weight_view(&first);
    view.group = dw->stride[0] * WIDTH[dw->type];
    return view;
}

static Job backward_job(const Network *net, void *zeros, View c, View dx, long layer, long d)
{
    const long index = layer * net->D + d;
    const Tensor *dw = net->gradients + 2 + index * net->each;
    const View below = layer ? rows_view(net, &net->states[layer - 1], false)
        : rows_view(net, &net->x, net->batch_first);
    Job job = shared_job(net, below, layer, d);
    job.kind += SLOPE, job.reverse = !job.reverse;
    const View of_states = rows_view(net, &net->c_states[layer], false);
    job.z = c.data ? columns_from(c, d * net->H) : zero_row(net, zeros);
    job.added = columns_from(of_states, d * net->H);
    job.h = columns_from(rows_view(net, &net->states[layer], false), d * net->H);
    job.start = state_view(&net->c_last, index), job.end = state_view(&net->gradients[1], index);
    job.h0 = net->hx.data ? state_view(&net->hx, index) : zero_row(net, zeros);
    job.dx = dx;
    job.u.data = dx.data ? job.u.data : NULL;
    job.samples = net->samples;
    job.du = gradient_view(net, &dw[0]), job.dw = gradient_view(net, &dw[1]);
    for (int i = 0; i < net->each - 2; i++)
        job.db[i] = gradient_view(net, &dw[2 + i]);
    return job;
}

/* The lowest layer that a wanted gradient needs, L where there is none. */
static long lowest_needed_layer(const Network *net)
{
    if (net->gradients[0].data || net->gradients[1].data)
        return 0;
    for (long i = 0; i < weights_of(net); i++)
        if (net->gradients[2 + i].data)
            return i / (net->each * net->D);
    return net->L;
}

static bool run_backward(const Network *net, long low, void *zeros)
{
    View c = rows_view(net, &net->c, net->batch_first);
    Layers all;
    bool fine = begin_layers(&all, net, net->L - low, true) || fail("network_vjp: no memory for its layers");
    for (long wave = 0; fine && wave < all.count; wave++) {
        const long layer = net->L - 1 - wave;
        const View below = layer > low ? between_layers(&all, net, wave)
            : layer ? (View){0} : rows_view(net, &net->gradients[0], net->batch_first);
        for (long d = 0; d < net->D; d++)
            all.jobs[wave * net->D + d] = backward_job(net, zeros, c, below, layer, d);
        c = below;
    }
    fine = fine && run_layers(&all, net);
    end_layers(&all);
    return fine;
}

static void fill_with_zeros(const Tensor *x)
{
    long numbers = 1;
    for (long i = 0; i < x->dims; i++)
        numbers *= x->size[i];
    if (x->data)
        memset(x->data, 0, numbers * WIDTH[x->type]);
}

/* Where no step was taken: the gradient of the first states is that of the last. */
static void without_steps(const Network *net)
{
    for (long i = 0; i < 2 + weights_of(net); i++)
        fill_with_zeros(&net->gradients[i]);
    copy_state_rows(net, &net->gradients[1], &net->c_last);
}

static bool backward_of_one(const Network *net)
{
    const long low = lowest_needed_layer(net);
    if (low == net->L)
        return true;
    if (is_empty(net)) {
        without_steps(net);
        return true;
    }
    void *zeros = calloc(net->H, sizeof(double));
    const bool fine = zeros ? run_backward(net, low, zeros) : fail("network_vjp: no memory");
    free(zeros);
    return fine;
}

static bool is_shared(const Tensor *x) { return !x->data || !x->stride[0]; }

/* Whether members are samples: all share the weights and the leak, and have a row of their own. */
static bool are_samples(const Network *net)
{
    if (net->B != 1 || net->sizes || !net->T || net->type >= BFLOAT || !is_shared(&net->alpha))
        return false;
    for (long i = 0; i < weights_of(net); i++)
        if (!is_shared(&net->weights[i]))
            return false;
    return true;
}

bool network_backward(const Network *net)
{
    return for_each_member(net, net->G && are_samples(net) ? samples_at_once(net->T) : 1, backward_of_one);
}
