/* torch's stable C ABI, found in the libtorch that is loaded: no header of torch, no link to it, no Python.
 *
 * What may fail returns false, and `error_message` says why; `raise_error` hands that to torch as an exception.
 */
#ifndef MANUAL_RNN_TORCH_ABI_H
#define MANUAL_RNN_TORCH_ABI_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "tensor.h"

typedef uint64_t Value;  /* an argument or a result of an operator, as torch hands it over */
typedef void *Handle;    /* of a tensor, a list or a string */
typedef void Kernel(Value *stack, uint64_t arguments, uint64_t results);

enum { TORCH_2_11 = 11 };
#define ABI_VERSION (((uint64_t)2 << 56) | ((uint64_t)TORCH_2_11 << 48))

/* Looks every symbol up, once; false where this libtorch lacks one. */
bool torch_abi_load(void);

/* Registers a kernel for an operator and a dispatch key; `define` adds an operator's schema to `manual_rnn`. */
bool register_kernel(const char *name_space, const char *key, const char *name, Kernel *kernel);
bool define_operator(const char *schema);

int torch_threads(void);
bool grad_mode_is_enabled(void);
bool call_operator(const char *name, Value *stack);

/* Ends the kernel with torch's exception; nothing after it runs. */
_Noreturn void raise_error(void);

/* A tensor's sizes, strides and memory, checked: on the CPU, of floating-point numbers, aligned, within its storage.
 * `keep` gets an alias that holds the storage until `release_tensor`, whatever another thread does meanwhile. */
bool read_tensor(Tensor *x, const char *name, Handle from, Handle *keep);
bool read_sizes(int64_t **sizes, int64_t *count, Handle from); /* a copy, to be freed */
bool is_defined(Value tensor);
/* Whether a tensor carries a tangent of forward mode, and whether this torch lets C ask. */
bool carries_tangent(Value tensor);
bool finds_tangents(void);
long tensor_dims(Value tensor);

/* A tensor of the type, the sizes and the strides of x, whose memory x gets; NULL where there is none. */
Handle new_tensor(Tensor *x);
Handle copy_tensor(Handle from);
Value undefined_tensor(void);

/* A list hands over what was appended to it: its reader releases each tensor once, and then the list. */
Value new_list(size_t room);
void list_append(Value list, Value item);
size_t list_size(Value list);
Value list_item(Value list, size_t index);
const char *string_of(Value string);

void release_tensor(void *tensor);
void release_list(void *list);
void release_string(void *string);
/* Of an optional argument: what it holds, or 0. The holder is freed. */
Value take_optional(Value holder);

#endif
