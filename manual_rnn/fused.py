r"""Projection and recurrence of a layer as one node of autograd, for plain eager calls.

    z_t = x_t W_ih^T + b_ih + b_hh          h_t = phi(z_t + h_{t-1} W_hh^T)

    vjp    dz = linear(c, h, W_hh), back;  dx = dz W_ih;  dW_ih = sum_t dz_t^T x_t;
           db_ih = db_hh = sum_t dz_t;  dh0 and dW_hh as in `recurrence.py`

PyTorch would record six nodes, each a few microseconds, and hold `z` in memory. The derivative is written
with functions that have derivatives to any order, so it has them too. A transform, a trace or a dual
number sees the two steps apart instead.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from . import kernels, ops
from .modes import plain
from .recurrence import elman, linear, vjp_of_state_and_weight
from .rows import Walk

__all__ = ["Weights", "project", "states"]


class Weights(NamedTuple):
    """`(H, I)`, `(H, H)`, and two biases `(H,)` or none."""

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None


def project(input: Tensor, weights: Weights) -> Tensor:
    """The input's part in every gate, read in the order in which it lies in memory."""
    bias = None
    if weights.bias_ih is not None and weights.bias_hh is not None:
        bias = weights.bias_ih + weights.bias_hh
    if input.dim() == 3 and input.stride(0) < input.stride(1):
        return F.linear(input.transpose(0, 1), weights.ih, bias).transpose(0, 1)
    return F.linear(input, weights.ih, bias)


def states(x: Tensor, h0: Tensor, weights: Weights, walk: Walk, phi: str, kernel: str) -> Tensor:
    r"""$h$ of `x (T, B, I)` or packed `(N, I)` from `h0 (B, H)`; `phi` is "tanh" or "relu"."""
    options = walk.batch_sizes, phi, walk.reverse, kernel
    tensors = [x, h0, *(each for each in weights if each is not None)]
    if torch.compiler.is_compiling() or not plain(*tensors):
        return elman(project(x, weights), h0, weights.hh, *options)
    if torch.is_grad_enabled() and any(each.requires_grad for each in tensors):
        return ops.differentiable(Layer, x, h0, *weights, *options)
    return _compute(x, h0, weights, *options)


def _compute(x: Tensor, h0: Tensor, weights: Weights, *options: Any) -> Tensor:
    h = kernels.layer(x, h0, weights, *options)
    return ops.run("elman", project(x, weights), h0, weights.hh, *options) if h is None else h


class Layer(Function):
    """`forward(x, h0, w_ih, w_hh, bias_ih, bias_hh, batch_sizes, phi, reverse, kernel) -> h`"""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, bias_ih: Any, bias_hh: Any, *options: Any
    ) -> Tensor:
        h = _compute(x, h0, Weights(w_ih, w_hh, bias_ih, bias_hh), *options)
        batch_sizes, *ctx.options = options
        ctx.save_for_backward(h, x, h0, w_ih, w_hh, batch_sizes)
        return h

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor | None, ...]:
        h, x, h0, w_ih, w_hh, batch_sizes = ctx.saved_tensors
        phi, reverse, kernel = ctx.options
        need_x, need_h0, need_ih, need_hh, *need_biases = ctx.needs_input_grad[:6]
        dz = linear(c, h, w_hh, batch_sizes, phi, not reverse, kernel)
        dh0, dw_hh = vjp_of_state_and_weight(dz, h, h0, w_hh, Walk(0, reverse, batch_sizes), need_h0, need_hh)
        rows = dz.reshape(-1, dz.size(-1))
        dx = dz @ w_ih if need_x else None
        dw_ih = rows.mT @ x.reshape(-1, x.size(-1)) if need_ih else None
        db = rows.sum(0) if any(need_biases) else None
        db_ih, db_hh = [db if need else None for need in need_biases]
        return dx, dh0, dw_ih, dw_hh, db_ih, db_hh, None, None, None, None
