r"""Autograd and the transforms of torch.func: nodes, levels, what wraps a tensor."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from .active import forward_mode_is_active, functorch_active, no_tracing
from .find import find, never

unwrap_if_dead: Callable[[Tensor], Tensor] = find("torch._C._functorch", "unwrap_if_dead")
is_wrapper: Callable[[Tensor], bool] = find("torch._C._functorch", "is_functorch_wrapped_tensor", never)
_unpack_dual: Any = find("torch._VF", "_unpack_dual")
_is_gradtracking: Callable[[Tensor], bool] = find("torch._C._functorch", "is_gradtrackingtensor", never)
_unwrapped: Callable[[Tensor], Tensor] = find("torch._C._functorch", "get_unwrapped")
_is_batched: Callable[[Tensor], bool] = find("torch._C._functorch", "is_batchedtensor", never)


def without_gradient_levels(x: Tensor | None) -> Tensor | None:
    """A tensor that has no gradient, out of what `torch.func.grad` and its like wrap every tensor in: their
    wrapper can't be read once they have ended."""
    while x is not None and _is_gradtracking(x):
        x = _unwrapped(x)
    return x


def tracks_gradient(x: Tensor) -> bool:
    """Whether a derivative by `x` may be wanted, of autograd or of any transform."""
    if x.requires_grad or carry_tangents(x):
        return True
    while is_wrapper(x):
        if _is_gradtracking(x):
            return True
        x = _unwrapped(x)
    return False


def carry_tangents(*tensors: Tensor | None) -> bool:
    """Whether any of them does. In a compiled graph the level of forward mode is entered unseen by Python, so
    there the tensors are asked."""
    if forward_mode_is_active():
        return True
    if no_tracing() and not functorch_active():
        return False
    return any(x is not None and _unpack_dual(x, level=0).tangent is not None for x in tensors)


def is_mapped(*tensors: Tensor | None) -> bool:
    """Whether `vmap` maps over any of them, inside of whatever differentiates."""
    for x in tensors:
        while x is not None and is_wrapper(x):
            if _is_batched(x):
                return True
            x = _unwrapped(x)
    return False


_is_functional: Callable[[Tensor], bool] = find("torch", "_is_functional_tensor", never)
_from_functional, _sync = find("torch", "_from_functional_tensor"), find("torch", "_sync")


def as_numbers(x: Tensor) -> Tensor:
    """A tensor that has no gradient, as one of no subclass, and out of what `torch.func.functionalize` wraps
    every tensor in: a wrapper without memory to read."""
    if torch.compiler.is_compiling() or type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return x
    if _is_functional(x):
        _sync(x)
        x = _from_functional(x)
    with as_plain_tensors():
        return x.as_subclass(Tensor)


_is_legacy_batched: Callable[[Tensor], bool] = find("torch._C._functorch", "is_legacy_batchedtensor", never)


def has_many_tangents(x: Tensor) -> bool:
    """Whether it carries those of all columns of a Jacobian, which `vectorize=True` makes by an old vmap."""
    tangent = _unpack_dual(x, level=0).tangent if forward_mode_is_active() else None
    return tangent is not None and _is_legacy_batched(tangent)


_add_batch_dim, _remove_batch_dim = find("torch", "_add_batch_dim"), find("torch", "_remove_batch_dim")


def under_legacy_vmap(operator: Any, *args: Any) -> Any:
    """The rule of `is_grads_batched`, whose vmap is an older one: the operator under today's `torch.vmap`."""
    flat, spec = _pytree.tree_flatten(args)
    batched = [isinstance(x, Tensor) and _is_legacy_batched(x) for x in flat]
    level = 1  # no pass through a graph is batched twice
    flat = [
        _remove_batch_dim(x, level, 1, 0) if wrapped else x for x, wrapped in zip(flat, batched, strict=True)
    ]
    places = [at for at, wrapped in enumerate(batched) if wrapped]

    def run(*mapped: Any) -> Any:
        given = list(flat)
        for at, x in zip(places, mapped, strict=True):
            given[at] = x
        return operator(*_pytree.tree_unflatten(given, spec))

    found = torch.vmap(run)(*[flat[at] for at in places])
    return _pytree.tree_map_only(Tensor, lambda x: _add_batch_dim(x.contiguous(), 0, level), found)


