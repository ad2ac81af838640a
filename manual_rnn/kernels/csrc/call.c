#include "call.h"
#include <stdlib.h>

static void add(Pile *pile, void *thing, Release *release)
{
    if (!thing)
        return;
    if (pile->count == pile->room) {
        pile->room = pile->room ? 2 * pile->room : 64;
        pile->items = realloc(pile->items, pile->room * sizeof *pile->items);
        if (!pile->items)
            abort();
    }
    pile->items[pile->count++] = (Owned){thing, release};
}

static void release_all(Pile *pile)
{
    for (size_t i = 0; i < pile->count; i++)
        pile->items[i].release(pile->items[i].thing);
}

void *hold_memory(Call *call, size_t count, size_t width)
{
    void *memory = calloc(count, width);
    add(&call->held, memory, free);
    return memory;
}

bool read(Call *call, Tensor *x, const char *name, Value from)
{
    Handle alias = NULL;
    *x = (Tensor){.name = name};
    if (!is_defined(from))
        return true;
    const bool fine = read_tensor(x, name, (Handle)from, &alias);
    add(&call->held, alias, release_tensor);
    return fine;
}

bool read_list(Call *call, Value list, Tensor *to, long group, long each, const char *name)
{
    const long count = list_size(list);
    for (long i = 0; i < count; i++) {
        Tensor *x = &to[i / group * each + i % group];
        if (!read(call, x, name, list_item(list, i)))
            return false;
    }
    return true;
}

bool read_batch_sizes(Call *call, int64_t **sizes, int64_t *count, Value from)
{
    if (!from)
        return true;
    const bool fine = read_sizes(sizes, count, (Handle)from);
    add(&call->held, *sizes, free);
    return fine;
}

bool make_result(Call *call, Tensor *x, long type, Shape shape, bool swapped)
{
    *x = (Tensor){.name = "a result", .type = type, .dims = shape.dims};
    int64_t next = 1;
    for (long i = shape.dims; i-- > 0; next *= shape.size[i])
        x->size[i] = shape.size[i], x->stride[i] = next;
    if (swapped) {
        const int64_t step = x->stride[0];
        x->size[0] = shape.size[1], x->size[1] = shape.size[0];
        x->stride[0] = x->stride[1], x->stride[1] = step;
    }
    const Handle made = new_tensor(x);
    add(&call->results, made, release_tensor);
    return made != NULL;
}

bool copy_result(Call *call, Value from)
{
    const Handle made = copy_tensor((Handle)from);
    add(&call->results, made, release_tensor);
    return made != NULL;
}

/* A list doesn't own its tensors: whoever has it releases each of them. */
static void take_tensors(Call *call, Value list)
{
    const size_t count = list_size(list);
    for (size_t i = 0; i < count; i++)
        add(&call->held, (Handle)list_item(list, i), release_tensor);
}

static void take_arguments(Call *call, Value *stack, const char *kinds)
{
    for (; *kinds; kinds++, stack++)
        switch (*kinds) {
        case 'o': *stack = take_optional(*stack); /* fall through */
        case 't': add(&call->held, (Handle)*stack, release_tensor); break;
        case 'l': take_tensors(call, *stack); /* fall through */
        case 'n': add(&call->held, (Handle)*stack, release_list); break;
        case 's': add(&call->held, (Handle)*stack, release_string); break;
        default: break;
        }
}

static void give_results(const Pile *results, Value *stack, const char *kinds)
{
    size_t next = 0;
    for (; *kinds; kinds++, stack++) {
        if (*kinds == 't') {
            *stack = (Value)results->items[next++].thing;
            continue;
        }
        *stack = new_list(results->count - next);
        while (next < results->count)
            list_append(*stack, (Value)results->items[next++].thing);
    }
}

void run_kernel(Value *stack, const char *arguments, const char *results, Body *body)
{
    Call call = {0};
    take_arguments(&call, stack, arguments);
    const bool done = body(&call, stack);
    if (done)
        give_results(&call.results, stack, results);
    else
        release_all(&call.results);
    release_all(&call.held);
    free(call.held.items), free(call.results.items);
    if (!done)
        raise_error();
}
