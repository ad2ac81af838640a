/* A network's backward pass: jobs from its last layer down to the lowest that something wants a gradient of. The
 * gradient of what a layer reads is what the layer below gets, in memory of its own.
 */
#include <stdlib.h>
#include <string.h>
#include "parts.h"
#include "plan.h"

/* The shape of gradient i: of the input, hx, or a weight. Returns its dims. */
static long shape_of(const Network *net, long i, long I, long *shape)
{
    const Job *job = &net->like;
    const long part = (i - 2) % net->each, layer = (i - 2) / (net->each * net->how->D);
    const long x[3] = {job->steps, job->packed ? I : job->B, I};
    const long hx[3] = {net->L * net->how->D, job->B, net->how->H};
    const long w[3] = {net->how->H, part == 1 ? net->how->H : inputs_of(net, layer, I), 0};
    memcpy(shape, i == 0 ? x : i == 1 ? hx : w, sizeof x);
    return i == 0 ? (job->packed ? 2 : 3) : i == 1 ? 3 : part < 2 ? 2 : 1;
}

/* The gradients that are wanted, as tensors, shaped like what they are of; None elsewhere. */
static PyObject *new_gradients(const Network *net, PyObject *like, PyObject *need, long I)
{
    PyObject *made = PyTuple_New(PyTuple_Size(need));
    for (long i = 0; made && i < PyTuple_Size(need); i++) {
        long shape[3];
        const long dims = shape_of(net, i, I, shape);
        const int wanted = PyTuple_GetItem(need, i) == Py_True;
        PyObject *each = wanted ? new_floats(like, shape, dims) : Py_NewRef(Py_None);
        if (!each || PyTuple_SetItem(made, i, each))
            Py_CLEAR(made);
    }
    return made;
}

static View zeros(const Network *net)
{
    const long type = net->like.type;
    return (View){net->nothing, type, 0, 0, 0, WIDTH[type]};
}

static void backward_job(Network *net, Job *job, long layer, long d, long I, View c, const Tensor *c_last, View dx,
                         const Tensor *dhx, const Tensor *dw)
{
    const long index = layer * net->how->D + d, first = index * net->each;
    share_job(net, job, layer, d, I);
    job->kind = net->how->kind + TANH_SLOPE, job->reverse = !job->reverse;
    job->z = c.data ? columns_from(c, d * net->how->H) : zeros(net);
    job->h = columns_from(rows_view(net, &net->states[layer], 0), d * net->how->H);
    job->start = state_view(c_last, index), job->end = state_view(dhx, index);
    job->h0 = net->hx.data ? state_view(&net->hx, index) : zeros(net);
    job->dx = dx;
    job->u.data = dx.data ? job->u.data : NULL;
    job->du = weight_view(&dw[first]), job->dw = weight_view(&dw[first + 1]);
    for (int i = 0; i < net->each - 2; i++)
        job->db[i] = weight_view(&dw[first + 2 + i]);
}

/* The gradient of a layer's states, in memory of its own. */
static View between(const Network *net, char *memory)
{
    const long width = WIDTH[net->like.type], row = net->how->D * net->how->H * width;
    return (View){memory, net->like.type, 0, net->like.packed ? row : net->like.B * row, row, width};
}

/* The lowest layer that something wants a gradient of. */
static long lowest(const Network *net, PyObject *need)
{
    const long each = net->each * net->how->D, count = PyTuple_Size(need);
    if (PyTuple_GetItem(need, 0) == Py_True || PyTuple_GetItem(need, 1) == Py_True)
        return 0;
    for (long i = 2; i < count; i++)
        if (PyTuple_GetItem(need, i) == Py_True)
            return (i - 2) / each;
    return net->L;
}

/* Jobs from the last layer down to the lowest. */
static int run_backward(Network *net, long most, long I, long low, const Tensor *c, const Tensor *c_last,
                        const Tensor *gradients)
{
    const long rows = rows_of(&net->like), D = net->how->D, stages = net->L - low;
    const long bytes = rows * D * net->how->H * WIDTH[net->like.type];
    char *memory[2] = {NULL, NULL};
    long missing = 0;
    for (long i = 0; i < 2 && i < stages - 1; i++)
        if (!(memory[i] = malloc(bytes)))
            missing = bytes;
    for (long stage = 0; stage < stages && !missing; stage++)
        for (long d = 0; d < D; d++) {
            const long layer = net->L - 1 - stage;
            const View above = stage ? between(net, memory[(stage - 1) % 2]) : rows_view(net, c, 0);
            const View below = layer > low ? between(net, memory[stage % 2])
                : layer ? (View){0} : rows_view(net, &gradients[0], 0);
            backward_job(net, &net->jobs[stage * D + d], layer, d, I, above, c_last, below, &gradients[1],
                         gradients + 2);
        }
    const int done = missing ? RAISE(MemoryError, "%ld bytes", missing)
                             : run_without_python(net->how->variant, net->jobs, stages, D, most);
    free(memory[0]), free(memory[1]);
    return done;
}

