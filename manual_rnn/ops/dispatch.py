r"""The one question: operator, autograd node or kernel?

    by_reference    asked for, or the tensors are of a kind for which only PyTorch's own operations hold
    op              something looks on that has to see an operator: a trace, a transform, a mode, a subclass
    node            plain numbers, and gradients are wanted: one autograd node
    compute         plain numbers: the kernel itself

Every rule has these four, and each of its calls asks `way`. On the machine of the README an op costs 20 us,
the question 1 to 2.
"""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.profiler import record_function

from ..kernels import DEFAULT, REFERENCE
from ..kernels.interface import PLAIN_TYPES, why_foreign
from ..torch_internals import (
    LACKING,
    Function,
    below_this_level,
    copy_on_write,
    event,
    exports_with_numbers,
    in_forward_mode,
    is_wrapper,
    modes,
    profiling,
    scan,
    single_level,
)
from . import flop_formulas
from .sight import plain, untraced, wants_gradient

__all__ = [
    "NAMESPACE",
    "RULES",
    "Rule",
    "copy_on_write",
    "multiplied",
    "nestable",
    "node_at_this_level",
    "op",
    "sibling",
    "stays_open",
    "surely_zero",
    "unhooked",
    "way",
    "without_derivative",
]

Way = Callable[..., Any]


class Rule(Function):
    """One operation and its derivative: an autograd node with three more ways to be called."""

    by_reference: Way
    compute: Way
    seen_node: Way  # `node` with the operator in place of `compute`, for modes to see; where it differs
    run: Way  # what the operator does: `compute`, with what it is given checked

    @classmethod
    def node(cls, *args: Any) -> Any:
        return cls.apply(*args)


if "RULES" not in globals():  # a module that is loaded again has them already
    RULES: dict[str, type[Rule]] = {}  # `operators.define` adds each

# Where the operators stand, in `torch.ops`. A copy of this package by another name, in a torch.package
# say, has its own.
NAMESPACE = re.sub(r"\W+", "_", __name__.removesuffix(".ops.dispatch")).strip("_")


def op(name: str) -> Way:
    """The operator of a rule. Dynamo follows the name; it would refuse an attribute of a Function."""
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def seen(name: str) -> Way:
    """The operator of a rule, once the modes that will see it know its cost."""
    if not torch.compiler.is_compiling() and (looking := modes()):
        flop_formulas.tell(looking)
    return op(name)


def way(name: str, kernel: str, *tensors: Tensor | None) -> Way:
    """How a rule is to be called on these tensors."""
    if torch.compiler.is_compiling() or not plain(*tensors):
        return RULES[name].by_reference if _needs_reference(kernel, *tensors) else seen(name)
    if kernel == REFERENCE or (kernel == DEFAULT and tensors[0] is not None and tensors[0].is_complex()):
        return RULES[name].by_reference
    run = RULES[name].node if wants_gradient(*tensors) else RULES[name].compute
    return profiled(name, run) if profiling() else run


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
    with event("aten::mm" if w.dim() == 2 else "aten::bmm", [rows[..., unread:, :], w.mT]):
        pass


def _needs_reference(kernel: str, *tensors: Tensor | None) -> bool:
    """Whether only PyTorch's own operations will do.

    Raises:
        RuntimeError: if another kernel was asked for, with its reason.
    """
    if kernel == REFERENCE or (kernel == DEFAULT and exports_with_numbers()):
        return True
    for x in tensors:
        if x is not None and (reason := why_foreign(x)):
            if kernel != DEFAULT:
                raise RuntimeError(f"kernel {kernel!r} can't run here: {reason}")
            return True
    return False


def surely_zero(size: int) -> bool:
    """Whether a size is 0, where one that comes from data, which a trace can't know, is taken for another."""
    if not torch.compiler.is_compiling() and not isinstance(size, torch.SymInt):
        return size == 0
    from torch.fx.experimental.symbolic_shapes import guard_or_false  # sympy comes with it

    return guard_or_false(size == 0)


def stays_open(size: int) -> bool:
    """Whether a program is being exported that holds for any such size, and may have a loop over it."""
    exporting = torch.compiler.is_exporting() and not exports_with_numbers()
    return exporting and isinstance(size, torch.SymInt) and scan is not None


def node_at_this_level(rule: type[Rule], *args: Any) -> Any:
    """A node for the one transform or trace that the dispatcher is at; by the reference, of PyTorch's own
    operations, where this torch can't carry ours.

    Raises:
        RuntimeError: if another kernel was asked for there.
    """
    if not LACKING:
        if hasattr(rule, "seen_node") and untraced(*[x for x in args if isinstance(x, Tensor)]):
            return rule.seen_node(*args)
        with single_level():
            return rule.apply(*args)
    kernel = args[-1]
    if kernel not in (DEFAULT, REFERENCE):
        raise RuntimeError(
            f"kernel {kernel!r} can't run here: below a transform or a trace its derivatives need "
            f"{', '.join(LACKING)}, which torch {torch.__version__} lacks"
        )
    return rule.by_reference(*args)


def without_derivative(name: str, *tensors: Tensor | None) -> Way:
    """How the forward of a rule is to call it."""
    if plain(*tensors):
        return RULES[name].run

    def below_autograd(*args: Any) -> Any:
        with below_this_level():
            return seen(name)(*args)

    return below_autograd


def nestable(jvp: Callable[..., Any]) -> Callable[..., Any]:
    """A rule's `jvp` that another jvp around it can differentiate.

    PyTorch turns forward mode off in there, and the saved inputs still carry the tangents at work: a
    jvp of a jvp would silently take it all for constant. So forward mode goes on, without those tangents.
    """

    def differentiable(ctx: Any, *tangents: Any) -> Any:
        with in_forward_mode():
            saved = [x if x is None else forward_ad.unpack_dual(x, level=0).primal for x in ctx.saved_tensors]
            return jvp(SimpleNamespace(**vars(ctx), saved_tensors=saved), *tangents)

    return differentiable


def unhooked(x: Tensor, first: int = 0) -> Tensor:
    """`x` as the result of a node of its own, no view of another; its first dimension becomes number `first`.

    A hook on one of two results of a node is called, with None, where only the other has a gradient; those
    on results of `nn.RNN` aren't.
    """
    return x.transpose_(0, first)


def sibling(x: Tensor) -> Tensor | None:
    """The same under a transform, which knows no such copy and makes it at once.

    None in a trace, which turns edits into operations.
    """
    if type(x) not in PLAIN_TYPES or modes():
        return None
    if not is_wrapper(x):
        return copy_on_write(x)
    with below_this_level():
        return x.clone()
