r"""Every private name of torch that this package uses, and what serves where a torch lacks one.

Tried on torch 2.11, 2.13, 2.14.1 and 2.15.0, which have them all. Without one nothing fails at import, and
no number changes:

    what tells who looks on        every call is taken for one that somebody sees: its operator, 20 us more
    what carries a node of ours    under a transform or a trace the reference runs, by PyTorch's derivatives;
                                   another kernel, if it was asked for, raises
    a copy made when written to    a copy made at once
    where memory is                C serves the recurrences alone, by addresses
    cuDNN's network and its node   on CUDA the other kernels run
    who has which rule             on CUDA `is_grads_batched` raises, as for nn.RNN
    tensors as one                 they are joined by operations of their own
    what a profiler is told        it is told nothing
    what a processor can           nothing special
    a loop of open length          decompositions raise where a length is open; an exported recurrence of
                                   your own is unrolled

The few names that can't stand here are listed, each with its reason, in tests/house/test_house.py.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree

__all__ = [
    "CUDNN_DERIVATIVE",
    "MISSING",
    "MODULE_CALL",
    "Function",
    "any_autocast",
    "below_autograd",
    "below_autograd_keep_forward_ad",
    "copy_on_write",
    "cow_data_ptr",
    "cudnn_rnn",
    "cudnn_rnn_packet",
    "cudnn_saved_tensors",
    "dispatch_key_set",
    "flatten_dense",
    "forward_mode_is_active",
    "functorch_active",
    "fx_tracer",
    "has_storage",
    "in_draft_export",
    "in_forward_mode",
    "is_cow",
    "is_wrapper",
    "modes",
    "multiplies_in_tiles",
    "no_interposition",
    "no_tracing",
    "offers_cudnn_node",
    "profiling",
    "record_function_fast",
    "register_cudnn_backward_vmap",
    "scan",
    "scan_op",
    "single_level",
    "torchscript",
    "under_legacy_vmap",
    "unnoticed_alias",
]


TRACERS = ("torch.fx", "torch._subclasses")  # where torch keeps the modes with which it traces


def find(module: str, name: str | None = None) -> Any:
    """A module of torch or a name in it, or None where that is missing."""
    try:
        found = import_module(module)
    except ImportError:
        return None
    return found if name is None else getattr(found, name, None)


# What `torch.jit.trace` and the ONNX exporter built on it are tracing, or None.
torchscript: Callable[[], Any] = find("torch._C", "_get_tracing_state") or (
    lambda: torch.jit.is_tracing() or None
)

# Who looks on: a transform of torch.func, a mode, a level of forward mode.
_transforms = find("torch._C", "_are_functorch_transforms_active")
_mode_count = find("torch._C", "_len_torch_dispatch_stack")
_mode_at = find("torch._C", "_get_dispatch_stack_at")
_function_mode_count = find("torch._C", "_len_torch_function_stack")
_function_mode_at = find("torch._C", "_get_function_stack_at")
_can_tell = hasattr(forward_ad, "_current_level") and None not in (
    _transforms, _mode_count, _function_mode_count, _function_mode_at,
)  # fmt: skip
functorch_active: Callable[[], bool] = _transforms or (lambda: False)
_DeviceContext = find("torch.utils._device", "DeviceContext")


def no_interposition() -> bool:
    """Whether no transform, mode, tracer or forward-mode level is in force.

    Modes of `__torch_function__` count too, also those under which `make_fx(pre_dispatch=True)` traces; only
    the default device, which is one, doesn't.
    """
    if (
        not _can_tell
        or _transforms()
        or _mode_count()
        or torchscript()
        or forward_ad._current_level >= 0
    ):  # fmt: skip
        return False
    count = _function_mode_count()
    return not count or all(type(_function_mode_at(place)) is _DeviceContext for place in range(count))


def no_tracing() -> bool:
    """The same, but that modes may look on as long as none of them is a tracer."""
    if not _can_tell or _transforms() or torchscript() or forward_ad._current_level >= 0:
        return False
    looking = [*modes(), *map(_function_mode_at, range(_function_mode_count()))]
    return not any(type(mode).__module__.startswith(TRACERS) for mode in looking)


def modes() -> list[Any]:
    """The modes that see every operator."""
    if _mode_count is None or _mode_at is None:
        return []
    return [_mode_at(place) for place in range(_mode_count())]


_dispatch_keys = find("torch._C", "_dispatch_keys")
_readable = hasattr(find("torch._C", "DispatchKeySet"), "raw_repr")


def dispatch_key_set(x: Tensor) -> Any:
    """What a tensor asks the dispatcher for, to be compared; without it, what equals nothing."""
    return _dispatch_keys(x).raw_repr() if _dispatch_keys and _readable else object()


# A module's call, hooks included.
MODULE_CALL: Callable[..., Any] = torch.nn.Module._call_impl


def fx_tracer(args: Any, kwargs: Any) -> Any:
    """The tracer of torch.fx that traces the model around a call with these arguments, or None.

    Each Proxy knows its tracer. Without one among the arguments, the tracer is found in the closure that
    it has put in place of `nn.Module.__call__`. `make_fx` traces by modes, through a call of its own.
    """
    for x in _pytree.tree_leaves((args, kwargs)):
        if isinstance(x, torch.fx.Proxy):
            return x.tracer
    for cell in getattr(torch.nn.Module.__call__, "__closure__", None) or ():
        found = cell.cell_contents
        if isinstance(found, torch.fx.Tracer):
            plain = type(found).call_module is torch.fx.Tracer.call_module
            return found if plain else None
    return None


is_wrapper: Callable[[Tensor], bool] = find("torch._C._functorch", "is_functorch_wrapped_tensor") or (
    lambda x: True
)

# A tensor of the older vmap, which `is_grads_batched` uses.
is_legacy_batched: Callable[[Tensor], bool] = find("torch._C._functorch", "is_legacy_batchedtensor") or (
    lambda x: False
)


def under_legacy_vmap(operator: Any, *args: Any) -> Any:
    """The rule of `is_grads_batched`, whose vmap is an older one: the operator under today's `torch.vmap`."""
    flat, spec = _pytree.tree_flatten(args)
    batched = [isinstance(x, Tensor) and is_legacy_batched(x) for x in flat]
    level = 1  # no pass through a graph is batched twice
    flat = [
        torch._remove_batch_dim(x, level, 1, 0) if wrapped else x
        for x, wrapped in zip(flat, batched, strict=True)
    ]
    places = [at for at, wrapped in enumerate(batched) if wrapped]

    def run(*mapped: Any) -> Any:
        given = list(flat)
        for at, x in zip(places, mapped, strict=True):
            given[at] = x
        return operator(*_pytree.tree_unflatten(given, spec))

    found = torch.vmap(run)(*[flat[at] for at in places])
    return _pytree.tree_map_only(Tensor, lambda x: torch._add_batch_dim(x.contiguous(), 0, level), found)


