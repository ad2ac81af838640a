r"""The operators for the dispatch key Autograd: an autograd node, in eager code and in traces alike. In
forward mode, and for a derivative by the leak, it is the composed form.

`register_autograd` would take no `jvp`: a tangent that reached the operator would be dropped without a word.
And Dynamo can't enter a node with a `jvp`, but it needn't: it stops at the operator.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ..kernels import DEFAULT
from ..kernels.interface import NetworkOptions, Saved
from ..torch_internals import below_autograd, carry_tangents, tracks_gradient, without_gradient_levels
from . import composed, dispatch
from .fake_rules import leak_of
from .network import Network, aliases, as_separate_output
from .network_vjp import NetworkVjp


def recurrence(node: Any, operator: Any, x: Tensor, y: Tensor, w: Tensor, *options: Any) -> Tensor:
    if not dispatch.requires_grad(x, y, w) and not carry_tangents(x, y, w):
        with below_autograd():
            return operator(x, y, w, *options)
    run = partial(dispatch.run_in_node, operator)
    batch_sizes, phi, reverse, *kernel = options
    how = without_gradient_levels(batch_sizes), phi, reverse, *(kernel or [DEFAULT])
    return dispatch.apply_at_functorch_level(node, lambda *args: run(*args[:3], *options), x, y, w, *how)


def network(operator: Any, x: Tensor, hx: Tensor | None, weights: Sequence[Tensor], *options: Any) -> Any:
    batch_sizes, phi, bidirectional, has_biases, save_states, *rest = options
    kernel, alpha = _kernel_and_leak(rest)
    composes = carry_tangents(x, hx, *weights) or _has_derivative(alpha)
    if not composes and not dispatch.requires_grad(x, hx, *weights):
        with below_autograd():
            return operator(x, hx, weights, *options)
    sizes = without_gradient_levels(batch_sizes)
    named = NetworkOptions(sizes, phi, bidirectional, has_biases, kernel, alpha)
    if composes:
        output, h_n, states = composed.network(x, hx, weights, named)
        return output.clone(), h_n, states if save_states else []
    rest, named = _without_levels(rest), named._replace(alpha=without_gradient_levels(alpha))
    run = partial(dispatch.run_in_node, operator)
    eager = dispatch.is_eager(x, hx, *weights)
    inputs = aliases(x, hx, weights) if eager else (x, hx, *weights)
    output, h_n, *states = dispatch.apply_at_functorch_level(
        Network, lambda *args: run(*args, *rest), named, *inputs
    )
    if eager:
        output, h_n = as_separate_output(output), as_separate_output(h_n)
    return output, h_n, states if save_states else []


def network_vjp(
    operator: Any,
    need: list[bool],
    x: Tensor,
    hx: Tensor | None,
    matrices: Sequence[Tensor],
    states: Sequence[Tensor],
    c: Tensor | None,
    c_last: Tensor | None,
    *options: Any,
) -> list[Tensor]:
    batch_sizes, phi, bidirectional, *other = options
    kernel, alpha = _kernel_and_leak(other)
    tensors = x, hx, *matrices, *states, c, c_last
    composes = carry_tangents(*tensors) or _has_derivative(alpha)
    if not composes and not dispatch.requires_grad(*tensors):
        with below_autograd():
            return operator(need, x, hx, matrices, states, c, c_last, *options)
    sizes, has_biases = without_gradient_levels(batch_sizes), len(need) - 2 == 2 * len(matrices)
    named = NetworkOptions(sizes, phi, bidirectional, has_biases, kernel, alpha)
    if composes:
        found = composed.network_vjp(need, Saved(x, hx, matrices, states), (c, c_last), named)
        return [g for g in found if g is not None]
    other, named = _without_levels(other), named._replace(alpha=without_gradient_levels(alpha))
    run = partial(dispatch.run_in_node, operator)
    rest = len(matrices), x, hx, c, c_last, *matrices, *states
    found = dispatch.apply_at_functorch_level(
        NetworkVjp, lambda *args: run(*args, *other), need, named, *rest
    )
    return list(found)


def _kernel_and_leak(rest: Sequence[Any]) -> tuple[Any, Any]:
    """What an operator was given behind its other arguments."""
    return next((each for each in rest if isinstance(each, str)), DEFAULT), leak_of(rest)


def _has_derivative(alpha: Tensor | None) -> bool:
    """Whether a derivative by the leak may be wanted, which the composed form has."""
    return alpha is not None and tracks_gradient(alpha)


def _without_levels(rest: Sequence[Any]) -> list[Any]:
    return [without_gradient_levels(each) if isinstance(each, Tensor) else each for each in rest]
