r"""The one question: may the dispatcher be bypassed?

    bypassed    the kernel is called, with an autograd node of ours around it if a gradient is wanted
    otherwise   the operator is called, and the dispatcher finds its rule for what is active: a transform, a
                mode, a trace, a profiler, forward mode (`registration.py`)

A call through the dispatcher costs 20 us more than one that bypasses it.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import record_function

from ..kernels import DEFAULT, NATIVE, REFERENCE
from ..kernels.interface import PLAIN_TYPES, non_plain_reason
from ..torch_internals import (
    MISSING,
    below_autograd,
    below_autograd_keep_forward_ad,
    dispatch_key_set,
    functorch_active,
    in_draft_export,
    modes,
    no_interposition,
    no_tracing,
    profiling,
    scan,
    single_level,
    torchscript,
    transforms_active,
)
from . import flop_formulas

Operator = Callable[..., Any]
NAMESPACE = "manual_rnn"


def packet_of(name: str) -> Any:
    """`torch.ops.manual_rnn.<name>`, all its overloads, once the flop counters at work know its cost."""
    if not torch.compiler.is_compiling():
        tell_counters()
    return getattr(getattr(torch.ops, NAMESPACE), name)


def tell_counters() -> None:
    """Give the flop counters at work the formulas of the operators."""
    if active := modes():
        flop_formulas.register(active)


def op(name: str, kernel: str = DEFAULT, alpha: Tensor | None = None) -> Operator:
    """The operator of this name; its overload `kernel`, which names one, if another than the default was
    asked for. The last argument is the leak, if there is one."""
    packet, leak = packet_of(name), () if alpha is None else (alpha,)
    if kernel in (DEFAULT, NATIVE):
        return packet.default if alpha is None else lambda *args: packet.default(*args, *leak)

    def named(*args: Any) -> Any:
        return packet.kernel(*args, kernel, *leak)

    return named


def can_bypass_dispatcher(*tensors: Tensor | None) -> bool:
    """Whether no mode, transform or trace is active, and every tensor is an ordinary strided one
    (gradients may be wanted all the same)."""
    if torch.compiler.is_compiling() or not no_interposition():
        return False
    return _have_plain_keys(tensors)


def is_eager(*tensors: Tensor | None) -> bool:
    """The same, though a mode may be active that traces nothing: what a user does with results and weights
    has the effect that it has without the mode."""
    if torch.compiler.is_compiling() or transforms_active() or not no_tracing():
        return False
    return _have_plain_keys(tensors)


_plain_keys: dict[str, frozenset[Any]] = {}


def _have_plain_keys(tensors: Sequence[Tensor | None]) -> bool:
    """Whether the dispatcher would find nothing but autograd and the device's own kernels for them: none is a
    wrapper of a transform, or sparse, or has a pending conjugation or negation; each has memory."""
    for x in tensors:
        if x is not None:
            device = "cpu" if x.is_cpu else x.device.type
            known = _plain_keys.get(device) or _learn_keys(device)
            if type(x) not in PLAIN_TYPES or dispatch_key_set(x) not in known:
                return False
    return True


def _learn_keys(device: str) -> frozenset[Any]:
    keys = []
    for inference in (False, True):
        with torch.inference_mode(inference):
            keys.append(dispatch_key_set(torch.empty(0, device=device)))
    _plain_keys[device] = frozenset(keys)
    return _plain_keys[device]


def requires_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is done with these tensors."""
    if torch.is_grad_enabled():
        for x in tensors:
            if x is not None and x.requires_grad:
                return True
    return False


def needs_reference(kernel: str, *tensors: Tensor | None) -> bool:
    """Whether only PyTorch's own operations will do: they were asked for, or a tensor is of a kind for which
    the rules of ours don't hold.

    Raises:
        RuntimeError: if another kernel was asked for, with its reason.
    """
    if kernel == REFERENCE or (kernel == DEFAULT and (in_draft_export() or torchscript() is not None)):
        return True
    reason = None
    for x in tensors:
        if x is not None and reason is None:
            reason = non_plain_reason(x)
    if MISSING and reason is None:
        reason = f"its derivatives need {', '.join(MISSING)}, which torch {torch.__version__} lacks"
    if reason is not None and kernel != DEFAULT:
        raise RuntimeError(f"kernel {kernel!r} can't run here: {reason}")
    return reason is not None


def dispatch(
    name: str, compute: Operator, node: Operator, kernel: str, tensors: tuple[Tensor | None, ...], *args: Any
) -> Any:
    """Run an operation on `tensors`: by the kernel, by the autograd node around it, or by its operator."""
    if not can_bypass_dispatcher(*tensors):
        return op(name, kernel)(*tensors, *args)
    run = node if requires_grad(*tensors) else compute
    with named(name):
        return run(*tensors, *args, kernel)


def named(name: str) -> Any:
    """A block that a profiler at work sees as the operator that is bypassed in it."""
    return record_function(f"{NAMESPACE}::{name}") if profiling() else nullcontext()


def run_in_node(operator: Operator, *args: Any) -> Any:
    """Call an operator from the forward of its autograd node: past the level of autograd that the node stands
    for, while those of transforms around it go on."""
    with below_autograd_keep_forward_ad() if functorch_active() else below_autograd():
        return operator(*args)


def apply_at_functorch_level(function: Any, *args: Any) -> Any:
    """A node at the transform's level that the dispatcher is at.

    Raises:
        RuntimeError: where this torch lacks what carries it.
    """
    if MISSING:
        raise RuntimeError(f"expected torch to have {', '.join(MISSING)}, torch {torch.__version__} has not")
    if not functorch_active():
        return function.apply(*args)
    with single_level():
        return function.apply(*args)


def statically(size: int, value: int) -> bool:
    """Whether a size has this value, where one that comes from data, which a trace can't know, is taken for
    another."""
    if not torch.compiler.is_compiling() and not isinstance(size, torch.SymInt):
        return size == value
    from torch.fx.experimental.symbolic_shapes import guard_or_false  # sympy comes with it

    return guard_or_false(size == value)


def is_dynamic(size: int) -> bool:
    """Whether a program is being exported that holds for any such size, and may have a loop over it."""
    exporting = torch.compiler.is_exporting() and not in_draft_export()
    return exporting and isinstance(size, torch.SymInt) and scan is not None
