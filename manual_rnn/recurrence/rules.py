r"""The recurrences of an Elman network and its layer, closed under differentiation.

    elman                h_t = phi(z_t + h_{t-1} w^T)            h before the first step = h0
    linear_recurrence    y_t = phi'(h_t) * (v_t + y_{t-1} a)     y before the first step = 0
    layer                elman of z_t = x_t w_ih^T + bias_ih + bias_hh, with w = w_hh

phi is tanh or relu, and its slope phi' is written through the state: 1 - h*h, or h > 0. With `c` a
cotangent, `'` a tangent, `first` the step at which time starts, "back" the other direction of time:

    vjp of elman     dz = linear(c, h, w), back;  dh0 = dz_first w;  dw = sum_t dz_t^T h_{t-1}
    jvp of elman     linear(z' + h_{t-1} w'^T + [h0' w^T at first], h, w^T)
    vjp of linear    dv = m = linear(c, h, a^T), back;  da = sum_t y_{t-1}^T m_t
                     dh_t = k_t * (c_t + m_{t+1} a^T) * (v_t + y_{t-1} a)
    jvp of linear    q + linear(v' + y_{t-1} a' + q_{t-1} a, h, a),  q_t = k_t * h'_t * (v_t + y_{t-1} a)
    vjp of layer     that of elman for dz;  dx = dz w_ih;  dw_ih = sum_t dz_t^T x_t;  dbias = sum_t dz_t
    jvp of layer     that of elman for z' = x' w_ih^T + x w_ih'^T + bias'

where k is the derivative of the slope by h: -2h, or 0. So derivatives of any order, forward, reverse or
mixed, stay inside the first two. Under `vmap` the new axis joins the batch where the weights are shared;
else it makes an ensemble, `G` weight matrices side by side.

Letters and shapes are those of `kernels/contract.py`. Each rule is one op to every transform and trace
(`operators.py`), and `dispatch.way` says how a call of it runs.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import kernels
from ..kernels import reference
from ..kernels.phi import PHI
from ..kernels.walk import Walk
from . import dispatch, operators
from .dispatch import Rule

__all__ = ["elman", "layer", "linear_recurrence", "project"]


def elman(
    z: Tensor, h0: Tensor, w: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool, kernel: str
) -> Tensor:
    r"""$h_t = \phi(z_t + h_{t-1} w^T)$"""
    return dispatch.way("elman", kernel, z, h0, w)(z, h0, w, batch_sizes, phi, reverse, kernel)


class Elman(Rule):
    """`elman` and its derivatives."""

    @staticmethod
    def compute(
        z: Tensor, h0: Tensor, w: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool, kernel: str
    ) -> Tensor:
        operators.check_recurrence("elman", z, h0, w, batch_sizes)
        if dispatch.profiling():
            dispatch.multiplied(z, w)
        return kernels.choose(kernel, z, h0, w).elman(z, h0, w, batch_sizes, phi, reverse)

    run = compute

    @staticmethod
    def by_reference(
        z: Tensor, h0: Tensor, w: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool, kernel: str
    ) -> Tensor:
        operators.check_recurrence("elman", z, h0, w, batch_sizes)
        return reference.elman(z, h0, w, batch_sizes, phi, reverse)

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, h0: Tensor, w: Tensor, batch_sizes: Tensor | None, *options: Any
    ) -> Tensor:
        h = dispatch.without_derivative("elman", z, h0, w)(z, h0, w, batch_sizes, *options)
        ctx.options = batch_sizes, *options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(h, h0, w)
        ctx.save_for_forward(h, h0, w)
        return h

    @staticmethod
    def backward(ctx: Any, c: Tensor | None) -> tuple[Tensor | None, ...]:
        if c is None:
            return (None,) * 7
        h, h0, w = ctx.saved_tensors
        batch_sizes, phi, reverse, kernel = ctx.options
        walk = Walk(w.dim() - 2, reverse, batch_sizes)
        dz = linear_recurrence(c, h, w, batch_sizes, phi, not reverse, kernel)
        _, need_h0, need_w = ctx.needs_input_grad[:3]
        dh0 = times(walk.first(dz, h0.size(-2)), w) if need_h0 else None
        dw = sum_of_products(dz, h, h0, walk) if need_w else None
        return dz, dh0, dw, None, None, None, None

    @staticmethod
    @dispatch.nestable
    def jvp(ctx: Any, dz: Tensor | None, dh0: Tensor | None, dw: Tensor | None, *_: None) -> Tensor:
        h, h0, w = ctx.saved_tensors
        return jvp_of_states(dz, dh0, dw, h, h0, w, *ctx.options)


def linear_recurrence(
    v: Tensor, h: Tensor, a: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool, kernel: str
) -> Tensor:
    r"""$y_t = \phi'(h_t) (v_t + y_{t-1} a)$"""
    return dispatch.way("linear_recurrence", kernel, v, h, a)(v, h, a, batch_sizes, phi, reverse, kernel)


