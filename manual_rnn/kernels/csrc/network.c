/* From a network's tensors to the jobs of its layers, and back. L layers, D directions; what layer l reads is
 * what layer l - 1 wrote, directions side by side.
 */
#include "parts.h"
#include <stdlib.h>

void forget(Network *net)
{
    const long weights = net->jobs ? net->L * net->how->D * net->each : 0;
    for (long i = 0; i < weights; i++)
        release(&net->weights[i]);
    for (long i = 0; net->jobs && i < net->L; i++)
        release(&net->states[i]);
    release(&net->x), release(&net->hx);
    free(net->like.sizes), free(net->jobs);
}

/* Room for the parts, in one piece; 0 with an exception set. */
int begin(Network *net, const How *how, long weights)
{
    const long each = how->bias ? 4 : 2, L = weights / (how->D * each);
    const long bytes = L * how->D * sizeof(Job) + (weights + L) * sizeof(Tensor) + how->H * sizeof(double);
    const Job like = {.kind = how->kind, .threads = how->threads, .G = 1, .H = how->H};
    *net = (Network){.how = how, .L = L, .each = each, .like = like};
    net->jobs = calloc(1, bytes);
    net->weights = (Tensor *)(net->jobs + L * how->D), net->states = net->weights + weights;
    net->nothing = net->states + L;
    return net->jobs || RAISE(MemoryError, "%ld bytes", bytes);
}

static int is_shape(const Tensor *x, long dims, long a, long b, long c)
{
    const long want[] = {a, b, c};
    int fits = x->dims == dims;
    for (long i = 0; fits && i < dims; i++)
        fits = x->size[i] == want[i];
    return fits;
}

/* A tensor of the network's type, or none where None is allowed. */
int see_alike(const Network *net, Tensor *x, PyObject *from, int optional)
{
    *x = (Tensor){0};
    return from == Py_None ? optional : see(x, from) && x->type == net->like.type;
}