_interpreter: Any = find("torch._functorch.pyfunctorch", "retrieve_current_functorch_interpreter")
_unwrap_batched: Any = find("torch._C._functorch", "_unwrap_batched")
_wrap_batched: Any = find("torch._C._functorch", "_add_batch_dim")
_exclude: Any = find("torch._C", "_ExcludeDispatchKeyGuard")
_keys, _key = find("torch._C", "DispatchKeySet"), find("torch._C", "DispatchKey")
_BATCHED = None if _key is None or _keys is None else _keys(_key.FuncTorchBatched)
_RANDOMNESS = None if _key is None or _keys is None else _keys(_key.FuncTorchVmapMode)


def unmapped_randomness(x: Tensor) -> AbstractContextManager[None]:
    """A block in which numbers are drawn as outside of `vmap`, if that doesn't map over `x`: once for all,
    whatever its `randomness` is."""
    if torch.compiler.is_compiling() or not functorch_active() or is_mapped(x):
        return nullcontext()
    return _exclude(_RANDOMNESS)


def run_vmap_rule(operator: Any, rule: Callable[..., Any], *args: Any) -> Any:
    """What the dispatcher calls under `vmap`: the rule, given the mapped axis of each tensor apart. torch's
    own `register_vmap` flattens trees of arguments: per-sample gradients took 1.8 ms with it, 1.5 without."""
    layer = _interpreter()
    level = layer.level()

    def unwrapped(x: Any) -> tuple[Any, Any]:
        if isinstance(x, Tensor):
            return _unwrap_batched(x, level)
        if isinstance(x, (list, tuple)) and x and isinstance(x[0], Tensor):
            values, places = zip(*(_unwrap_batched(each, level) for each in x), strict=True)
            return list(values), None if places.count(None) == len(places) else list(places)
        return x, None

    def wrapped(x: Any, place: Any) -> Any:
        if isinstance(x, Tensor):
            return _wrap_batched(x, place, level)
        return [_wrap_batched(each, at, level) for each, at in zip(x, place, strict=True)]

    values, places = zip(*map(unwrapped, args), strict=True)
    with _exclude(_BATCHED):
        if places.count(None) == len(places):
            return operator(*values)
        found, where = rule(layer.batch_size(), places, *values)
    if isinstance(found, tuple):
        return tuple(map(wrapped, found, where))
    return wrapped(found, where)


# The base of `autograd.Function` without what hands a Function to functorch: our nodes are always at one
# level, below the operator whose Autograd key they are. `Function` itself raises there since 2.14, and its
# Python `apply` binds a signature at every call, for 40 us. `single_level` is of the one transform that the
# dispatcher is at.
_base: Any = find("torch.autograd.function", "_SingleLevelFunction", torch.autograd.Function)
single_level = find("torch._functorch.autograd_function", "enable_single_level_autograd_function")
in_forward_mode: Any = find("torch.autograd.forward_ad", "_set_fwd_grad_enabled")
below_autograd: Any = find("torch._C", "_AutoDispatchBelowAutograd", torch.no_grad)


class Function(_base):
    """The base of every node of ours. Compiled autograd asks for its key, which `autograd.Function` adds."""

    _compiled_autograd_key: Any = getattr(torch.autograd.Function, "_compiled_autograd_key", None)


@contextmanager
def below_autograd_keep_forward_ad() -> Iterator[None]:
    """For the forward of a node: `apply` turns off all differentiation, but a transform around the present
    one still wants its own."""
    with torch.enable_grad(), in_forward_mode(True), below_autograd():
        yield


# Whether operations on a subclass give the subclass, and a block in which they don't.
subclasses_are_kept: Callable[[], bool] = find("torch._C", "_is_torch_function_enabled", never)
as_plain_tensors: Any = find("torch._C", "DisableTorchFunctionSubclass")
_default_handler = getattr(Tensor.__torch_function__, "__func__", None)


def changes_nothing(kind: Any) -> bool:
    """Whether a subclass of Tensor handles operations as Tensor does, and is but a name for their results."""
    handler, inner = getattr(kind, "__torch_function__", None), getattr(kind, "__torch_dispatch__", None)
    return getattr(handler, "__func__", 0) is _default_handler and inner is Tensor.__torch_dispatch__


# A tensor over the same memory, with the same gradient, that notices no edit of the other.
unnoticed_alias: Callable[..., Tensor] = torch.ops.aten._unsafe_view.default

# Copies of tensors that all want a gradient, with one autograd node. A training step of (T, B, I, H) =
# (3, 2, 2, 3) takes 80 us with it and 85 where each has a node of its own; one of two layers and two
# directions 152 and 168, on a Zen 5. Torch 2.11 hasn't the operator.
copy_all: Callable[[list[Tensor]], Sequence[Tensor]] = getattr(
    torch, "_foreach_clone", lambda tensors: [x.clone() for x in tensors]
)