class LinearRecurrence(Rule):
    """`linear_recurrence` and its derivatives."""

    @staticmethod
    def compute(
        v: Tensor, h: Tensor, a: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool, kernel: str
    ) -> Tensor:
        operators.check_recurrence("linear_recurrence", v, h, a, batch_sizes)
        if dispatch.profiling():
            dispatch.multiplied(v, a, batch_sizes, from_zero=True)
        return kernels.choose(kernel, v, h, a).linear_recurrence(v, h, a, batch_sizes, phi, reverse)

    run = compute

    @staticmethod
    def by_reference(
        v: Tensor, h: Tensor, a: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool, kernel: str
    ) -> Tensor:
        operators.check_recurrence("linear_recurrence", v, h, a, batch_sizes)
        return reference.linear_recurrence(v, h, a, batch_sizes, phi, reverse)

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, h: Tensor, a: Tensor, batch_sizes: Tensor | None, *options: Any
    ) -> Tensor:
        y = dispatch.without_derivative("linear_recurrence", v, h, a)(v, h, a, batch_sizes, *options)
        ctx.options = batch_sizes, *options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(v, h, a, y)
        ctx.save_for_forward(v, h, a, y)
        return y

    @staticmethod
    def backward(ctx: Any, c: Tensor | None) -> tuple[Tensor | None, ...]:
        if c is None:
            return (None,) * 7
        v, h, a, y = ctx.saved_tensors
        batch_sizes, phi, reverse, kernel = ctx.options
        walk = Walk(a.dim() - 2, reverse, batch_sizes)
        dh = da = None
        zero, bend = walk.zero_start(y), PHI[phi].bend
        m = linear_recurrence(c, h, a.mT, batch_sizes, phi, not reverse, kernel)
        if ctx.needs_input_grad[1] and bend is not None:
            after = times(walk.back().previous(m, zero), a.mT)
            dh = bend(h) * (c + after) * (v + times(walk.previous(y, zero), a))
        if ctx.needs_input_grad[2]:
            da = sum_of_products(m, y, zero, walk).mT
        return m, dh, da, None, None, None, None

    @staticmethod
    @dispatch.nestable
    def jvp(ctx: Any, dv: Tensor | None, dh: Tensor | None, da: Tensor | None, *_: None) -> Tensor:
        v, h, a, y = ctx.saved_tensors
        dv, dh, da = or_zeros(dv, v), or_zeros(dh, h), or_zeros(da, a)
        batch_sizes, phi, reverse, kernel = ctx.options
        walk = Walk(a.dim() - 2, reverse, batch_sizes)
        zero, bend = walk.zero_start(y), PHI[phi].bend
        y_before = walk.previous(y, zero)
        dv = dv + times(y_before, da)
        if bend is None:
            return linear_recurrence(dv, h, a, batch_sizes, phi, reverse, kernel)
        q = bend(h) * dh * (v + times(y_before, a))
        dv = dv + times(walk.previous(q, zero), a)
        return q + linear_recurrence(dv, h, a, batch_sizes, phi, reverse, kernel)


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
        able = kernels.choose(kernel, x, h0, w_ih, w_hh, bias_ih, bias_hh)
        if x.size(0) and hasattr(able, "layer"):
            found = able.layer(x, h0, w_ih, w_hh, bias_ih, bias_hh, batch_sizes, phi, reverse)
            if found is not None:
                if dispatch.profiling():
                    dispatch.multiplied(x, w_ih)
                    dispatch.multiplied(found[0], w_hh)
                return found
        z = project(x, w_ih, bias_ih, bias_hh)
        if z.size(0) == 0:  # in a graph made for a length from data
            return z, h0.clone()
        if dispatch.profiling():
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
        operators.check_layer(x, h0, (w_ih, w_hh, bias_ih, bias_hh), batch_sizes)
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
    def node(
        x: Tensor,
        h0: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        batch_sizes: Tensor | None,
        *options: Any,
    ) -> tuple[Tensor, Tensor]:
        x, h0, w_ih, w_hh = map(_as_view, (x, h0, w_ih, w_hh))
        states, last, _ = PlainLayer.apply(x, h0, w_ih, w_hh, bias_ih, bias_hh, batch_sizes, *options)
        return dispatch.unhooked(states), last

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
        ctx.save_for_backward(states if kept is None else kept, x, h0, w_ih, w_hh)
        ctx.save_for_forward(states, x, h0, w_ih, w_hh)
        return (states, last) if kept is None else (states, last, kept)

    @staticmethod
    def backward(
        ctx: Any, c: Tensor | None, c_last: Tensor | None, c_kept: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        h, x, h0, w_ih, w_hh = _saved(ctx)
        batch_sizes, phi, reverse, kernel = ctx.options
        need_x, need_h0, need_ih, need_hh, need_bias_ih, need_bias_hh = ctx.needs_input_grad[:6]
        walk = Walk(0, reverse, batch_sizes)
        c = _total_cotangent(c, c_last, c_kept, h, walk)
        if w_hh is None:  # a single step
            dz = PHI[phi].times_slope(c, h)
        else:
            dz = linear_recurrence(c, h, w_hh, batch_sizes, phi, not reverse, kernel)
        rows = dz.reshape(-1, dz.size(-1))
        dh0 = times(walk.first(dz, ctx.B), w_hh) if need_h0 else None
        dw_hh = sum_of_products(dz, h, h0, walk) if need_hh else None
        dx = times(dz, w_ih) if need_x else None
        dw_ih = rows.mT @ x.reshape(-1, x.size(-1)) if need_ih else None
        dbias_ih = rows.sum(0) if need_bias_ih else None
        dbias_hh = None
        if need_bias_hh:  # as memory of its own
            dbias_hh = rows.sum(0) if dbias_ih is None else dbias_ih.clone()
        return dx, dh0, dw_ih, dw_hh, dbias_ih, dbias_hh, None, None, None, None

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
    ) -> tuple[Tensor, Tensor]:
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
        return tangent, Walk(0, reverse, batch_sizes).last(tangent, h0.size(0)).clone()


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
        states, last = Layer.compute(x, h0, w_ih, w_hh, bias_ih, bias_hh, batch_sizes, *options)
        ctx.options, ctx.B = (batch_sizes, *options), h0.size(0)
        ctx.set_materialize_grads(False)
        need_x, need_h0, need_ih, need_hh, *_ = ctx.needs_input_grad
        steps = (x if batch_sizes is None else batch_sizes).size(0)
        keep = (
            x if need_ih else None,
            h0 if need_hh else None,
            w_ih if need_x else None,
            w_hh if need_h0 or steps > 1 else None,
        )
        leaves = [t if t is not None and t.grad_fn is None and t.requires_grad else None for t in keep]
        ctx.leaves = [None if t is None else (t, t.data_ptr()) for t in leaves]
        kept = dispatch.copy_on_write(states)
        ctx.save_for_backward(kept, *[t if t is None or t.grad_fn is not None else t.detach() for t in keep])
        return states, last, kept


