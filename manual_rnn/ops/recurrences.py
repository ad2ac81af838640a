r"""The two recurrences of an Elman network, closed under differentiation.

    elman                h_t = phi(z_t + h_{t-1} w^T)            h before the first step = h0
    linear_recurrence    y_t = phi'(h_t) * (v_t + y_{t-1} a)     y before the first step = 0

phi is tanh or relu, and its slope phi' is written through the state: 1 - h*h, or h > 0. With `c` a
cotangent, `'` a tangent, `first` the step at which time starts, "back" the other direction of time:

    vjp of elman     dz = linear(c, h, w), back;  dh0 = dz_first w;  dw = sum_t dz_t^T h_{t-1}
    jvp of elman     linear(z' + h_{t-1} w'^T + [h0' w^T at first], h, w^T)
    vjp of linear    dv = m = linear(c, h, a^T), back;  da = sum_t y_{t-1}^T m_t
                     dh_t = k_t * (c_t + m_{t+1} a^T) * (v_t + y_{t-1} a)
    jvp of linear    q + linear(v' + y_{t-1} a' + q_{t-1} a, h, a),  q_t = k_t * h'_t * (v_t + y_{t-1} a)

where k is the derivative of the slope by h: -2h, or 0. So derivatives of any order, forward, reverse or
mixed, stay inside these two functions. Under `vmap` the new axis joins the batch where the weights are
shared; else it makes an ensemble, `G` weight matrices side by side.

Letters and shapes are those of `kernels/interface.py`. Each rule is one op to every transform and trace
(`registration.py`), and `dispatch.way` says how a call of it runs.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..kernels import reference
from ..kernels.nonlinearities import PHI
from ..kernels.time_order import Walk
from ..torch_internals import profiling
from . import dispatch, registration
from .dispatch import Rule

__all__ = [
    "Elman",
    "LinearRecurrence",
    "elman",
    "jvp_of_states",
    "linear_recurrence",
    "sum_of_products",
    "times",
]


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
        registration.check_recurrence("elman", z, h0, w, batch_sizes)
        if profiling():
            dispatch.multiplied(z, w)
        able = kernels.choose(kernel, z, h0, w, batch_sizes=batch_sizes)
        return able.elman(z, h0, w, batch_sizes, phi, reverse)

    run = compute

    @staticmethod
    def by_reference(
        z: Tensor, h0: Tensor, w: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool, kernel: str
    ) -> Tensor:
        registration.check_recurrence("elman", z, h0, w, batch_sizes)
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
        registration.check_recurrence("linear_recurrence", v, h, a, batch_sizes)
        if profiling():
            dispatch.multiplied(v, a, batch_sizes, from_zero=True)
        able = kernels.choose(kernel, v, h, a, batch_sizes=batch_sizes)
        return able.linear_recurrence(v, h, a, batch_sizes, phi, reverse)

    run = compute

    @staticmethod
    def by_reference(
        v: Tensor, h: Tensor, a: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool, kernel: str
    ) -> Tensor:
        registration.check_recurrence("linear_recurrence", v, h, a, batch_sizes)
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
    fold = partial(registration.fold_recurrence, name)
    registration.define(rule, name, tensors, "Tensor", registration.fake_recurrence, fold)
