/* One call of a kernel: it owns its arguments, reads tensors from them, and makes results. */
#ifndef MANUAL_RNN_CALL_H
#define MANUAL_RNN_CALL_H
#include "torch_abi.h"

typedef void Release(void *thing);
typedef struct { void *thing; Release *release; } Owned;
typedef struct { Owned *items; size_t count, room; } Pile;

typedef struct {
    Pile held;    /* released when the kernel ends: arguments, what holds their storages, and memory */
    Pile results; /* in their order; released only where the kernel fails */
} Call;

/* Memory of zeros that is freed when the kernel ends, or NULL. */
void *hold_memory(Call *call, size_t count, size_t width);

/* A tensor of the call's; absent where there is none. */
bool read(Call *call, Tensor *x, const char *name, Value from);

/* The tensors of a list, `group` of them into every `each` places. */
bool read_list(Call *call, Value list, Tensor *to, long group, long each, const char *name);

/* `*sizes` stays NULL where there are none. */
bool read_batch_sizes(Call *call, int64_t **sizes, int64_t *count, Value from);

/* The call's next result: a new tensor of this shape in contiguous memory. `swapped` exchanges its first two axes, but
 * not their memory. */
bool make_result(Call *call, Tensor *x, long type, Shape shape, bool swapped);

/* The call's next result: a copy. */
bool copy_result(Call *call, Value from);

/* Runs a kernel's body and releases what the call held; raises torch's exception where the body returned false. There
 * is a letter for each argument, and one for each result:
 *
 *     t    a tensor              l    a list of tensors; of results, all that are left
 *     o    an optional tensor    n    a list of numbers
 *     s    a string              -    a number, which nobody releases
 */
typedef bool Body(Call *call, const Value *arguments);
void run_kernel(Value *stack, const char *arguments, const char *results, Body *body);

#define KERNEL(name, arguments, results, body) \
    void name(Value *stack, uint64_t given, uint64_t made) \
    { \
        (void)given, (void)made; \
        run_kernel(stack, arguments, results, body); \
    }

#endif
