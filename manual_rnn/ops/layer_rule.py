r"""A layer, as one rule over the two recurrences of `recurrences.py`.

    layer    h_t = phi(z_t + h_{t-1} w_hh^T)       z_t = x_t w_ih^T + bias_ih + bias_hh
             and the last h of each sequence

With `c` a cotangent, `'` a tangent:

    vjp      dz, dh0 and dw_hh as of elman, from c plus, at the last steps, that of the last states;
             dx = dz w_ih;  dw_ih = sum_t dz_t^T x_t;  dbias = sum_t dz_t
    jvp      that of elman for z' = x' w_ih^T + x w_ih'^T + bias'

PyTorch would record six nodes, each a few microseconds, and hold z in memory. The derivatives are written
with the recurrences, so they have derivatives of any order. Letters and shapes: `kernels/interface.py`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import kernels
from ..kernels import reference
from ..kernels.nonlinearities import PHI
from ..kernels.time_order import Walk
from ..torch_internals import profiling
from . import dispatch, registration
from .dispatch import Rule
from .keeping import as_views, keep, kept
from .recurrences import jvp_of_states, linear_recurrence, sum_of_products, times

__all__ = ["gradients", "layer", "project"]


def layer(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    batch_sizes: Tensor | None,
    phi: str,
    reverse: bool,
    kernel: str,
) -> tuple[Tensor, Tensor]:
    r"""$h_t = \phi(x_t W_{ih}^T + b_{ih} + b_{hh} + h_{t-1} W_{hh}^T)$, and each sequence's last state."""
    way = dispatch.way("layer", kernel, x, h0, w_ih, w_hh, bias_ih, bias_hh)
    return way(x, h0, w_ih, w_hh, bias_ih, bias_hh, batch_sizes, phi, reverse, kernel)


