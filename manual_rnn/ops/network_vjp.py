r"""The gradients of a network as one operation with a derivative.

    dx, dhx, dweights  <-  c, c_last and all states      `network_vjp`

Its derivative is that of the same gradients composed of the two recurrences (`composed.py`), and so is its
tangent. Where autograd alone records it, it is composed at once: a node of its own would compose it for its
derivative, after a first run. `network.py` has the operation whose gradients these are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..kernels import native
from ..kernels.interface import NetworkOptions, Saved
from ..torch_internals import Function, forward_mode_is_active, functorch_active, profiling
from . import composed, dispatch
from .operator_checks import check_network_vjp
from .profiler import record_network_vjp
from .saved_tensors import saved_by


def network_vjp(
    need: Sequence[bool],
    saved: Saved,
    cotangents: Sequence[Tensor | None],
    options: NetworkOptions,
) -> list[Tensor | None]:
    """Gradients of `x`, `hx` and each weight where `need` has True, from the cotangents of the output, of
    `h_n`, and perhaps of the states of every layer, which a second derivative brings."""
    (x, hx, matrices, states), (c, c_last, *inner) = saved, cotangents
    if len(inner) == 1:  # those of the only layer are the output
        c, inner = composed.add(c, inner[0]), []
    if inner.count(None) < len(inner):
        return composed.network_vjp(need, saved, cotangents, options)
    if c is None and c_last is None:
        return [None] * len(need)
    tensors = x, hx, *matrices, *states, c, c_last, options.alpha
    recorded = dispatch.requires_grad(*tensors) and dispatch.is_eager(*tensors)
    if recorded or forward_mode_is_active():
        return composed.network_vjp(need, saved, (c, c_last), options)
    if not torch.compiler.is_compiling() and profiling() and native.runs(options.kernel, x):
        record_network_vjp(need, x, matrices, options.D, options.batch_sizes)
    if not dispatch.can_bypass_dispatcher(*tensors):
        run = dispatch.op("network_vjp", options.kernel, options.alpha)
        return _spread(need, run(list(need), x, hx, list(matrices), list(states), c, c_last, *options[:3]))
    with dispatch.named("network_vjp"):
        return _spread(need, _run_kernel(need, saved, (c, c_last), options))


def _spread(need: Sequence[bool], found: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients that were asked for, at their places."""
    gradients = iter(found)
    return [next(gradients) if needed else None for needed in need]


def compute_vjp(
    need: Sequence[bool],
    x: Tensor,
    hx: Tensor | None,
    matrices: Sequence[Tensor],
    states: Sequence[Tensor],
    *rest: Any,
) -> list[Tensor]:
    """What the operator does, whose last arguments are the kernel and perhaps a leak."""
    c, c_last, batch_sizes, phi, bidirectional, *others = rest
    options = NetworkOptions(batch_sizes, phi, bidirectional, has_biases(need, matrices), *others)
    return _run_kernel(need, Saved(x, hx, matrices, states), (c, c_last), options)


def has_biases(need: Sequence[bool], matrices: Sequence[Tensor]) -> bool:
    """Whether a network has biases of which `need` says whose gradients are wanted."""
    return len(need) - 2 == 2 * len(matrices)


def _run_kernel(
    need: Sequence[bool],
    saved: Saved,
    cotangents: tuple[Tensor | None, Tensor | None],
    options: NetworkOptions,
) -> list[Tensor]:
    """By a kernel, below autograd: the gradients that `need` asks for."""
    (x, hx, matrices, states), (batch_sizes, phi, _, _, kernel, alpha) = saved, options
    check_network_vjp(need, saved, cotangents, options)
    tensors, leaky = (x, hx, *matrices, *states, *cotangents, alpha), alpha is not None
    able = kernels.choose(kernel, *tensors, batch_sizes=batch_sizes, phi=phi, leaky=leaky)
    if hasattr(able, "network_vjp"):
        return able.network_vjp(need, saved, cotangents, options)
    found = composed.network_vjp(need, saved, cotangents, options)
    return [g for g in found if g is not None]


class NetworkVjp(Function):
    """The autograd node of a network's gradients: its derivative is that of the composed ones."""

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[..., list[Tensor]],
        need: list[bool],
        options: NetworkOptions,
        count: int,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        ctx.need, ctx.options, ctx.count = need, options, count
        ctx.set_materialize_grads(False)
        ctx.places = [t is not None for t in tensors]
        ctx.save_for_backward(*(t for t in tensors if t is not None))
        x, hx, c, c_last, *rest = tensors
        return tuple(run(need, Saved(x, hx, rest[:count], rest[count:]), (c, c_last), options))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        present, asked = iter(saved_by(ctx)), ctx.needs_input_grad[4:]
        kept: list[Any] = [next(present) if there else None for there in ctx.places]
        places = [at for at, needed in enumerate(asked) if needed]

        def composed_gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
            given = list(kept)
            for at, t in zip(places, inputs, strict=True):
                given[at] = t
            x, hx, c, c_last, *rest = given
            parts = Saved(x, hx, rest[: ctx.count], rest[ctx.count :])
            found = composed.network_vjp(ctx.need, parts, (c, c_last), ctx.options)
            return tuple(g for g in found if g is not None)

        grads = iter(vjp_of(composed_gradients, [kept[at] for at in places], cotangents))
        return None, None, None, None, *(next(grads) if needed else None for needed in asked)


def _differentiable(x: Tensor) -> Tensor:
    """`x` apart from what it was computed from, which may be another input. What is left of a transform that
    has ended, as of `torch.func.vjp` whose result is called outside, records nothing by itself."""
    view = x.view_as(x)
    return view if view.requires_grad else view.detach().requires_grad_()


def vjp_of(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    """The gradients of a function's inputs, which have derivatives of their own where autograd records."""
    if functorch_active():
        outputs, pull, *_ = torch.func.vjp(function, *inputs)
        return pull(
            tuple(torch.zeros_like(o) if c is None else c for o, c in zip(outputs, cotangents, strict=True))
        )
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        views = [_differentiable(t) for t in inputs]
        outputs = function(*views)
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if c is not None and o.requires_grad]
    if not pairs:
        return [None] * len(views)
    outs, given = [o for o, _ in pairs], [c for _, c in pairs]
    return torch.autograd.grad(outs, views, given, create_graph=further, allow_unused=True)