def _as_view(x: Tensor) -> Tensor:
    """What backward keeps of a computed tensor: of itself `x.data = ...` would change what was kept."""
    return x if x.grad_fn is None else x.view_as(x)


def _saved(ctx: Any) -> list[Tensor]:
    """What a layer's backward works with: numbers, or where it is itself to be differentiated, leaves."""
    saved = list(ctx.saved_tensors)
    if ctx.leaves is None or not torch.is_grad_enabled():
        return saved
    for place, kept in enumerate(ctx.leaves, start=1):
        if kept is None:
            continue
        leaf, at = kept
        if leaf.data_ptr() != at:
            raise RuntimeError(
                "expected the input and weights of the forward pass for a second derivative, got one whose "
                ".data was replaced meanwhile"
            )
        saved[place] = leaf
    return saved


def _total_cotangent(
    c: Tensor | None, c_last: Tensor | None, c_kept: Tensor | None, h: Tensor, walk: Walk
) -> Tensor:
    """Of the states, from that of the output, of the last states, and of the sibling that backward keeps."""
    if c_kept is not None:
        c = c_kept if c is None else c + c_kept
    c = torch.zeros_like(h) if c is None else c
    return c if c_last is None else walk.add_to_last(c, c_last)


def project(x: Tensor, w_ih: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None) -> Tensor:
    r"""$x_t W_{ih}^T + b_{ih} + b_{hh}$, read in the order in which `x` lies in memory."""
    bias = bias_ih + bias_hh if bias_ih is not None and bias_hh is not None else None
    if x.dim() == 3 and x.stride(0) < x.stride(1):
        return F.linear(x.transpose(0, 1), w_ih, bias).transpose(0, 1)
    return F.linear(x, w_ih, bias)


