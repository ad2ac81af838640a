r"""The one question: operator, autograd node or kernel?

    by_reference    asked for, or the tensors are of a kind for which only PyTorch's own operations hold
    op              something looks on that has to see an operator: a trace, a transform, a mode, a subclass
    node            plain numbers, and gradients are wanted: one autograd node
    compute         plain numbers: the kernel itself

Every rule has these four, and each of its calls asks `way`. On the machine of the README an op costs 20 us,
the question 1 to 2.

Every private name of torch that this package uses stands here (tests/house has the list of the few that
can't), with the versions it was tried on. In another version that lacks one, importing the package says so.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._C._profiler import _RecordFunctionFast  # the one event with shapes (torch 2.11 to 2.15)
from torch._functorch import config
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.autograd.profiler import record_function
from torch.utils._device import DeviceContext

from ..kernels import DEFAULT, REFERENCE
from ..kernels.contract import PLAIN_TYPES, why_foreign
from ..kernels.native import numbers
from . import flops

__all__ = [
    "NAMESPACE",
    "RULES",
    "Rule",
    "copy_on_write",
    "multiplied",
    "nestable",
    "op",
    "plain",
    "profiling",
    "sibling",
    "single_level",
    "surely_zero",
    "torchscript",
    "transformed",
    "unhooked",
    "wants_gradient",
    "way",
    "without_derivative",
]

# The base of `autograd.Function` without what hands a Function to functorch (torch 2.11 to 2.15): these
# rules are always at one level, below the operator whose Autograd key they are. `Function` itself raises
# there since 2.14, and its Python `apply` binds a signature at every call, for 40 us.
Function: Any = _SingleLevelFunction
# Of the one transform that the dispatcher is at (torch 2.11 to 2.15).
single_level = enable_single_level_autograd_function

# What `torch.jit.trace` and the ONNX exporter built on it are tracing, or None (torch 2.11 to 2.15).
torchscript = torch._C._get_tracing_state
# Whether `vmap`, `grad` or another of `torch.func` is at work (torch 2.11 to 2.15).
transformed = torch._C._are_functorch_transforms_active

# Whether a profiler is at work (torch 2.11 to 2.15).
profiling = torch.autograd._profiler_enabled

Way = Callable[..., Any]


class Rule(Function):
    """One operation and its derivative: an autograd node with three more ways to be called."""

    by_reference: Way
    compute: Way
    run: Way  # what the operator does: `compute`, with what it is given checked

    @classmethod
    def node(cls, *args: Any) -> Any:
        return cls.apply(*args)


if "RULES" not in globals():  # a module that is loaded again has them already
    RULES: dict[str, type[Rule]] = {}  # `operators.define` adds each

# Where the operators stand, in `torch.ops`. A copy of this package by another name, in a torch.package
# say, has its own.
NAMESPACE = re.sub(r"\W+", "_", __name__.removesuffix(".recurrence.dispatch")).strip("_")


def op(name: str) -> Way:
    """The operator of a rule. Dynamo follows the name; it would refuse an attribute of a Function."""
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def seen(name: str) -> Way:
    """The operator of a rule, once the modes that will see it know its cost."""
    if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack():
        flops.tell(map(torch._C._get_dispatch_stack_at, range(torch._C._len_torch_dispatch_stack())))
    return op(name)


def way(name: str, kernel: str, *tensors: Tensor | None) -> Way:
    """How a rule is to be called on these tensors."""
    if torch.compiler.is_compiling() or not plain(*tensors):
        return RULES[name].by_reference if _needs_reference(kernel, *tensors) else seen(name)
    if kernel == REFERENCE or (kernel == DEFAULT and tensors[0] is not None and tensors[0].is_complex()):
        return RULES[name].by_reference
    run = RULES[name].node if wants_gradient(*tensors) else RULES[name].compute
    return profiled(name, run) if profiling() else run


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is done with these tensors."""
    if torch.is_grad_enabled():
        for x in tensors:
            if x is not None and x.requires_grad:
                return True
    return False


def profiled(name: str, run: Way) -> Way:
    """`run` as an event of the profiler that is at work."""

    def recorded(*args: Any) -> Any:
        with record_function(f"manual_rnn::{name}"):
            return run(*args)

    return recorded


def multiplied(x: Tensor, w: Tensor, batch_sizes: Tensor | None = None, from_zero: bool = False) -> None:
    """Tell the profiler at work of a product of the rows of `x` with `w` that a kernel makes out of its
    sight: as an event of no length, from whose shapes `with_flops` counts.

    A recurrence `from_zero` has nothing to multiply at the first rows.
    """
    unread = 0
    if from_zero and x.numel():
        unread = x.size(-2) if batch_sizes is None else int(batch_sizes[0])
    rows = x.detach().reshape(*w.shape[:-2], -1, x.size(-1))
    with _RecordFunctionFast("aten::mm" if w.dim() == 2 else "aten::bmm", [rows[..., unread:, :], w.mT]):
        pass


