#include "network_internal.h"
#include <stdlib.h>
#include <string.h>
#include "half.h"

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
    long want[DIMS] = {net->G};
    const int g = net->G > 0;
    for (int i = 0; i < dims; i++)
        want[g + i] = shape[i];
    if (!x->dims && !x->data)
        return true;
    return check_shape(x, g + dims, want)
        && (x->type == net->type || fail("expected %s of the input's dtype", x->name));
}

bool check_network(const Network *net)
{
    int64_t shape[DIMS];
    bool fine = true;
    for (long i = 0; fine && i < net->L * net->D * net->each; i++) {
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

View rows_view(const Network *net, const Tensor *x, bool batch_first)
{
    if (!x->data)
        return (View){0};
    return net->sizes ? view_of(x, -1, 0, 0, 1) : view_of(x, -1, batch_first, !batch_first, 2);
}

View columns_from(View x, long column)
{
    x.data += x.data ? column * x.column : 0;
    return x;
}

View state_view(const Tensor *x, long index)
{
    if (!x->data)
        return (View){0};
    View view = view_of(x, -1, -1, 1, 2);
    view.data += index * x->stride[0] * WIDTH[x->type];
    return view;
}

View weight_view(const Tensor *w)
{
    if (!w->data)
        return (View){0};
    return w->dims == 1 ? view_of(w, -1, -1, -1, 0) : view_of(w, -1, -1, 0, 1);
}

/* NULL also where there are more bytes than can be counted. */
char *scratch_memory(const Network *net)
{
    long bytes;
    const bool counted = !__builtin_mul_overflow(net->rows, net->D * WIDTH[net->type], &bytes)
        && !__builtin_mul_overflow(bytes, net->H, &bytes);
    return counted ? malloc(bytes) : NULL;
}

View scratch_view(const Network *net, char *memory)
{
    const long width = WIDTH[net->type], row = net->D * net->H * width;
    return (View){memory, net->type, 0, net->sizes ? row : net->B * row, row, width};
}

long layer_inputs(const Network *net, long layer) { return layer ? net->D * net->H : net->I; }

bool is_empty(const Network *net) { return !net->rows || !net->B; }

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
               .threads = net->threads, .G = 1, .T = net->T, .B = net->B, .H = net->H,
               .I = no_inputs ? 1 : layer_inputs(net, layer), .steps = net->sizes ? net->rows : net->T, .sizes = net->sizes};
    job.u = no_inputs ? zeros : weight_view(&weights[0]), job.w = weight_view(&weights[1]);
    job.contiguous_weights = is_contiguous(&job.w, &job.u);
    job.x = no_inputs ? zeros : below;
    job.alpha = weight_view(&net->alpha);
    job.rates = columns_from(rows_view(net, &net->states[net->L + layer], false), d * net->H);
    return job;
}

bool run_network_jobs(const Network *net, Job *jobs, long layers)
{
    const long missing = run_jobs(net->variant, jobs, layers, net->D, net->most);
    return !missing || fail("network: no memory, %ld bytes", missing);
}

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

/* Where no step was taken, the last states are the first. */
static void copy_state(const Network *net)
{
    const long width = WIDTH[net->type];
    for (long i = 0; i < net->L * net->D; i++) {
        const View to = state_view(&net->h_n, i), from = state_view(&net->hx, i);
        for (long b = 0; b < net->B; b++)
            for (long j = 0; j < net->H; j++) {
                char *at = to.data + b * to.row + j * to.column;
                if (from.data)
                    memcpy(at, from.data + b * from.row + j * from.column, width);
                else
                    memset(at, 0, width);
            }
    }
}

/* Jobs of all layers. Where states aren't saved, layers before the last write to two memories in turn. */
static bool run_forward(const Network *net)
{
    char *memory[2] = {NULL, NULL};
    const bool saved = net->states[net->L - 1].data != NULL;
    Job *jobs = calloc(net->L * net->D, sizeof(Job));
    bool fine = jobs != NULL;
    for (long i = 0; fine && !saved && i < 2 && i < net->L - 1; i++)
        fine = (memory[i] = scratch_memory(net)) != NULL;
    View below = rows_view(net, &net->x, net->batch_first);
    for (long layer = 0; fine && layer < net->L; layer++) {
        const bool last = layer == net->L - 1;
        const View output = rows_view(net, &net->output, net->batch_first);
        const View above = saved ? rows_view(net, &net->states[layer], false)
            : last ? output : scratch_view(net, memory[layer % 2]);
        for (long d = 0; d < net->D; d++)
            jobs[layer * net->D + d] = forward_job(net, below, above, saved && last ? output : (View){0}, layer, d);
        below = above;
    }
    fine = fine ? run_network_jobs(net, jobs, net->L) : fail("network: no memory for its layers");
    free(jobs), free(memory[0]), free(memory[1]);
    return fine;
}

static bool forward_of_one(const Network *net)
{
    if (is_empty(net)) {
        copy_state(net);
        return true;
    }
    return run_forward(net);
}

bool network_forward(const Network *net) { return for_each_member(net, forward_of_one); }

static Tensor slice(const Tensor *x, long g)
{
    Tensor part = {.name = x->name, .type = x->type, .dims = x->dims - 1};
    if (!x->data)
        return (Tensor){0};
    part.data = x->data + g * x->stride[0] * WIDTH[x->type];
    for (long i = 0; i < part.dims; i++)
        part.size[i] = x->size[i + 1], part.stride[i] = x->stride[i + 1];
    return part;
}

Network member_of(const Network *net, long g, Tensor *tensors)
{
    const long weights = net->L * net->D * net->each;
    Network member = *net;
    member.G = 0, member.threads = 1;
    member.x = slice(&net->x, g), member.hx = slice(&net->hx, g), member.output = slice(&net->output, g);
    member.h_n = slice(&net->h_n, g), member.c = slice(&net->c, g), member.c_last = slice(&net->c_last, g);
    member.weights = tensors, member.states = tensors + weights;
    for (long i = 0; i < weights; i++)
        member.weights[i] = slice(&net->weights[i], g);
    member.alpha = slice(&net->alpha, g);
    for (long i = 0; i < 2 * net->L; i++)
        member.states[i] = slice(&net->states[i], g);
    if (net->gradients) {
        member.gradients = member.states + 2 * net->L;
        for (long i = 0; i < weights + 2; i++)
            member.gradients[i] = slice(&net->gradients[i], g);
    }
    return member;
}

/* Members run side by side, each on one thread. */
bool for_each_member(const Network *net, bool (*run)(const Network *net))
{
    if (!net->G)
        return run(net);
    const long each = 2 * net->L * net->D * net->each + 2 * net->L + 2;
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
