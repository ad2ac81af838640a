r"""Every private name of torch that this package uses. Torch 2.11, 2.13, 2.14.1 and 2.15.0 have them all.

Where a torch lacks one, `MISSING` says so and the reference runs, of PyTorch's own operations: nothing fails
at import, and no number changes. Another kernel, if it was asked for, raises.

The few names that can't stand here are listed, each with its reason, in tests/house/test_house.py.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree

__all__ = [
    "CUDNN_DERIVATIVE",
    "CUDNN_SCHEMAS",
    "MISSING",
    "MODULE_CALL",
    "Function",
    "any_autocast",
    "as_plain_tensors",
    "below_autograd",
    "below_autograd_keep_forward_ad",
    "carry_tangents",
    "changes_nothing",
    "compiles_graph",
    "cudnn_rnn",
    "cudnn_rnn_packet",
    "cudnn_saved_tensors",
    "dispatch_key_set",
    "flatten_dense",
    "forward_mode_is_active",
    "functorch_active",
    "fx_tracer",
    "has_amx",
    "has_global_hooks",
    "in_draft_export",
    "in_forward_mode",
    "is_mapped",
    "is_wrapper",
    "modes",
    "no_interposition",
    "no_tracing",
    "offers_cudnn_node",
    "profiling",
    "record_function_fast",
    "register_cudnn_backward_vmap",
    "run_vmap_rule",
    "scan",
    "scan_op",
    "single_level",
    "subclasses_are_kept",
    "torchscript",
    "tracks_gradient",
    "transforms_active",
    "under_legacy_vmap",
    "unnoticed_alias",
    "unwrap_if_dead",
    "without_gradient_levels",
]

MISSING: list[str] = []
TRACERS = ("torch.fx", "torch._subclasses")  # where torch keeps the modes with which it traces


def find(module: str, name: str, otherwise: Any = None) -> Any:
    """A name in a module of torch; where it is missing, `otherwise`, once that is noted."""
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError):
        MISSING.append(f"{module}.{name}")
        return otherwise


def never(*_: Any) -> bool:
    return False


# What `torch.jit.trace` and the ONNX exporter built on it are tracing, or None.
torchscript: Callable[[], Any] = find("torch._C", "_get_tracing_state", never)

# What may be active: a transform of torch.func, modes, a level of forward mode, a profiler, autocast.
functorch_active: Callable[[], bool] = find("torch._C", "_are_functorch_transforms_active", never)
unwrap_if_dead: Callable[[Tensor], Tensor] = find("torch._C._functorch", "unwrap_if_dead")
profiling: Callable[[], bool] = find("torch.autograd", "_profiler_enabled", never)
any_autocast: Callable[[], bool] = find("torch._C", "_is_any_autocast_enabled", never)
_mode_count: Callable[[], int] = find("torch._C", "_len_torch_dispatch_stack", never)
_mode_at = find("torch._C", "_get_dispatch_stack_at")
_function_mode_count: Callable[[], int] = find("torch._C", "_len_torch_function_stack", never)
_function_mode_at = find("torch._C", "_get_function_stack_at")
_DeviceContext = find("torch.utils._device", "DeviceContext")
find("torch.autograd.forward_ad", "_current_level")
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


def forward_mode_is_active() -> bool:
    """Whether tensors may carry tangents."""
    return getattr(forward_ad, "_current_level", -1) >= 0


def carry_tangents(*tensors: Tensor | None) -> bool:
    """Whether any of them does. In a compiled graph the level of forward mode is entered unseen by Python, so
    there the tensors are asked."""
    if forward_mode_is_active():
        return True
    if no_tracing() and not functorch_active():
        return False
    return any(x is not None and _unpack_dual(x, level=0).tangent is not None for x in tensors)


def no_interposition() -> bool:
    """Whether no transform, mode, tracer or level of forward mode is active.

    Modes of `__torch_function__` count too, also those under which `make_fx(pre_dispatch=True)` traces; only
    the default device, which is one, doesn't.
    """
    if MISSING or functorch_active() or _mode_count() or torchscript() or forward_mode_is_active():
        return False
    count = _function_mode_count()
    return not count or all(type(_function_mode_at(place)) is _DeviceContext for place in range(count))


def no_tracing() -> bool:
    """Whether nothing traces. Transforms may be active, and modes as long as none of them is a tracer."""
    return not (MISSING or torchscript() or _mode_traces())


def transforms_active() -> bool:
    """Whether a transform of torch.func or a level of forward mode is active."""
    return functorch_active() or forward_mode_is_active()


def is_mapped(*tensors: Tensor | None) -> bool:
    """Whether `vmap` maps over any of them, inside of whatever differentiates."""
    for x in tensors:
        while x is not None and is_wrapper(x):
            if _is_batched(x):
                return True
            x = _unwrapped(x)
    return False


def _mode_traces() -> bool:
    if not (_mode_count() or _function_mode_count()):
        return False
    active = [*modes(), *map(_function_mode_at, range(_function_mode_count()))]
    return any(type(mode).__module__.startswith(TRACERS) for mode in active)


def modes() -> list[Any]:
    """The modes that see every operator."""
    return [] if MISSING else [_mode_at(place) for place in range(_mode_count())]


_dispatch_keys = find("torch._C", "_dispatch_keys")
_raw = find("torch._C", "DispatchKeySet")
if _raw is not None and not hasattr(_raw, "raw_repr"):
    MISSING.append("torch._C.DispatchKeySet.raw_repr")


def dispatch_key_set(x: Tensor) -> Any:
    """What a tensor asks the dispatcher for, to be compared."""
    return _dispatch_keys(x).raw_repr()


_tracing_context = find("torch._guards", "TracingContext")


def compiles_graph() -> bool:
    """Whether `torch.compile` makes a graph, below any transform that the graph is of."""
    if _tracing_context is None or _tracing_context.try_get() is None:
        return False
    return not (functorch_active() or torch.compiler.is_exporting())


# A module's call, hooks included; whether hooks of all modules are registered.
MODULE_CALL: Callable[..., Any] = torch.nn.Module._call_impl
has_global_hooks: Callable[[], bool] = find("torch.nn.modules.module", "_has_any_global_hook", never)


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


is_wrapper: Callable[[Tensor], bool] = find("torch._C._functorch", "is_functorch_wrapped_tensor", never)
_is_legacy_batched: Callable[[Tensor], bool] = find("torch._C._functorch", "is_legacy_batchedtensor", never)
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

# The numbers of several tensors in one; cuDNN's network, if its node can be read; its derivative.
flatten_dense: Callable[[Sequence[Tensor]], Tensor] = find("torch._C._nn", "flatten_dense_tensors")
_current_node = find("torch._C", "_current_autograd_node")
cudnn_rnn: Any = find("torch", "_cudnn_rnn")
cudnn_rnn_packet: Any = getattr(torch.ops.aten, "_cudnn_rnn", None)
CUDNN_DERIVATIVE = "_cudnn_rnn_backward"
_has_kernel = find("torch._C", "_dispatch_has_kernel_for_dispatch_key")
CUDNN_SAVES = (
    "input", "weight", "hx", "weight_stride0", "mode", "num_layers", "batch_first", "batch_sizes",
)  # fmt: skip
CUDNN_SCHEMAS = {
    "_cudnn_rnn": (
        "aten::_cudnn_rnn(Tensor input, Tensor[] weight, int weight_stride0, Tensor? weight_buf, Tensor hx, "
        "Tensor? cx, int mode, SymInt hidden_size, SymInt proj_size, int num_layers, bool batch_first, "
        "float dropout, bool train, bool bidirectional, SymInt[] batch_sizes, Tensor? dropout_state) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    CUDNN_DERIVATIVE: (
        "aten::_cudnn_rnn_backward(Tensor input, Tensor[] weight, int weight_stride0, Tensor weight_buf, "
        "Tensor hx, Tensor? cx, Tensor output, Tensor? grad_output, Tensor? grad_hy, Tensor? grad_cy, "
        "int mode, SymInt hidden_size, SymInt proj_size, int num_layers, bool batch_first, float dropout, "
        "bool train, bool bidirectional, SymInt[] batch_sizes, Tensor? dropout_state, Tensor reserve, "
        "bool[4] output_mask) -> (Tensor, Tensor, Tensor, Tensor[])"
    ),
}


def offers_cudnn_node() -> bool:
    """Whether cuDNN's operators are those that the engine serves on a CPU, and nobody has a kernel there."""
    if MISSING:
        return False
    for name, schema in CUDNN_SCHEMAS.items():
        packet = getattr(torch.ops.aten, name, None)
        if packet is None or str(packet.default._schema) != schema:
            return False
        if any(_has_kernel(f"aten::{name}", key) for key in ("CPU", "CompositeExplicitAutograd")):
            return False
    return not _has_kernel(f"aten::{CUDNN_DERIVATIVE}", "AutogradCPU")