def forward_mode_is_active() -> bool:
    """Whether tensors may carry tangents."""
    return not hasattr(forward_ad, "_current_level") or forward_ad._current_level >= 0


# The base of `autograd.Function` without what hands a Function to functorch: these rules are always at one
# level, below the operator whose Autograd key they are. `Function` itself raises there since 2.14, and its
# Python `apply` binds a signature at every call, for 40 us. `single_level` is of the one transform that the
# dispatcher is at.
_single_level_function = find("torch.autograd.function", "_SingleLevelFunction")
single_level = find("torch._functorch.autograd_function", "enable_single_level_autograd_function")
_forward_mode: Any = getattr(forward_ad, "_set_fwd_grad_enabled", None)
_below_autograd = find("torch._C", "_AutoDispatchBelowAutograd")
below_autograd: Any = _below_autograd or torch.no_grad  # a block of which autograd sees nothing
MISSING = [  # of what a node of ours needs below a transform or a trace
    name
    for name, found in {
        "torch.autograd.function._SingleLevelFunction": _single_level_function,
        "torch._functorch.autograd_function.enable_single_level_autograd_function": single_level,
        "torch.autograd.forward_ad._set_fwd_grad_enabled": _forward_mode,
        "torch._C._AutoDispatchBelowAutograd": _below_autograd,
    }.items()
    if found is None
]
_base: Any = _single_level_function or torch.autograd.Function


class Function(_base):
    """The base of every node of ours. Compiled autograd asks for its key, which `autograd.Function` adds."""

    _compiled_autograd_key: Any = getattr(torch.autograd.Function, "_compiled_autograd_key", None)


def in_forward_mode() -> Any:
    """A block in which forward mode goes on, where PyTorch has turned it off."""
    return _forward_mode(True)


@contextmanager
def below_autograd_keep_forward_ad() -> Iterator[None]:
    """For the forward of a rule: `apply` turns off all differentiation, but a transform around the present
    one still wants its own."""
    with torch.enable_grad(), in_forward_mode(), _below_autograd():
        yield


# `x` for backward to keep while the user may write to `x`: copied only when either is written.
copy_on_write: Callable[[Tensor], Tensor] = find("torch", "_lazy_clone") or Tensor.clone

# Where a tensor's storage is, without that copy; whether it may come to it; whether there is memory.
cow_data_ptr: Callable[[Tensor], int] | None = find("torch._C", "_data_address")
is_cow: Callable[[Tensor], bool] | None = find("torch._C", "_is_cow_tensor")
has_storage: Callable[[Tensor], bool] | None = find("torch._C", "_has_storage")