/* Of a step, a row and a column; of packed rows each may be a step's first. */
View rows_view(const Network *net, const Tensor *x, int swapped)
{
    if (!x->data)
        return (View){0};
    return net->like.packed ? view_of(x, -1, 0, 0, 1) : view_of(x, -1, swapped, !swapped, 2);
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

/* T, B and the rows, from the shape of an input or of states; 0 where it isn't one. */
int measure(Network *net, const Tensor *x, int swapped, PyObject *batch_sizes)
{
    Job *job = &net->like;
    job->type = x->type;
    if (!take_sizes(job, batch_sizes)) {
        PyErr_Clear();
        return 0;
    }
    if (job->packed) {
        job->steps = x->size[0], job->B = job->T ? job->sizes[0] : 0;
        return x->dims == 2 && job->B > 0 && sizes_fit(job);
    }
    job->T = job->steps = x->size[swapped], job->B = x->size[!swapped];
    return x->dims == 3;
}

long inputs_of(const Network *net, long layer, long I) { return layer ? net->how->D * net->how->H : I; }

int see_weights(Network *net, PyObject *weights, long I, int optional)
{
    const long H = net->how->H, count = PyTuple_Size(weights);
    for (long i = 0; i < count; i++) {
        Tensor *w = &net->weights[i];
        const long part = i % net->each, layer = i / (net->each * net->how->D);
        if (!see_alike(net, w, PyTuple_GetItem(weights, i), optional))
            return 0;
        if (w->data && (part < 2 ? !is_shape(w, 2, H, part ? H : inputs_of(net, layer, I), 0) : !is_shape(w, 1, H, 0, 0)))
            return 0;
    }
    return 1;
}

int see_hx(Network *net, Tensor *hx, PyObject *from)
{
    const long LD = net->L * net->how->D;
    if (!see_alike(net, hx, from, 1))
        return 0;
    return !hx->data || is_shape(hx, 3, LD, net->like.B, net->how->H);
}

static int lie(const View *w, const View *u)
{
    const long width = WIDTH[w->data ? w->type : u->type];
    return (!w->data || (w->type <= DOUBLE && w->column == width)) && (!u->data || (u->type <= DOUBLE && u->column == width));
}

/* What forward and backward jobs of a layer and direction share: all but the results. */
void share_job(const Network *net, Job *job, long layer, long d, long I)
{
    const Tensor *weights = net->weights + (layer * net->how->D + d) * net->each;
    *job = net->like;
    job->I = inputs_of(net, layer, I), job->reverse = d ^ net->how->reverse;
    job->u = weight_view(&weights[0]), job->w = weight_view(&weights[1]);
    job->contiguous_weights = lie(&job->w, &job->u);
    job->x = layer ? rows_view(net, &net->states[layer - 1], 0) : rows_view(net, &net->x, net->how->batch_first);
}

static void forward_job(Network *net, long layer, long d, long I, const Tensor *h_n)
{
    const long index = layer * net->how->D + d;
    Job *job = &net->jobs[index];
    const Tensor *weights = net->weights + index * net->each;
    share_job(net, job, layer, d, I);
    job->u = transposed(job->u), job->w = transposed(job->w);
    for (int i = 0; i < net->each - 2; i++)
        job->bias[i] = weight_view(&weights[2 + i]);
    job->y = columns_from(rows_view(net, &net->states[layer], 0), d * net->how->H);
    job->start = state_view(&net->hx, index), job->end = state_view(h_n, index);
}

/* New tensors shaped like an input, time first: the states of each layer that's kept and of the last. Without
 * `keep`, layers before the last write to two in turn. */
static PyObject *new_states(const Network *net, PyObject *input, int keep)
{
    const long DH = net->how->D * net->how->H, dims = net->x.dims;
    const long shape[3] = {net->like.steps, dims == 2 ? DH : net->like.B, DH};
    PyObject *states = PyTuple_New(net->L);
    for (long i = 0; states && i < net->L; i++) {
        PyObject *made = !keep && i > 1 && i < net->L - 1 ? Py_NewRef(PyTuple_GetItem(states, i - 2))
                                                          : new_floats(input, shape, dims);
        if (!made || PyTuple_SetItem(states, i, made))
            Py_CLEAR(states);
    }
    return states;
}

/* Whether x is (T, B, columns), or (N, columns) if packed. */
int is_rows(const Network *net, const Tensor *x, long columns)
{
    const Job *job = &net->like;
    return job->packed ? is_shape(x, 2, job->steps, columns, 0) : is_shape(x, 3, job->T, job->B, columns);
}

int see_states(Network *net, PyObject *states, int (*seen)(Tensor *x, PyObject *from))
{
    for (long i = 0; i < net->L; i++) {
        Tensor *h = &net->states[i];
        if (!seen(h, PyTuple_GetItem(states, i)) || h->type != net->like.type
            || !is_rows(net, h, net->how->D * net->how->H))
            return 0;
    }
    return 1;
}

/* (output, h_n, the states of the layers before or None). */
static PyObject *results(PyObject *states, PyObject *h_n, int keep)
{
    const long last = PyTuple_Size(states) - 1;
    PyObject *before = keep ? PyTuple_GetSlice(states, 0, last) : Py_NewRef(Py_None);
    PyObject *found = before ? PyTuple_Pack(3, PyTuple_GetItem(states, last), h_n, before) : NULL;
    Py_XDECREF(before);
    return found;
}

static int any_wants_gradient(PyObject *input, PyObject *hx, PyObject *weights)
{
    int wanted = wants_gradient(input) || wants_gradient(hx);
    for (long i = 0; !wanted && i < PyTuple_Size(weights); i++)
        wanted = wants_gradient(PyTuple_GetItem(weights, i));
    return wanted;
}

/* The input once more, if it has kept its shape. */
static int see_same(Network *net, PyObject *input, int shared)
{
    const Tensor before = net->x;
    const int fine = shared ? see_shared(&net->x, input) : see_owned(&net->x, input);
    return fine && net->x.type == before.type
        && is_shape(&net->x, before.dims, before.size[0], before.size[1], before.size[2]);
}

/* A tensor that was just made: under a mode it may be anything. */
int see_made(const Network *net, Tensor *x, PyObject *from, long dims, const long *shape)
{
    long stride = 1;
    int fine = see_fresh(x, from) && x->type == net->like.type && x->dims == dims;
    for (long i = dims; fine && i-- > 0; stride *= shape[i])
        fine = x->size[i] == shape[i] && (shape[i] == 1 || x->stride[i] == stride);
    return fine;
}

/* Everything is read after the last Python code has run that could change it: that which made the results. */
static PyObject *run_forward(Network *net, long most, int keep, PyObject *batch_sizes, PyObject *input,
                             PyObject *hx, PyObject *weights)
{
    PyObject *states = NULL, *h_n = NULL, *found = NULL;
    Tensor last;
    long ends[3] = {net->L * net->how->D, 0, net->how->H};
    const int shared = is_shared(input);
    int fine = (shared ? see_shape : see_fresh)(&net->x, input)
        && measure(net, &net->x, net->how->batch_first, batch_sizes);
    ends[1] = net->like.B;
    if (fine && (!(states = new_states(net, input, keep)) || !(h_n = new_floats(input, ends, 3))))
        goto end;
    fine = fine && see_same(net, input, shared);
    const long I = fine ? net->x.size[net->x.dims - 1] : 0;
    fine = fine && (!net->how->I || net->how->I == I) && see_weights(net, weights, I, 0)
        && see_hx(net, &net->hx, hx) && see_states(net, states, see_fresh) && see_made(net, &last, h_n, 3, ends);
    if (!fine) {
        found = Py_NewRef(Py_NotImplemented);
        goto end;
    }
    for (long i = 0; i < net->L * net->how->D; i++)
        forward_job(net, i / net->how->D, i % net->how->D, I, &last);
    if (run_without_python(net->how->variant, net->jobs, net->L, net->how->D, most))
        found = results(states, h_n, keep);
end:
    Py_XDECREF(states);
    Py_XDECREF(h_n);
    return found;
}

PyObject *network(const How *how, long most, int keep, PyObject *batch_sizes, PyObject *input, PyObject *hx,
                  PyObject *weights)
{
    Network net;
    PyObject *found = NULL;
    keep = keep && any_wants_gradient(input, hx, weights);
    if (begin(&net, how, PyTuple_Size(weights)))
        found = run_forward(&net, most, keep, batch_sizes, input, hx, weights);
    forget(&net);
    return found;
}