def cudnn_saved_tensors() -> Any:
    """What cuDNN's node saves, at which the backward pass is, under the names of the operator's arguments."""
    node = _current_node()
    return SimpleNamespace(**{name: getattr(node, f"_saved_{name}") for name in CUDNN_SAVES})


def register_cudnn_backward_vmap(rule: Callable[..., Any]) -> Any:
    """For `is_grads_batched`, if torch has none; the registration lasts as long as what is returned."""
    if _has_kernel(f"aten::{CUDNN_DERIVATIVE}", "Batched"):
        return None
    library = torch.library.Library("aten", "IMPL")
    library.impl(CUDNN_DERIVATIVE, rule, "Batched")
    return library


# Whether the processor multiplies tiles of bfloat16; a torch that can't tell has no use for it either.
has_amx: Callable[[], bool] = cache(getattr(torch.cpu, "_is_amx_tile_supported", never))

# The one event that tells a profiler of shapes.
record_function_fast: Callable[..., Any] = find("torch._C._profiler", "_RecordFunctionFast")

# torch's loop over a length that stays open, as a function and as the operator that this becomes in a trace.
# That of 2.11 has wrong gradients.
_loops = find("torch._higher_order_ops", "scan"), find("torch._higher_order_ops.scan", "scan_op")
scan: Any
scan_op: Any
scan, scan_op = _loops if torch.__version__ >= "2.13" else (None, None)

try:
    _functorch_config: Any = import_module("torch._functorch.config")
except ImportError:
    MISSING.append("torch._functorch.config")
    _functorch_config = None


def in_draft_export() -> bool:
    """Whether `torch.export.draft_export` is at work, which calls operators with numbers too, and takes an
    absent `Tensor?` for one that was written to."""
    return torch.compiler.is_exporting() and getattr(
        _functorch_config, "fake_tensor_propagate_real_tensors", False
    )
