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
from .network_vjp import NetworkVjp, has_biases


def recurrence(node: Any, operator: Any, x: Tensor, y: Tensor, w: Tensor, *options: Any) -> Tensor:
    if not dispatch.requires_grad(x, y, w) and not carry_tangents(x, y, w):
        with below_autograd():
            return operator(x, y, w, *options)
    run = partial(dispatch.run_in_node, operator)
    batch_sizes, phi, reverse, *kernel = options
    how = without_gradient_levels(batch_sizes), phi, reverse, *(kernel or [DEFAULT])
    return dispatch.apply_at_functorch_level(node, lambda *args: run(*args[:3], *options), x, y, w, *how)


def network(operator: Any, x: Tensor, hx: Tensor | None, weights: Sequence[Tensor], *options: Any) -> Any:
    how, save_states, rest = options[:4], options[4], options[5:]
    named = _options_of(how, rest)
    if carry_tangents(x, hx, *weights) or _has_derivative(named.alpha):
        output, h_n, states = composed.network(x, hx, weights, named)
        return output.clone(), h_n, states if save_states else []
    if not dispatch.requires_grad(x, hx, *weights):
        with below_autograd():
            return operator(x, hx, weights, *options)
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
    *rest: Any,
) -> list[Tensor]:
    c, c_last, batch_sizes, phi, bidirectional, *others = rest
    named = _options_of((batch_sizes, phi, bidirectional, has_biases(need, matrices)), others)
    saved, tensors = Saved(x, hx, matrices, states), (x, hx, *matrices, *states, c, c_last)
    if carry_tangents(*tensors) or _has_derivative(named.alpha):
        gradients = composed.network_vjp(need, saved, (c, c_last), named)
        return [g for g in gradients if g is not None]
    if not dispatch.requires_grad(*tensors):
        with below_autograd():
            return operator(need, *saved, *rest)

    def run(need: list[bool], saved: Saved, cotangents: Sequence[Any], options: Any) -> list[Tensor]:
        return dispatch.run_in_node(operator, need, *saved, *cotangents, *options[:3], *others)

    inputs = len(matrices), x, hx, c, c_last, *matrices, *states
    return list(dispatch.apply_at_functorch_level(NetworkVjp, run, need, named, *inputs))


def _options_of(how: Sequence[Any], rest: Sequence[Any]) -> NetworkOptions:
    """The options by name: the first four, and what an operator was given behind its other arguments."""
    batch_sizes, phi, bidirectional, has_biases = how
    kernel = next((each for each in rest if isinstance(each, str)), DEFAULT)
    sizes = without_gradient_levels(batch_sizes)
    return NetworkOptions(sizes, phi, bidirectional, has_biases, kernel, leak_of(rest))


def _has_derivative(alpha: Tensor | None) -> bool:
    """Whether a derivative by the leak may be wanted, which the composed form has. A leak that a transform's
    gradient level wraps is such a one, so no node saves its wrapper."""
    return alpha is not None and tracks_gradient(alpha)