class Layer(Rule):
    """`layer` and its derivatives."""

    @staticmethod
    def compute(
        x: Tensor,
        h0: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        batch_sizes: Tensor | None,
        phi: str,
        reverse: bool,
        kernel: str,
    ) -> tuple[Tensor, Tensor]:
        tensors = x, h0, w_ih, w_hh, bias_ih, bias_hh
        able = kernels.choose_for_layer(kernel, *tensors, batch_sizes=batch_sizes)
        if x.size(0) and hasattr(able, "layer"):
            found = able.layer(*tensors, batch_sizes, phi, reverse)
            if found is not None:
                if profiling():
                    dispatch.multiplied(x, w_ih)
                    dispatch.multiplied(found[0], w_hh)
                return found
            able = kernels.choose(kernel, *tensors, batch_sizes=batch_sizes)
        z = project(x, w_ih, bias_ih, bias_hh)
        if z.size(0) == 0:  # in a graph made for a length from data
            return z, h0.clone()
        if profiling():
            dispatch.multiplied(z, w_hh)
        states = able.elman(z, h0, w_hh, batch_sizes, phi, reverse)
        return states, Walk(0, reverse, batch_sizes).last(states, h0.size(0)).clone()

    @staticmethod
    def run(
        x: Tensor,
        h0: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        batch_sizes: Tensor | None,
        *options: Any,
    ) -> tuple[Tensor, Tensor]:
        """`compute` for whoever calls the operator."""
        registration.check_layer(x, h0, (w_ih, w_hh, bias_ih, bias_hh), batch_sizes)
        return Layer.compute(x, h0, w_ih, w_hh, bias_ih, bias_hh, batch_sizes, *options)

    @staticmethod
    def by_reference(
        x: Tensor,
        h0: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        batch_sizes: Tensor | None,
        phi: str,
        reverse: bool,
        kernel: str,
    ) -> tuple[Tensor, Tensor]:
        return reference.layer(x, h0, w_ih, w_hh, bias_ih, bias_hh, batch_sizes, phi, reverse)

    @staticmethod
    def node(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        return _recorded(Layer.compute, x, *args)

    @staticmethod
    def seen_node(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        return _recorded(dispatch.without_derivative("layer", x), x, *args)

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h0: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        batch_sizes: Tensor | None,
        *options: Any,
    ) -> tuple[Tensor, ...]:
        tensors = x, h0, w_ih, w_hh, bias_ih, bias_hh
        states, last = dispatch.without_derivative("layer", *tensors)(*tensors, batch_sizes, *options)
        ctx.options, ctx.B, ctx.leaves = (batch_sizes, *options), h0.size(0), None
        ctx.set_materialize_grads(False)
        kept = dispatch.sibling(states)
        ctx.has_sibling = kept is not None
        ctx.save_for_backward(states if kept is None else kept, x, h0, w_ih, w_hh)
        ctx.save_for_forward(states, x, h0, w_ih, w_hh)
        return (states, last) if kept is None else (states, last, kept)

    @staticmethod
    def backward(
        ctx: Any, c: Tensor | None, c_last: Tensor | None, c_kept: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        saved = list(ctx.saved_tensors) if ctx.leaves is None else kept(ctx)
        if ctx.leaves is not None:
            kernels.check_memory(saved[1:])  # the states are the recurrence's to read
        h, x, h0, w_ih, w_hh = saved
        if c_kept is not None:
            c = c_kept if c is None else c + c_kept
        need = ctx.needs_input_grad[:6]
        return *gradients(c, c_last, h, x, h0, w_ih, w_hh, need, ctx.B, *ctx.options), *(None,) * (
            len(ctx.needs_input_grad) - 6
        )

    @staticmethod
    @dispatch.nestable
    def jvp(
        ctx: Any,
        dx: Tensor | None,
        dh0: Tensor | None,
        dw_ih: Tensor | None,
        dw_hh: Tensor | None,
        dbias_ih: Tensor | None,
        dbias_hh: Tensor | None,
        *_: None,
    ) -> tuple[Tensor, ...]:
        h, x, h0, w_ih, w_hh = ctx.saved_tensors
        batch_sizes, _, reverse, _ = ctx.options
        dz = torch.zeros_like(h)
        if dx is not None:
            dz = dz + F.linear(dx, w_ih)
        if dw_ih is not None:
            dz = dz + F.linear(x, dw_ih)
        for dbias in (dbias_ih, dbias_hh):
            dz = dz if dbias is None else dz + dbias
        tangent = jvp_of_states(dz, dh0, dw_hh, h, h0, w_hh, *ctx.options)
        last = Walk(0, reverse, batch_sizes).last(tangent, h0.size(0)).clone()
        return (tangent, last, tangent.clone()) if ctx.has_sibling else (tangent, last)


class PlainLayer(Layer):
    """`Layer` for plain numbers: it keeps no more than backward needs, and nothing that a user can change."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h0: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        batch_sizes: Tensor | None,
        *options: Any,
    ) -> tuple[Tensor, ...]:
        *how, compute = options
        states, last = compute(x, h0, w_ih, w_hh, bias_ih, bias_hh, batch_sizes, *how)
        ctx.options, ctx.B = (batch_sizes, *how), h0.size(0)
        ctx.set_materialize_grads(False)
        need_x, need_h0, need_ih, need_hh, *_ = ctx.needs_input_grad
        steps = (x if batch_sizes is None else batch_sizes).size(0)
        needed = (
            x if need_ih else None,
            h0 if need_hh else None,
            w_ih if need_x else None,
            w_hh if need_h0 or steps > 1 else None,
        )
        sibling = dispatch.copy_on_write(states)
        keep(ctx, [sibling], needed)
        return states, last, sibling


def _recorded(
    compute: dispatch.Way, x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    """A layer that `compute` runs, as a node of plain numbers."""
    states, last, _ = PlainLayer.apply(*as_views(x, h0, w_ih, w_hh), *others, compute)
    return dispatch.unhooked(states), last


def gradients(
    c: Tensor | None,
    c_last: Tensor | None,
    h: Tensor,
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor | None,
    need: Sequence[bool],
    B: int,
    batch_sizes: Tensor | None,
    phi: str,
    reverse: bool,
    kernel: str,
) -> tuple[Tensor | None, ...]:
    """Of a layer's six tensors, where `need` has True, from those of its states and of the last ones.

    What no gradient needs may be None: `x`, `h0`, `w_ih`, and of a single step `w_hh`.
    """
    need_x, need_h0, need_ih, need_hh, need_bias_ih, need_bias_hh = need
    walk = Walk(0, reverse, batch_sizes)
    c = torch.zeros_like(h) if c is None else c
    c = c if c_last is None else walk.add_to_last(c, c_last)
    if w_hh is None:  # a single step
        dz = PHI[phi].times_slope(c, h)
    else:
        dz = linear_recurrence(c, h, w_hh, batch_sizes, phi, not reverse, kernel)
    rows = dz.reshape(-1, dz.size(-1))
    dh0 = times(walk.first(dz, B), w_hh) if need_h0 and w_hh is not None else None
    dw_hh = sum_of_products(dz, h, h0, walk) if need_hh else None
    dx = times(dz, w_ih) if need_x else None
    dw_ih = rows.mT @ x.reshape(-1, x.size(-1)) if need_ih else None
    dbias_ih = rows.sum(0) if need_bias_ih else None
    dbias_hh = None
    if need_bias_hh:  # as memory of its own
        dbias_hh = rows.sum(0) if dbias_ih is None else dbias_ih.clone()
    return dx, dh0, dw_ih, dw_hh, dbias_ih, dbias_hh


def project(x: Tensor, w_ih: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None) -> Tensor:
    r"""$x_t W_{ih}^T + b_{ih} + b_{hh}$, read in the order in which `x` lies in memory."""
    bias = bias_ih + bias_hh if bias_ih is not None and bias_hh is not None else None
    if x.dim() == 3 and x.stride(0) < x.stride(1):
        return F.linear(x.transpose(0, 1), w_ih, bias).transpose(0, 1)
    return F.linear(x, w_ih, bias)


registration.define(
    Layer,
    "layer",
    "Tensor x, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor? bias_ih, Tensor? bias_hh",
    "(Tensor, Tensor)",
    registration.fake_layer,
    registration.fold_layer,
)
