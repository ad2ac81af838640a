r"""One layer in one direction of time: project the input of all steps, then let time run.

z_t = x_t W_ih^T + b_ih + b_hh          a matrix product, of all steps or beside the recurrence's own
h_t = phi(z_t + h_{t-1} W_hh^T)         the recurrence, by the kernel that was asked for or fits
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import fused, kernels
from .checks import check_state
from .fused import Weights, project
from .kernels import reference
from .rows import Walk

__all__ = ["OWN_RECURRENCE", "PHI", "OwnStep", "Weights", "project", "run_layer"]

PHI: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}

OwnStep = Callable[[Tensor, Tensor, Tensor], Tensor]
OWN_RECURRENCE = "it knows tanh and relu, and this recurrence is your own"  # a kernel's reason


def run_layer(
    input: Tensor, h0: Tensor, weights: Weights, phi: str | OwnStep, walk: Walk
) -> tuple[Tensor, Tensor]:
    r"""Run over `input (T, B, I)` or packed `(N, I)` from `h0 (B, H)`.

    `phi` names a nonlinearity, or is a step `(gates, hidden, weight_hh) -> hidden` of the user's own.

    Returns:
        The state after every step, `(T, B, H)` or `(N, H)`, and the last of each sequence, `(B, H)`.

    Raises:
        RuntimeError: if a kernel was asked for that can't run this recurrence.
    """
    if input.size(0) == 0:
        return project(input, weights), h0
    states = _states(input, h0, weights, phi, walk)
    return states, walk.last(states, h0.size(0))


def _states(input: Tensor, h0: Tensor, weights: Weights, phi: str | OwnStep, walk: Walk) -> Tensor:
    kernel = kernels.asked()
    if not isinstance(phi, str):
        return _by_own_step(input, h0, weights, phi, walk, kernel)
    if kernel == kernels.REFERENCE or (kernel == kernels.DEFAULT and input.is_complex()):
        gates = F.linear(input, weights.ih, weights.bias_ih)
        step = reference.builtin_step(PHI[phi], weights.hh, weights.bias_hh)
        return reference.scan(step, gates, h0, walk.reverse, walk.batch_sizes)
    return fused.states(input, h0, weights, walk, phi, kernel)


def _by_own_step(
    input: Tensor, h0: Tensor, weights: Weights, step: OwnStep, walk: Walk, kernel: str
) -> Tensor:
    if kernel not in (kernels.DEFAULT, kernels.REFERENCE):
        raise RuntimeError(f"kernel {kernel!r} can't run here: {OWN_RECURRENCE}")

    def own(gates_t: Tensor, hidden: Tensor) -> Tensor:
        return check_state(step(gates_t, hidden, weights.hh), gates_t.shape)

    return reference.scan(own, project(input, weights), h0, walk.reverse, walk.batch_sizes)
