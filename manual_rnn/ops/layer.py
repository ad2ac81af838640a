r"""One layer, in each of its directions of time.

h_t = phi(x_t W_ih^T + b_ih + b_hh + h_{t-1} W_hh^T)        by `layer_rule.layer`
h_t = step(x_t W_ih^T + b_ih + b_hh, h_{t-1}, W_hh)         a step of your own, by the reference
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..kernels import reference
from ..kernels.time_order import Walk
from ..torch_internals import scan
from ..validation import check_state
from . import dispatch, layer_rule

__all__ = [
    "OWN_RECURRENCE",
    "OwnStep",
    "Phi",
    "RunLayer",
    "Weights",
    "grouped",
    "run_direction",
    "run_layer",
    "run_layers",
]

Weights = Sequence[Any]  # W_ih (H, I), W_hh (H, H) and both biases (H,), or None for each
OwnStep = Callable[[Tensor, Tensor, Tensor], Tensor]  # (gates, hidden, weight_hh) -> hidden
Phi = str | Callable[[Tensor], OwnStep]  # a nonlinearity's name, or what gives a step of one's own
RunLayer = Callable[[Tensor, Tensor, Sequence[Weights], Phi, Tensor | None], tuple[Tensor, Tensor]]
OWN_RECURRENCE = "it knows tanh and relu, and this recurrence is your own"  # a kernel's reason


def run_layer(
    input: Tensor, hx: Tensor, weights: Sequence[Weights], phi: Phi, batch_sizes: Tensor | None
) -> tuple[Tensor, Tensor]:
    r"""Run over `input (T, B, I)` or packed `(N, I)` from `hx (D, B, H)`, with weights for each direction.

    `phi` names a nonlinearity, or is a function from the first state `(B, H)` to a step of the user's own.

    Returns:
        The state after every step, `(T, B, D * H)` or `(N, D * H)`, and the last of each sequence,
        `(D, B, H)`.

    Raises:
        RuntimeError: if a kernel was asked for that can't run this recurrence.
    """
    if len(weights) == 1:
        states, last = run_direction(input, hx[0], weights[0], phi, False, batch_sizes)
        return states, torch.stack([last])
    h0, h0_reverse = hx.unbind(0)
    states, last = run_direction(input, h0, weights[0], phi, False, batch_sizes)
    states_reverse, last_reverse = run_direction(input, h0_reverse, weights[1], phi, True, batch_sizes)
    return torch.cat((states, states_reverse), dim=-1), torch.stack((last, last_reverse))


def run_layers(
    output: Tensor,
    hx: Tensor,
    weights: Sequence[Weights],
    phi: Phi,
    batch_sizes: Tensor | None,
    layers: int,
    run: RunLayer = run_layer,
    between: Callable[[Tensor], Tensor] = lambda output: output,
) -> tuple[Tensor, Tensor]:
    """Layer after layer by `run`, each on what `between` makes of the one before; `hx (L * D, B, H)`."""
    if layers == 1:
        return run(output, hx, weights, phi, batch_sizes)
    last, D = [], len(weights) // layers
    for layer, h0 in enumerate(hx.split(D)):
        if layer:
            output = between(output)
        output, h_n = run(output, h0, weights[layer * D : layer * D + D], phi, batch_sizes)
        last.append(h_n)
    return output, torch.cat(last)


def grouped(flat: Sequence[Any], bias: bool) -> list[Weights]:
    """A flat list of weights, for each layer and direction."""
    size, none = (4, []) if bias else (2, [None, None])
    return [[*flat[at : at + size], *none] for at in range(0, len(flat), size)]


def run_direction(
    input: Tensor, h0: Tensor, weights: Weights, phi: Phi, reverse: bool, batch_sizes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One direction of `run_layer`."""
    w_ih, w_hh, bias_ih, bias_hh = weights
    if not isinstance(phi, str):
        return _by_own_step(input, h0, weights, phi(h0), Walk(0, reverse, batch_sizes))
    T = input.size(0)
    if dispatch.surely_zero(T) if torch.compiler.is_compiling() else T == 0:
        return layer_rule.project(input, w_ih, bias_ih, bias_hh), h0
    return layer_rule.layer(
        input, h0, w_ih, w_hh, bias_ih, bias_hh, batch_sizes, phi, reverse, kernels.asked()
    )


def _by_own_step(
    input: Tensor, h0: Tensor, weights: Weights, step: OwnStep, walk: Walk
) -> tuple[Tensor, Tensor]:
    if kernels.asked() not in (kernels.DEFAULT, kernels.REFERENCE):
        raise RuntimeError(f"kernel {kernels.asked()!r} can't run here: {OWN_RECURRENCE}")
    w_ih, w_hh, bias_ih, bias_hh = weights
    gates = layer_rule.project(input, w_ih, bias_ih, bias_hh)
    if input.size(0) == 0:
        return gates, h0

    def own(gates_t: Tensor, hidden: Tensor) -> Tensor:
        return check_state(step(gates_t, hidden, w_hh), gates_t.shape)

    if walk.batch_sizes is None and dispatch.stays_open(gates.size(0)):
        return _by_loop(own, gates, h0, walk.reverse)
    return reference.scan(own, gates, h0, walk)


def _by_loop(
    step: Callable[[Tensor, Tensor], Tensor], gates: Tensor, h0: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """`reference.scan` where a program is exported whose number of steps stays open."""

    def combine(hidden: Tensor, gates_t: Tensor) -> tuple[Tensor, Tensor]:
        new = step(gates_t, hidden)
        return new, new.clone()  # no two results may be one tensor

    last, states = scan(combine, h0, gates, reverse=reverse)
    return states, last