static int see_gradients(const Network *net, long I, Tensor *to, PyObject *gradients, PyObject *need)
{
    for (long i = 0; i < PyTuple_Size(gradients); i++) {
        long shape[3];
        const long dims = shape_of(net, i, I, shape);
        if (PyTuple_GetItem(need, i) == Py_True
            && !see_made(net, &to[i], PyTuple_GetItem(gradients, i), dims, shape))
            return 0;
    }
    return 1;
}

static long input_size(const Network *net)
{
    const Tensor *w = &net->weights[0];
    return net->x.dims ? net->x.size[net->x.dims - 1] : w->data && w->dims == 2 ? w->size[1] : 1;
}

/* Whether every tensor that a wanted gradient needs is there. */
static int is_enough(const Network *net, const Tensor *gradients, long low)
{
    const long D = net->how->D, each = net->each;
    for (long i = 0; i < net->L * D; i++) {
        const Tensor *w = net->weights + i * each, *dw = gradients + 2 + i * each;
        const long layer = i / D;
        const int below = layer > low || (layer == 0 && gradients[0].data);
        if (layer < low)
            continue;
        if ((below && !w[0].data) || (!w[1].data && (net->like.T > 1 || gradients[1].data))
            || (dw[0].data && layer == 0 && !net->x.data))
            return 0;
    }
    return 1;
}

static PyObject *run_vjp(Network *net, Tensor *to, long most, PyObject *batch_sizes, PyObject *input,
                         PyObject *hx, PyObject *weights, PyObject *states, PyObject *c, PyObject *c_last,
                         PyObject *need)
{
    Tensor *last = &net->states[net->L - 1], above = {0}, above_last = {0};
    PyObject *like = PyTuple_GetItem(states, net->L - 1), *gradients = NULL, *found = NULL;
    const long low = lowest(net, need), DH = net->how->D * net->how->H;
    long I = 1;
    int fine = see_shape(last, like) && measure(net, last, 0, batch_sizes)
        && (input == Py_None || (see_shape(&net->x, input) && net->x.dims > 0))
        && (PyTuple_GetItem(weights, 0) == Py_None || see_fresh(&net->weights[0], PyTuple_GetItem(weights, 0)))
        && low < net->L;
    I = fine ? input_size(net) : 1;
    if (fine && !(gradients = new_gradients(net, like, need, I)))
        return NULL;
    fine = fine && see_states(net, states, see_shared) && see_alike(net, &net->x, input, 1)
        && (!net->x.data || is_rows(net, &net->x, I)) && see_weights(net, weights, I, 1)
        && see_hx(net, &net->hx, hx) && see_alike(net, &above, c, 1)
        && (!above.data || is_rows(net, &above, DH)) && see_hx(net, &above_last, c_last)
        && see_gradients(net, I, to, gradients, need) && is_enough(net, to, low);
    if (!fine)
        found = Py_NewRef(Py_NotImplemented);
    else if (run_backward(net, most, I, low, &above, &above_last, to))
        found = Py_NewRef(gradients);
    release(&above), release(&above_last);
    Py_XDECREF(gradients);
    return found;
}

PyObject *network_vjp(const How *how, long most, PyObject *batch_sizes, PyObject *input, PyObject *hx,
                      PyObject *weights, PyObject *states, PyObject *c, PyObject *c_last, PyObject *need)
{
    Network net;
    PyObject *found = NULL;
    Tensor *to = calloc(PyTuple_Size(need), sizeof(Tensor));
    if (begin(&net, how, PyTuple_Size(weights)) && (to || RAISE(MemoryError, "gradients")))
        found = run_vjp(&net, to, most, batch_sizes, input, hx, weights, states, c, c_last, need);
    forget(&net);
    free(to);
    return found;
}