def jvp_of_states(
    dz: Tensor | None, dh0: Tensor | None, dw: Tensor | None, h: Tensor, h0: Tensor, w: Tensor,
    batch_sizes: Tensor | None, phi: str, reverse: bool, kernel: str,
) -> Tensor:  # fmt: skip
    """The tangent of the states from those of `z`, `h0` and `w`."""
    dz, dh0, dw = or_zeros(dz, h), or_zeros(dh0, h0), or_zeros(dw, w)
    walk = Walk(w.dim() - 2, reverse, batch_sizes)
    through_w = times(walk.previous(h, h0), dw.mT)
    through_h0 = times(walk.previous(torch.zeros_like(h), dh0), w.mT)
    return linear_recurrence(dz + through_w + through_h0, h, w.mT, batch_sizes, phi, reverse, kernel)


def or_zeros(tangent: Tensor | None, x: Tensor) -> Tensor:
    """PyTorch's own zeros have no memory, which compiled code reads (torch 2.13, inductor)."""
    return torch.zeros_like(x) if tangent is None else tangent


def times(x: Tensor, w: Tensor) -> Tensor:
    """Every row of `x` times `w`; in an ensemble, times the `w` of its member.

    As one product of contiguous matrices: of any other PyTorch makes a batched product under `vmap`, and
    inductor compiles its tangent to one that reads memory that isn't there (torch 2.13).
    """
    if w.dim() == 2:
        rows = x.reshape(-1, x.size(-1)).contiguous()
        return (rows @ w).reshape(*x.shape[:-1], w.size(-1))
    return x @ (w.unsqueeze(1) if x.dim() > w.dim() else w)


def sum_of_products(m: Tensor, x: Tensor, start: Tensor, walk: Walk) -> Tensor:
    r"""$\sum_t m_t^T x_{t-1}$, one matrix product over all steps, `(H, H)` or `(G, H, H)`."""
    if walk.batch_sizes is not None:
        return m.mT @ walk.previous(x, start)
    B, rows = start.size(-2), (*start.shape[:-2], -1, start.size(-1))  # B rows for each step
    m, x = m.reshape(rows), x.reshape(rows)  # `flatten` has no batching rule for is_grads_batched
    n = m.size(-2) - B
    if dispatch.surely_zero(n):
        return m.mT @ start
    at, later, earlier = (n, 0, B) if walk.reverse else (0, B, 0)
    at_first = m.narrow(-2, at, B).mT @ start
    later_m, earlier_x = m.narrow(-2, later, n).mT, x.narrow(-2, earlier, n)
    if at_first.dim() == 2:
        return torch.addmm(at_first, later_m, earlier_x)
    return at_first + later_m @ earlier_x


for rule, name, tensors in (
    (Elman, "elman", "Tensor z, Tensor h0, Tensor w"),
    (LinearRecurrence, "linear_recurrence", "Tensor v, Tensor h, Tensor a"),
):
    fold = partial(operators.fold_recurrence, name)
    operators.define(rule, name, tensors, "Tensor", operators.fake_recurrence, fold)
operators.define(
    Layer,
    "layer",
    "Tensor x, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor? bias_ih, Tensor? bias_hh",
    "(Tensor, Tensor)",
    operators.fake_layer,
    operators.fold_layer,
)
