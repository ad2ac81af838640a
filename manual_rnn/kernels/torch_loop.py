r"""The two recurrences as loops of in-place tensor operations, on any device.

    elman                h_t = phi(z_t + h_{t-1} w^T)              h before the first step = h0
    linear_recurrence    y_t = phi'(h_t) * (v_t + y_{t-1} a)       y before the first step = 0

Cost per step: one matrix product that accumulates into its result, one elementwise operation.
Results are contiguous whatever comes in. No autograd here: `manual_rnn.ops` has the derivatives.
"""

import torch
from torch import Tensor

from .interface import non_plain_reason
from .nonlinearities import PHI
from .time_order import Walk, carry, check_sizes

ACCUMULATE = {2: Tensor.addmm_, 3: Tensor.baddbmm_}


def unsupported_reason(*tensors: Tensor | None) -> str | None:
    """The reason why this kernel can't take these tensors, or None."""
    for x in tensors:
        if x is not None and (reason := non_plain_reason(x)):
            return reason
    return None


def elman(z: Tensor, h0: Tensor, w: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool) -> Tensor:
    r"""`z (T, B, H)` or packed `(N, H)`, `h0 (B, H)`, `w (H, H)`; a leading `G` on all or none."""
    check_sizes(batch_sizes, z.size(-2))
    h, w_t = z.clone(memory_format=torch.contiguous_format), w.mT.contiguous()
    accumulate, apply_ = ACCUMULATE[w.dim()], PHI[phi].apply_
    hidden = h0
    for h_t in Walk(w.dim() - 2, reverse, batch_sizes).steps(h):
        hidden = apply_(accumulate(h_t, carry(hidden, h0, h_t.size(-2)), w_t))
    return h


def linear_recurrence(
    v: Tensor, h: Tensor, a: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool
) -> Tensor:
    r"""`v` and `h (T, B, H)` or packed `(N, H)`, `a (H, H)`; a leading `G` on all or none."""
    check_sizes(batch_sizes, v.size(-2))
    y, walk = v.clone(memory_format=torch.contiguous_format), Walk(a.dim() - 2, reverse, batch_sizes)
    accumulate, times_slope_ = ACCUMULATE[a.dim()], PHI[phi].times_slope_
    before = None
    for y_t, h_t in zip(walk.steps(y), walk.steps(h), strict=True):
        if before is not None:  # the sequences that just begin have nothing before them, not even 0 times `a`
            rows = min(before.size(-2), y_t.size(-2))
            accumulate(y_t.narrow(-2, 0, rows), before.narrow(-2, 0, rows), a)
        before = times_slope_(y_t, h_t)
    return y
