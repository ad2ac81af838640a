/* From the tensors of a network to the jobs of its layers: what its forward and its backward pass have in common. */
#include "network_internal.h"
#include <stdlib.h>
#include <string.h>
#include "half.h"

View rows_view(const Network *net, const Tensor *x, bool batch_first)
{
    return net->sizes ? view_of(x, -1, 0, 0, 1) : view_of(x, -1, batch_first, !batch_first, 2);
}

View columns_from(View x, long column)
{
    x.data += x.data ? column * x.column : 0;
    return x;
}

View state_view(const Tensor *x, long index)
{
    View view = view_of(x, -1, -1, 1, 2);
    view.data += view.data ? index * x->stride[0] * WIDTH[x->type] : 0;
    return view;
}

View weight_view(const Tensor *w) { return w->dims == 1 ? view_of(w, -1, -1, -1, 0) : view_of(w, -1, -1, 0, 1); }

bool begin_layers(Layers *all, const Network *net, long count, bool between)
{
    const long copies = between ? (count - 1 < 2 ? count - 1 : 2) : 0;
    long bytes = net->D * WIDTH[net->type];
    const bool counted = !__builtin_mul_overflow(bytes, net->rows, &bytes)
        && !__builtin_mul_overflow(bytes, net->H, &bytes);
    *all = (Layers){.count = count, .jobs = calloc(count * net->D, sizeof(Job))};
    bool fine = all->jobs && (counted || !copies);
    for (long i = 0; fine && i < copies; i++)
        fine = (all->memory[i] = malloc(bytes)) != NULL;
    return fine;
}

View between_layers(const Layers *all, const Network *net, long index)
{
    const long width = WIDTH[net->type], row = net->D * net->H * width;
    return (View){all->memory[index % 2], net->type, 0, net->sizes ? row : net->B * row, row, width};
}

bool run_layers(Layers *all, const Network *net)
{
    const long missing = run_jobs(net->variant, all->jobs, all->count, net->D, net->most);
    return !missing || fail("network: no memory, %ld bytes", missing);
}

void end_layers(Layers *all) { free(all->jobs), free(all->memory[0]), free(all->memory[1]); }

static bool is_contiguous(const View *w, const View *u)
{
    const long width = WIDTH[w->data ? w->type : u->type];
    return (!w->data || (w->type <= DOUBLE && w->column == width))
        && (!u->data || (u->type <= DOUBLE && u->column == width));
}

/* Inputs of size 0 are one input of zeros, since a job without inputs is a recurrence alone. */
Job shared_job(const Network *net, View below, long layer, long d)
{
    static const double zero;
    const View zeros = {(char *)(uintptr_t)&zero, net->type, 0, 0, 0, 0};
    const bool no_inputs = !layer_inputs(net, layer);
    const Tensor *weights = net->weights + (layer * net->D + d) * net->each;
    Job job = {.kind = net->kind, .reverse = d, .packed = net->sizes != NULL, .type = net->type,
               .threads = net->threads, .G = 1, .T = net->T, .B = net->B, .H = net->H, .sizes = net->sizes,
               .I = no_inputs ? 1 : layer_inputs(net, layer), .steps = net->sizes ? net->rows : net->T};
    job.u = no_inputs ? zeros : weight_view(&weights[0]), job.w = weight_view(&weights[1]);
    job.contiguous_weights = is_contiguous(&job.w, &job.u);
    job.x = no_inputs ? zeros : below;
    job.alpha = weight_view(&net->alpha);
    job.rates = columns_from(rows_view(net, &net->states[net->L + layer], false), d * net->H);
    return job;
}

void copy_state_rows(const Network *net, const Tensor *to, const Tensor *from)
{
    const long width = WIDTH[net->type];
    for (long i = 0; to->data && i < net->L * net->D; i++) {
        const View into = state_view(to, i), given = state_view(from, i);
        for (long b = 0; b < net->B; b++)
            for (long j = 0; j < net->H; j++) {
                char *at = into.data + b * into.row + j * into.column;
                if (given.data)
                    memcpy(at, given.data + b * given.row + j * given.column, width);
                else
                    memset(at, 0, width);
            }
    }
}
