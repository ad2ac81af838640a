r"""The two recurrences as loops of in-place tensor operations, on any device.

    elman    h_t = phi(z_t + h_{t-1} w^T)              h before the first step = h0
    linear   y_t = phi'(h_t) * (v_t + y_{t-1} a)       y before the first step = 0

Cost per step: one matrix product that accumulates into its result, one elementwise operation.
Results are contiguous whatever comes in. No autograd here: `manual_rnn.recurrence` has the derivatives.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["carry", "elman", "in_time", "linear", "steps", "why_not"]

ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {"tanh": Tensor.tanh_, "relu": Tensor.relu_}
SLOPE: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda h: torch.addcmul(h.new_ones(()), h, h, value=-1),
    "relu": lambda h: (h <= 0).logical_not_().to(h.dtype),
}
ACCUMULATE = {2: Tensor.addmm_, 3: Tensor.baddbmm_}


def why_not(z: Tensor) -> str | None:
    """The reason why this kernel can't take `z`, or None."""
    return "it works on real numbers, and these are complex" if z.is_complex() else None


def elman(z: Tensor, h0: Tensor, w: Tensor, phi: str, reverse: bool, batch_sizes: Tensor | None) -> Tensor:
    r"""`z (T, B, H)` or packed `(N, H)`, `h0 (B, H)`, `w (H, H)`; a leading `G` on all or none."""
    h, w_t = z.clone(memory_format=torch.contiguous_format), w.mT.contiguous()
    accumulate, activate = ACCUMULATE[w.dim()], ACTIVATE[phi]
    hidden = h0
    for h_t in in_time(steps(h, w.dim() - 2, batch_sizes), reverse):
        hidden = activate(accumulate(h_t, carry(hidden, h0, h_t.size(-2)), w_t))
    return h


def linear(v: Tensor, h: Tensor, a: Tensor, phi: str, reverse: bool, batch_sizes: Tensor | None) -> Tensor:
    r"""`v` and `h (T, B, H)` or packed `(N, H)`, `a (H, H)`; a leading `G` on all or none."""
    y, time = v.clone(memory_format=torch.contiguous_format), a.dim() - 2
    accumulate = ACCUMULATE[a.dim()]
    ys, slopes = (steps(x, time, batch_sizes) for x in (y, SLOPE[phi](h)))
    before = start = torch.zeros_like(ys[0]) if ys else y
    for y_t, slope_t in zip(in_time(ys, reverse), in_time(slopes, reverse), strict=True):
        before = accumulate(y_t, carry(before, start, y_t.size(-2)), a).mul_(slope_t)
    return y


def steps(x: Tensor, time: int, batch_sizes: Tensor | None) -> Sequence[Tensor]:
    """Views of `x`, one per step: of equal size, or of the rows that are alive at it."""
    return x.unbind(time) if batch_sizes is None else x.split(batch_sizes.tolist(), time)


def in_time(steps: Sequence[Tensor], reverse: bool) -> Sequence[Tensor]:
    """The steps in the order in which the recurrence walks them."""
    return steps[::-1] if reverse else steps


def carry(hidden: Tensor, start: Tensor, rows: int) -> Tensor:
    """The state that enters a step of `rows` rows: sequences that ended leave it, sequences that
    begin (their last step, read backward in time) join it from `start`."""
    alive = hidden.size(-2)
    if rows <= alive:
        return hidden if rows == alive else hidden.narrow(-2, 0, rows)
    return torch.cat([hidden, start.narrow(-2, alive, rows - alive)], dim=-2)
