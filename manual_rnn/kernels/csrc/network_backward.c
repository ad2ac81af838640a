/* A network's backward pass: jobs from its last layer down to the lowest that a wanted gradient needs. The gradient of
 * what a layer reads is the cotangent of the layer below, in memory of its own.
 */
#include <stdlib.h>
#include <string.h>
#include "half.h"
#include "network_internal.h"

static View zero_row(const Network *net, void *zeros)
{
    return (View){zeros, net->type, 0, 0, 0, WIDTH[net->type]};
}

static Job backward_job(const Network *net, void *zeros, View c, View dx, long layer, long d)
{
    const long index = layer * net->D + d;
    const Tensor *dw = net->gradients + 2 + index * net->each;
    const View below = layer ? rows_view(net, &net->states[layer - 1], false) : rows_view(net, &net->x, net->batch_first);
    Job job = shared_job(net, below, layer, d);
    job.kind += SLOPE, job.reverse = !job.reverse;
    job.z = c.data ? columns_from(c, d * net->H) : zero_row(net, zeros);
    job.h = columns_from(rows_view(net, &net->states[layer], false), d * net->H);
    job.start = state_view(&net->c_last, index), job.end = state_view(&net->gradients[1], index);
    job.h0 = net->hx.data ? state_view(&net->hx, index) : zero_row(net, zeros);
    job.dx = dx;
    job.u.data = dx.data ? job.u.data : NULL;
    job.du = weight_view(&dw[0]), job.dw = weight_view(&dw[1]);
    for (int i = 0; i < net->each - 2; i++)
        job.db[i] = weight_view(&dw[2 + i]);
    return job;
}

long lowest_needed_layer(const Network *net)
{
    if (net->gradients[0].data || net->gradients[1].data)
        return 0;
    for (long i = 0; i < net->L * net->D * net->each; i++)
        if (net->gradients[2 + i].data)
            return i / (net->each * net->D);
    return net->L;
}

static bool run_backward(const Network *net, long low, void *zeros)
{
    const long layers = net->L - low;
    char *memory[2] = {NULL, NULL};
    Job *jobs = calloc(layers * net->D, sizeof(Job));
    bool fine = jobs != NULL;
    for (long i = 0; fine && i < 2 && i < layers - 1; i++)
        fine = (memory[i] = scratch_memory(net)) != NULL;
    View c = rows_view(net, &net->c, net->batch_first);
    for (long wave = 0; fine && wave < layers; wave++) {
        const long layer = net->L - 1 - wave;
        const View below = layer > low ? scratch_view(net, memory[wave % 2])
            : layer ? (View){0} : rows_view(net, &net->gradients[0], net->batch_first);
        for (long d = 0; d < net->D; d++)
            jobs[wave * net->D + d] = backward_job(net, zeros, c, below, layer, d);
        c = below;
    }
    fine = fine ? run_network_jobs(net, jobs, layers) : fail("network_vjp: no memory for its layers");
    free(jobs), free(memory[0]), free(memory[1]);
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
    const View to = net->gradients[1].data ? view_of(&net->gradients[1], -1, 0, 1, 2) : (View){0};
    for (long i = 0; i < 2 + net->L * net->D * net->each; i++)
        fill_with_zeros(&net->gradients[i]);
    if (!to.data || !net->c_last.data)
        return;
    const View from = view_of(&net->c_last, -1, 0, 1, 2);
    for (long i = 0; i < net->L * net->D; i++)
        for (long b = 0; b < net->B; b++)
            for (long j = 0; j < net->H; j++)
                memcpy(to.data + i * to.step + b * to.row + j * to.column,
                       from.data + i * from.step + b * from.row + j * from.column, WIDTH[net->type]);
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

bool network_backward(const Network *net) { return for_each_member(net, backward_of_one); }
