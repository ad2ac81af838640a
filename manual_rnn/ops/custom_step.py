r"""A recurrence of one's own: h_t = step(x_t W_ih^T + b_ih + b_hh, h_{t-1}, W_hh), step after step in
Python."""

from collections.abc import Callable

from torch import Tensor

from .. import kernels
from ..kernels import reference
from ..kernels.interface import LayerWeights
from ..kernels.time_order import Walk
from ..torch_internals import scan
from ..validation import check_state, check_step
from . import dispatch
from .composed import input_projection

CustomStep = Callable[[Tensor, Tensor, Tensor], Tensor]  # (gates, hidden, weight_hh) -> hidden
CUSTOM_STEP = "it knows nonlinearities by name, and this recurrence is your own"  # a kernel's reason


def run_direction(
    begin: Callable[[Tensor, Tensor], CustomStep], x: Tensor, h0: Tensor, weights: LayerWeights, walk: Walk
) -> tuple[Tensor, Tensor]:
    """The states of a layer in one direction, and the last of each sequence; `begin` gives the step.

    Raises:
        RuntimeError: if a kernel was asked for that can't run it.
    """
    if kernels.requested_kernel() not in (kernels.DEFAULT, kernels.REFERENCE):
        raise RuntimeError(f"kernel {kernels.requested_kernel()!r} can't run here: {CUSTOM_STEP}")
    step, w_hh = begin(h0, weights.weight_hh), weights.weight_hh
    check_step(step, begin)
    gates = input_projection(x, *weights)
    if x.size(0) == 0:
        return gates, h0

    def checked(gates_t: Tensor, hidden: Tensor) -> Tensor:
        return check_state(step(gates_t, hidden, w_hh), gates_t.shape, step)

    if walk.batch_sizes is None and dispatch.is_dynamic(gates.size(0)):
        return _scan_hop(checked, gates, h0, walk.reverse)
    return reference.scan(checked, gates, h0, walk)


def _scan_hop(
    step: Callable[[Tensor, Tensor], Tensor], gates: Tensor, h0: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """`reference.scan` as torch's loop, where a program is exported whose number of steps stays open."""

    def combine(hidden: Tensor, gates_t: Tensor) -> tuple[Tensor, Tensor]:
        new = step(gates_t, hidden)
        return new, new.clone()  # no two results may be one tensor

    last, states = scan(combine, h0, gates, reverse=reverse)
    return states, last