def _needs_reference(kernel: str, *tensors: Tensor | None) -> bool:
    """Whether only PyTorch's own operations will do.

    Raises:
        RuntimeError: if another kernel was asked for, with its reason.
    """
    if kernel == REFERENCE or (kernel == DEFAULT and _runs_while_exporting()):
        return True
    for x in tensors:
        if x is not None and (reason := why_foreign(x)):
            if kernel != DEFAULT:
                raise RuntimeError(f"kernel {kernel!r} can't run here: {reason}")
            return True
    return False


def _runs_while_exporting() -> bool:
    """Whether `torch.export.draft_export` is at work, which calls operators with numbers too, and takes an
    absent `Tensor?` for one that was written to (torch 2.11 to 2.15)."""
    return torch.compiler.is_exporting() and config.fake_tensor_propagate_real_tensors


def surely_zero(size: int) -> bool:
    """Whether a size is 0, where one that comes from data, which a trace can't know, is taken for another."""
    if not torch.compiler.is_compiling() and not isinstance(size, torch.SymInt):
        return size == 0
    from torch.fx.experimental.symbolic_shapes import guard_or_false  # sympy comes with it

    return guard_or_false(size == 0)


_keys = torch._C._dispatch_keys  # what a tensor asks the dispatcher for (torch 2.11 to 2.15)
_plain_keys: dict[str, frozenset[int]] = {}


def plain(*tensors: Tensor | None) -> bool:
    """Whether eager numbers are all there is to these tensors (gradients may still be wanted).

    No transform, mode, tracer or forward-mode level is in force (torch 2.11 to 2.15). Modes of
    `__torch_function__` count too, also those under which `make_fx(pre_dispatch=True)` traces; only the
    default device, which is one, doesn't.
    """
    if (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state()
        or forward_ad._current_level >= 0
    ):
        return False
    for place in range(torch._C._len_torch_function_stack()):
        if type(torch._C._get_function_stack_at(place)) is not DeviceContext:
            return False
    if numbers(*tensors):  # the quick answer for most
        return True
    for x in tensors:
        if x is None:
            continue
        kind = "cpu" if x.is_cpu else x.device.type
        known = _plain_keys.get(kind) or _learn_keys(kind)
        if type(x) not in PLAIN_TYPES or _keys(x).raw_repr() not in known:
            return False
    return True


def _learn_keys(kind: str) -> frozenset[int]:
    """The keys of a tensor of numbers on this kind of device: no wrapper of a transform, no pending
    conjugation or negation, nothing sparse, nothing without memory of its own."""
    found = []
    for inference in (False, True):
        with torch.inference_mode(inference):
            found.append(_keys(torch.empty(0, device=kind)).raw_repr())
    _plain_keys[kind] = frozenset(found)
    return _plain_keys[kind]


def without_derivative(name: str, *tensors: Tensor | None) -> Way:
    """How the forward of a rule is to call it."""
    if plain(*tensors):
        return RULES[name].run

    def below_autograd(*args: Any) -> Any:
        with below_this_level():
            return seen(name)(*args)

    return below_autograd


@contextmanager
def below_this_level() -> Iterator[None]:
    """For the forward of a rule: `apply` turns off all differentiation, but a transform around the present
    one still wants its own."""
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), torch._C._AutoDispatchBelowAutograd():
        yield


def nestable(jvp: Callable[..., Any]) -> Callable[..., Any]:
    """A rule's `jvp` that another jvp around it can differentiate.

    PyTorch turns forward mode off in there, and the saved inputs still carry the tangents at work: a
    jvp of a jvp would silently take it all for constant. So forward mode goes on, without those tangents.
    """

    def differentiable(ctx: Any, *tangents: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            saved = [x if x is None else forward_ad.unpack_dual(x, level=0).primal for x in ctx.saved_tensors]
            return jvp(SimpleNamespace(saved_tensors=saved, options=ctx.options), *tangents)

    return differentiable


def unhooked(x: Tensor) -> Tensor:
    """`x` as the result of a node of its own, no view of another.

    A hook on one of two results of a node is called, with None, where only the other has a gradient; those
    on results of `nn.RNN` aren't.
    """
    return x.transpose_(0, 0)


def copy_on_write(x: Tensor) -> Tensor:
    """`x` for backward to keep while the user may write to `x`: copied only when either is written (torch
    2.11 to 2.15)."""
    return torch._lazy_clone(x)


def sibling(x: Tensor) -> Tensor | None:
    """The same under a transform, which knows no such copy and makes it at once.

    None where nobody can write in between: in a trace, which turns edits into operations, and in forward
    mode.
    """
    if type(x) not in PLAIN_TYPES or torch._C._len_torch_dispatch_stack() or forward_ad._current_level >= 0:
        return None
    if not torch._C._functorch.is_functorch_wrapped_tensor(x):
        return copy_on_write(x)
    with below_this_level():
        return x.clone()