# The numbers of several tensors in one; cuDNN's network, if its node can be read; its derivative.
flatten_dense: Callable[[Sequence[Tensor]], Tensor] = find("torch._C._nn", "flatten_dense_tensors") or (
    lambda tensors: torch.cat([x.reshape(-1) for x in tensors])
)
_current_node = find("torch._C", "_current_autograd_node")
cudnn_rnn: Any = find("torch", "_cudnn_rnn") if _current_node else None
CUDNN_DERIVATIVE = "_cudnn_rnn_backward"
_has_kernel = find("torch._C", "_dispatch_has_kernel_for_dispatch_key")
CUDNN_KEEPS = (
    "input", "weight", "hx", "weight_stride0", "mode", "num_layers", "batch_first", "batch_sizes",
)  # fmt: skip


def cudnn_saved_tensors() -> Any:
    """What cuDNN's node keeps, at which the backward pass is, under the names of the operator's arguments."""
    node = _current_node()
    return SimpleNamespace(**{name: getattr(node, f"_saved_{name}") for name in CUDNN_KEEPS})


def register_cudnn_backward_vmap(rule: Callable[..., Any]) -> Any:
    """For `is_grads_batched`, if torch has none; the registration lasts as long as what is returned."""
    if _has_kernel is None or _has_kernel(f"aten::{CUDNN_DERIVATIVE}", "Batched"):
        return None
    library = torch.library.Library("aten", "IMPL")
    library.impl(CUDNN_DERIVATIVE, rule, "Batched")
    return library


CUDNN_SCHEMAS = {
    "_cudnn_rnn": (
        "aten::_cudnn_rnn(Tensor input, Tensor[] weight, int weight_stride0, Tensor? weight_buf, Tensor hx, "
        "Tensor? cx, int mode, SymInt hidden_size, SymInt proj_size, int num_layers, bool batch_first, "
        "float dropout, bool train, bool bidirectional, SymInt[] batch_sizes, Tensor? dropout_state) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "_cudnn_rnn_backward": (
        "aten::_cudnn_rnn_backward(Tensor input, Tensor[] weight, int weight_stride0, Tensor weight_buf, "
        "Tensor hx, Tensor? cx, Tensor output, Tensor? grad_output, Tensor? grad_hy, Tensor? grad_cy, "
        "int mode, SymInt hidden_size, SymInt proj_size, int num_layers, bool batch_first, float dropout, "
        "bool train, bool bidirectional, SymInt[] batch_sizes, Tensor? dropout_state, Tensor reserve, "
        "bool[4] output_mask) -> (Tensor, Tensor, Tensor, Tensor[])"
    ),
}


cudnn_rnn_packet: Any = getattr(torch.ops.aten, "_cudnn_rnn", None)


def offers_cudnn_node() -> bool:
    """Whether cuDNN's operators are those that the engine serves on a CPU, and nobody has a kernel there."""
    if cudnn_rnn is None or _has_kernel is None:
        return False
    for name, schema in CUDNN_SCHEMAS.items():
        packet = getattr(torch.ops.aten, name, None)
        if packet is None or str(packet.default._schema) != schema:
            return False
        if any(_has_kernel(f"aten::{name}", key) for key in ("CPU", "CompositeExplicitAutograd")):
            return False
    return not _has_kernel("aten::_cudnn_rnn_backward", "AutogradCPU")


# A tensor over the same memory, with the same gradient, that notices no edit of the other.
unnoticed_alias: Callable[..., Tensor] = torch.ops.aten._unsafe_view.default

# Whether a profiler is at work, and the one event that tells it of shapes.
profiling: Callable[[], bool] = find("torch.autograd", "_profiler_enabled") or (lambda: False)
record_function_fast: Callable[..., Any] = find("torch._C._profiler", "_RecordFunctionFast") or (
    lambda *_: nullcontext()
)

# Whether autocast is on for any kind of device; PyTorch's public question is of one.
any_autocast: Callable[[], bool] = find("torch._C", "_is_any_autocast_enabled") or (
    lambda: any(map(torch.is_autocast_enabled, ("cpu", "cuda", "xpu")))
)

# Whether this processor multiplies tiles of bfloat16 numbers (AMX), many times as fast as floats.
multiplies_in_tiles: Callable[[], bool] = find("torch.cpu", "_is_amx_tile_supported") or (lambda: False)

# torch's loop over a length that stays open, as a function and as the operator that this becomes in a trace.
# That of 2.11 has wrong gradients.
_scan = find("torch._higher_order_ops", "scan")
_scan_op = find("torch._higher_order_ops.scan", "scan_op")
scan: Any
scan_op: Any
scan, scan_op = (_scan, _scan_op) if torch.__version__ >= "2.13" else (None, None)

_functorch_config = find("torch._functorch.config")


def in_draft_export() -> bool:
    """Whether `torch.export.draft_export` is at work, which calls operators with numbers too, and takes an
    absent `Tensor?` for one that was written to."""
    return torch.compiler.is_exporting() and getattr(
        _functorch_config, "fake_tensor_propagate_real_tensors", False
    )
