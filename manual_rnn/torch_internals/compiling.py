r"""What compiles, exports or traces the code around a call, and what it is handed."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch.utils import _pytree

from .active import functorch_active
from .find import MISSING, find, never

_tracing_context = find("torch._guards", "TracingContext")


def compiles_graph() -> bool:
    """Whether `torch.compile` makes a graph, below any transform that the graph is of."""
    if _tracing_context is None or _tracing_context.try_get() is None:
        return False
    return not (functorch_active() or torch.compiler.is_exporting())


def captures_numbers() -> bool:
    """Whether the graph that Dynamo makes may hold a number that it reads of a tensor: a graph that may not
    break, or any where `capture_scalar_outputs` is set."""
    context = None if _tracing_context is None else _tracing_context.try_get()
    shapes = getattr(getattr(context, "fake_mode", None), "shape_env", None)
    return shapes is None or shapes.allow_scalar_outputs


# Dynamo is to call it while it traces, and has no public way to be told so.
captures_numbers._dynamo_marked_constant = True  # type: ignore[attr-defined]


# A function that Dynamo leaves to eager code: as `torch.compiler.disable`, which imports Dynamo at once.
without_dynamo: Callable[..., Any] = find("torch._compile", "_disable_dynamo", lambda function: function)

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
