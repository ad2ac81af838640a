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

bool network_forward(const Network *net) { return for_each_member(net, 1, forward_of_one); }

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

/* The members' only rows, (G, T, 1, H), as rows of a batch, (T, count, H). */
static Tensor rows_of_members(const Tensor *x, long first, long count)
{
    if (!x->data)
        return (Tensor){0};
    Tensor rows = part_of(x, first);
    rows.size[1] = count, rows.stride[1] = x->stride[0];
    return rows;
}

/* Members that share all weights as one network: its weights are theirs, and their gradients a part of all. */
static Network network_of_samples(const Network *net, long first, long count, Tensor *tensors)
{
    Network all = *net;
    all.G = 0, all.threads = 1, all.samples = all.B = count, all.rows = all.T * count;
    all.x = rows_of_members(&net->x, first, count), all.hx = rows_of_members(&net->hx, first, count);
    all.alpha = part_of(&net->alpha, 0);
    all.c = rows_of_members(&net->c, first, count), all.c_last = rows_of_members(&net->c_last, first, count);
    place_tensors(&all, tensors);
    for (long i = 0; i < weights_of(net); i++) {
        all.weights[i] = part_of(&net->weights[i], 0);
        all.gradients[2 + i] = net->gradients[2 + i];
        all.gradients[2 + i].data = part_of(&net->gradients[2 + i], first).data;
    }
    for (long i = 0; i < saved_states(net); i++)
        all.states[i] = rows_of_members(&net->states[i], first, count);
    for (long i = 0; i < net->L; i++)
        all.c_states[i] = rows_of_members(&net->c_states[i], first, count);
    for (long i = 0; i < 2; i++)
        all.gradients[i] = rows_of_members(&net->gradients[i], first, count);
    return all;
}

bool for_each_member(const Network *net, long samples, bool (*run)(const Network *net))
{
    if (!net->G)
        return run(net);
    const long each = tensors_of(net), networks = quotient_up(net->G, samples);
    const long threads = net->threads < net->most ? net->threads : net->most;
    Tensor *tensors = calloc(networks * each, sizeof(Tensor));
    long failed = tensors == NULL;
#pragma omp parallel for schedule(dynamic) num_threads(threads < networks ? threads : networks) \
    reduction(+ : failed) if (tensors && threads > 1)
    for (long i = 0; i < networks; i++) {
        if (!tensors)
            continue;
        const Network one = samples == 1 ? member_of(net, i, tensors + i * each)
            : network_of_samples(net, i * samples, smaller(samples, net->G - i * samples), tensors + i * each);
        failed += !run(&one);
    }
    free(tensors);
    return !failed || fail("network: no memory for %ld of %ld members", failed, networks);
}
