/* A network's forward pass, and the members of an ensemble. */
#include "network_internal.h"
#include <stdlib.h>
#include "half.h"

static Job forward_job(const Network *net, View below, View above, View copy, long layer, long d)
{
    const long index = layer * net->D + d;
    const Tensor *weights = net->weights + index * net->each;
    Job job = shared_job(net, below, layer, d);
    job.u = transposed(job.u), job.w = transposed(job.w);
    for (int i = 0; i < net->each - 2; i++)
        job.bias[i] = weight_view(&weights[2 + i]);
    job.y = columns_from(above, d * net->H), job.copy = columns_from(copy, d * net->H);
    job.start = state_view(&net->hx, index), job.end = state_view(&net->h_n, index);
    return job;
}

/* Jobs of all layers. Where states aren't saved, layers before the last write to two memories in turn. */
static bool run_forward(const Network *net)
{
    const bool saved = net->states[net->L - 1].data != NULL;
    const View output = rows_view(net, &net->output, net->batch_first);
    View below = rows_view(net, &net->x, net->batch_first);
    Layers all;
    bool fine = begin_layers(&all, net, net->L, !saved) || fail("network: no memory for its layers");
    for (long layer = 0; fine && layer < net->L; layer++) {
        const bool last = layer == net->L - 1;
        const View above = saved ? rows_view(net, &net->states[layer], false)
            : last ? output : between_layers(&all, net, layer);
        for (long d = 0; d < net->D; d++)
            all.jobs[layer * net->D + d] = forward_job(net, below, above, saved && last ? output : (View){0}, layer, d);
        below = above;
    }
    fine = fine && run_layers(&all, net);
    end_layers(&all);
    return fine;
}

static bool forward_of_one(const Network *net)
{
    if (is_empty(net)) {
        copy_state_rows(net, &net->h_n, &net->hx);
        return true;
    }
    return run_forward(net);
}

bool network_forward(const Network *net) { return for_each_member(net, forward_of_one); }

Tensor part_of(const Tensor *x, int64_t index)
{
    Tensor part = {.name = x->name, .type = x->type, .dims = x->dims - 1};
    if (!x->data)
        return (Tensor){0};
    part.data = x->data + index * x->stride[0] * WIDTH[x->type];
    for (long i = 0; i < part.dims; i++)
        part.size[i] = x->size[i + 1], part.stride[i] = x->stride[i + 1];
    return part;
}

/* Member g of an ensemble as a network of its own, with `tensors` for what its arrays hold. */
static Network member_of(const Network *net, long g, Tensor *tensors)
{
    Network member = *net;
    member.G = 0, member.threads = 1;
    member.x = part_of(&net->x, g), member.hx = part_of(&net->hx, g), member.alpha = part_of(&net->alpha, g);
    member.output = part_of(&net->output, g), member.h_n = part_of(&net->h_n, g);
    member.c = part_of(&net->c, g), member.c_last = part_of(&net->c_last, g);
    for (long i = 0; i < tensors_of(net); i++)
        tensors[i] = part_of(&net->weights[i], g);
    place_tensors(&member, tensors);
    return member;
}

bool for_each_member(const Network *net, bool (*run)(const Network *net))
{
    if (!net->G)
        return run(net);
    const long each = tensors_of(net);
    const long threads = net->threads < net->most ? net->threads : net->most;
    Tensor *tensors = calloc(net->G * each, sizeof(Tensor));
    long failed = tensors == NULL;
#pragma omp parallel for schedule(dynamic) num_threads(threads < net->G ? threads : net->G) reduction(+ : failed) \
    if (tensors && threads > 1)
    for (long g = 0; g < net->G; g++) {
        if (!tensors)
            continue;
        const Network member = member_of(net, g, tensors + g * each);
        failed += !run(&member);
    }
    free(tensors);
    return !failed || fail("network: no memory for %ld of %ld members", failed, net->G);
}
