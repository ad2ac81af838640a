/* A module's call: what it is, read from the module's attributes, and its weights.
 *
 * Whatever isn't just as the constructor of nn.RNN leaves it is refused, and Python's checks find a name for it.
 */
#include "called.h"
#include <limits.h>

enum {
    MODE, BIAS, BATCH_FIRST, BIDIRECTIONAL, TRAINING, DROPOUT, PROJECTION, HIDDEN, INPUT, LAYERS, PARAMETERS, NAMES,
    ASSIGNED, ATTRIBUTES
};
static const char *const words[ATTRIBUTES] = {
    "mode", "bias", "batch_first", "bidirectional", "training", "dropout", "proj_size", "hidden_size", "input_size",
    "num_layers", "_parameters", "_all_weights", "_assigned"};
static const char *const modes[] = {[TANH] = "RNN_TANH", [RELU] = "RNN_RELU"};
static PyObject *attributes[ATTRIBUTES]; /* those words as Python's */

int prepare_calls(void)
{
    for (int i = 0; i < ATTRIBUTES; i++)
        if (!attributes[i] && !(attributes[i] = PyUnicode_InternFromString(words[i])))
            return 0;
    return 1;
}

/* What's read is borrowed, and NULL where there is none. */
static PyObject *attribute_of(PyObject *own, int attribute) { return PyDict_GetItemWithError(own, attributes[attribute]); }

static int read_flag(PyObject *own, int attribute, long *to)
{
    const PyObject *found = attribute_of(own, attribute);
    *to = found == Py_True;
    return found == Py_True || found == Py_False;
}

static int read_size(PyObject *own, int attribute, long *to)
{
    PyObject *found = attribute_of(own, attribute);
    int overflow;
    if (!found || !PyLong_CheckExact(found))
        return 0;
    *to = PyLong_AsLongAndOverflow(found, &overflow);
    return !overflow && *to > 0 && *to <= INT_MAX;
}

static int read_kind(PyObject *own, long *to)
{
    PyObject *mode = attribute_of(own, MODE);
    for (*to = TANH; mode && PyUnicode_CheckExact(mode) && *to <= RELU; ++*to)
        if (!PyUnicode_CompareWithASCIIString(mode, modes[*to]))
            return 1;
    return 0;
}

/* Whether there's nothing to drop, and nothing to project. */
static int is_whole(PyObject *own, long layers)
{
    PyObject *dropout = attribute_of(own, DROPOUT), *projection = attribute_of(own, PROJECTION);
    long training;
    if (!read_flag(own, TRAINING, &training) || !dropout || !PyFloat_CheckExact(dropout))
        return 0;
    return (!training || layers == 1 || PyFloat_AsDouble(dropout) == 0) && projection
        && PyLong_CheckExact(projection) && PyLong_AsLong(projection) == 0;
}

/* The parameters by the names of each layer and direction: a new tuple, or NULL where one is missing. */
static PyObject *read_weights(PyObject *own, long groups, long each)
{
    PyObject *parameters = attribute_of(own, PARAMETERS), *names = attribute_of(own, NAMES);
    if (!parameters || !PyDict_CheckExact(parameters) || !names || !PyList_CheckExact(names)
        || PyList_Size(names) != groups)
        return NULL;
    PyObject *weights = PyTuple_New(groups * each);
    for (long i = 0; weights && i < groups * each; i++) {
        PyObject *group = PyList_GetItem(names, i / each), *found = NULL;
        if (group && PyList_CheckExact(group) && PyList_Size(group) == each)
            found = PyDict_GetItemWithError(parameters, PyList_GetItem(group, i % each));
        if (!found || PyTuple_SetItem(weights, i, Py_NewRef(found)))
            Py_CLEAR(weights);
    }
    return weights;
}

PyObject *read_module(How *how, PyObject *own)
{
    long bidirectional, layers;
    PyObject *weights = NULL;
    if (PyDict_CheckExact(own) && read_kind(own, &how->kind) && read_flag(own, BIAS, &how->bias)
        && read_flag(own, BATCH_FIRST, &how->batch_first) && read_flag(own, BIDIRECTIONAL, &bidirectional)
        && read_size(own, HIDDEN, &how->H) && read_size(own, INPUT, &how->I) && read_size(own, LAYERS, &layers)
        && is_whole(own, layers) && !attribute_of(own, ASSIGNED)) {
        how->D = 1 + bidirectional, how->reverse = 0;
        weights = read_weights(own, layers * how->D, how->bias ? 4 : 2);
    }
    PyErr_Clear();
    return weights;
}
