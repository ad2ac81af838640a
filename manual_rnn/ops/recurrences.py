r"""The two recurrences of an Elman network, closed under differentiation.

    elman                h_t = phi(z_t + h_{t-1} w^T)            h before the first step = h0
    linear_recurrence    y_t = phi'(h_t) * (v_t + y_{t-1} a)     y before the first step = 0

The slope phi' is written through the state, for tanh 1 - h*h (`kernels/nonlinearities.py`). With `c` a
cotangent, `'` a tangent, `first` the step at which time starts, "back" the other direction of time:

    vjp of elman     dz = linear(c, h, w), back;  dh0 = dz_first w;  dw = sum_t dz_t^T h_{t-1}
    jvp of elman     linear(z' + h_{t-1} w'^T + [h0' w^T at first], h, w^T)
    vjp of linear    dv = m = linear(c, h, a^T), back;  da = sum_t y_{t-1}^T m_t
                     dh_t = k_t * (c_t + m_{t+1} a^T) * (v_t + y_{t-1} a)
    jvp of linear    q + linear(v' + y_{t-1} a' + q_{t-1} a, h, a),  q_t = k_t * h'_t * (v_t + y_{t-1} a)

where k is the derivative of the slope by h, for tanh -2h. So derivatives of any order, forward, reverse or
mixed, stay inside these two functions. Under `vmap` the new axis joins the batch where the weights are
shared; else it makes an ensemble, `G` weight matrices side by side.

A leak has recurrences of its own (`leaky_recurrence.py`). Letters and shapes are those of
`kernels/interface.py`. To every transform and trace each of the two is one
operator (`registration.py`); `dispatch.py` says when it is bypassed.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import kernels
from ..kernels.nonlinearities import PHI
from ..kernels.time_order import Walk, first_rows
from ..torch_internals import Function, in_forward_mode, profiling
from . import dispatch
from .operator_checks import check_recurrence
from .profiler import record_recurrence
from .saved_tensors import alias, expanded_zeros, saved_by


def nested_forward_ad(jvp: Callable[..., Any]) -> Callable[..., Any]:
    """A node's `jvp` that another jvp around it can differentiate.

    PyTorch turns forward mode off in there, and the saved tensors still carry the tangents at work: a jvp of
    a jvp would silently take it all for constant. So forward mode goes on, without those tangents.
    """

    def differentiable(ctx: Any, *tangents: Any) -> Any:
        with in_forward_mode(True):
            primals = [forward_ad.unpack_dual(x, level=0).primal for x in ctx.saved_tensors]
            return jvp(SimpleNamespace(**vars(ctx), saved_tensors=primals), *tangents)

    return differentiable


def _compute(
    name: str, x: Tensor, y: Tensor, w: Tensor, batch_sizes: Tensor | None, phi: str, *how: Any
) -> Tensor:
    """By a kernel, below autograd."""
    reverse, kernel = how
    check_recurrence(name, x, y, w, batch_sizes)
    if profiling() and kernel != kernels.REFERENCE:
        record_recurrence(x, w, 0 if name == "elman" else first_rows(x, batch_sizes, not reverse))
    able = kernels.choose(kernel, x, y, w, batch_sizes=batch_sizes, phi=phi)
    return getattr(able, name)(x, y, w, batch_sizes, phi, reverse)


def _save(ctx: Any, options: tuple[Any, ...], *tensors: Tensor) -> None:
    """For both kinds of derivative."""
    ctx.options = options
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def elman(
    z: Tensor, h0: Tensor, w: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool, kernel: str
) -> Tensor:
    r"""$h_t = \phi(z_t + h_{t-1} w^T)$"""
    how = batch_sizes, phi, reverse
    return dispatch.dispatch("elman", Elman.compute, Elman.record, kernel, (z, h0, w), *how)


class Elman(Function):
    """The autograd node of `elman`."""

    compute = staticmethod(partial(_compute, "elman"))

    @staticmethod
    def record(z: Tensor, h0: Tensor, w: Tensor, *args: Any) -> Tensor:
        """By a kernel, as a node of plain tensors."""
        return Elman.apply(Elman.compute, z, alias(h0), alias(w), *args)

    @staticmethod
    def forward(
        ctx: Any, run: Callable[..., Tensor], z: Tensor, h0: Tensor, w: Tensor, *options: Any
    ) -> Tensor:
        h = run(z, h0, w, *options)
        _save(ctx, options, h, h0, w)
        return h

    @staticmethod
    def backward(ctx: Any, c: Tensor | None) -> tuple[Tensor | None, ...]:
        if c is None:
            return (None,) * 8
        h, h0, w = saved_by(ctx)
        batch_sizes, phi, reverse, kernel = ctx.options
        walk = Walk(w.dim() - 2, reverse, batch_sizes)
        dz = linear_recurrence(c, h, w, batch_sizes, phi, not reverse, kernel)
        _, _, need_h0, need_w, *_ = ctx.needs_input_grad
        dh0 = rows_matmul(walk.first(dz, h0.size(-2)), w) if need_h0 else None
        dw = weight_gradient(dz, h, h0, walk) if need_w else None
        return None, dz, dh0, dw, None, None, None, None

    @staticmethod
    @nested_forward_ad
    def jvp(ctx: Any, _: None, dz: Tensor | None, dh0: Tensor | None, dw: Tensor | None, *__: None) -> Tensor:
        h, h0, w = ctx.saved_tensors
        batch_sizes, phi, reverse, kernel = ctx.options
        dz, dh0, dw = or_zeros(dz, h), or_zeros(dh0, h0), or_zeros(dw, w)
        walk = Walk(w.dim() - 2, reverse, batch_sizes)
        through_w = rows_matmul(walk.previous(h, h0), dw.mT)
        through_h0 = rows_matmul(walk.previous(torch.zeros_like(h), dh0), w.mT)
        return linear_recurrence(dz + through_w + through_h0, h, w.mT, batch_sizes, phi, reverse, kernel)


def linear_recurrence(
    v: Tensor, h: Tensor, a: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool, kernel: str
) -> Tensor:
    r"""$y_t = \phi'(h_t) (v_t + y_{t-1} a)$"""
    how, node = (batch_sizes, phi, reverse), LinearRecurrence
    return dispatch.dispatch("linear_recurrence", node.compute, node.record, kernel, (v, h, a), *how)


class LinearRecurrence(Function):
    """The autograd node of `linear_recurrence`."""

    compute = staticmethod(partial(_compute, "linear_recurrence"))

    @staticmethod
    def record(v: Tensor, h: Tensor, a: Tensor, *args: Any) -> Tensor:
        """By a kernel, as a node of plain tensors."""
        return LinearRecurrence.apply(LinearRecurrence.compute, alias(v), alias(h), alias(a), *args)

    @staticmethod
    def forward(
        ctx: Any, run: Callable[..., Tensor], v: Tensor, h: Tensor, a: Tensor, *options: Any
    ) -> Tensor:
        y = run(v, h, a, *options)
        _save(ctx, options, v, h, a, y)
        return y

    @staticmethod
    def backward(ctx: Any, c: Tensor | None) -> tuple[Tensor | None, ...]:
        if c is None:
            return (None,) * 8
        v, h, a, y = saved_by(ctx)
        batch_sizes, phi, reverse, kernel = ctx.options
        walk = Walk(a.dim() - 2, reverse, batch_sizes)
        dh = da = None
        slope_derivative = PHI[phi].slope_derivative
        m = linear_recurrence(c, h, a.mT, batch_sizes, phi, not reverse, kernel)
        if ctx.needs_input_grad[2] and slope_derivative is not None:
            zero = walk.zero_start(y)
            dh = slope_derivative(h) * (v + rows_matmul(walk.previous(y, zero), a))
            dh = dh * (c + rows_matmul(walk.back().previous(m, zero), a.mT))
        elif ctx.needs_input_grad[2]:  # zeros are a gradient, which a user may ask for
            dh = expanded_zeros(h, h.shape)
        if ctx.needs_input_grad[3]:
            da = _transition_gradient(a, m, y, walk)
        return None, m, dh, da, None, None, None, None

    @staticmethod
    @nested_forward_ad
    def jvp(ctx: Any, _: None, dv: Tensor | None, dh: Tensor | None, da: Tensor | None, *__: None) -> Tensor:
        v, h, a, y = ctx.saved_tensors
        dv, dh, da = or_zeros(dv, v), or_zeros(dh, h), or_zeros(da, a)
        batch_sizes, phi, reverse, kernel = ctx.options
        walk = Walk(a.dim() - 2, reverse, batch_sizes)
        zero, slope_derivative = walk.zero_start(y), PHI[phi].slope_derivative
        y_before = walk.previous(y, zero)
        dv = dv + rows_matmul(y_before, da)
        if slope_derivative is None:
            return linear_recurrence(dv, h, a, batch_sizes, phi, reverse, kernel)
        q = slope_derivative(h) * dh * (v + rows_matmul(y_before, a))
        dv = dv + rows_matmul(walk.previous(q, zero), a)
        return q + linear_recurrence(dv, h, a, batch_sizes, phi, reverse, kernel)


def _transition_gradient(a: Tensor, m: Tensor, y: Tensor, walk: Walk) -> Tensor:
    r"""$\sum_t y_{t-1}^T m_t$, with rows in memory where `a` has rows, and columns where it has columns: the
    weights' own gradient, whose transpose `a` may be, can be viewed as a vector."""
    if a.stride(-1) == 1:
        return weight_gradient(y, m, None, walk.back())
    return weight_gradient(m, y, None, walk).mT


def or_zeros(tangent: Tensor | None, x: Tensor) -> Tensor:
    """PyTorch's own zeros have no memory, which compiled code reads (torch 2.13, inductor)."""
    return torch.zeros_like(x) if tangent is None else tangent


def rows_matmul(x: Tensor, w: Tensor) -> Tensor:
    """Every row of `x` times `w`; in an ensemble, times the `w` of its member.

    As one product of contiguous matrices: of any other PyTorch makes a batched product under `vmap`, and
    inductor compiles its tangent to one that reads memory that isn't there (torch 2.13).
    """
    if w.dim() == 2:
        rows = x.reshape(-1, x.size(-1)).contiguous()
        return (rows @ w).reshape(*x.shape[:-1], w.size(-1))
    return x @ (w.unsqueeze(1) if x.dim() > w.dim() else w)


def weight_gradient(m: Tensor, x: Tensor, start: Tensor | None, walk: Walk) -> Tensor:
    r"""$\sum_t m_t^T x_{t-1}$, one matrix product over all steps, `(H, H)` or `(G, H, H)`. Before
    the first step x is `start`, None for zeros."""
    if walk.batch_sizes is not None:
        return m.mT @ walk.previous(x, walk.zero_start(x) if start is None else start)
    B, rows = m.size(-2), (*m.shape[:-3], -1, m.size(-1))  # B rows for each step
    m, x = m.reshape(rows), x.reshape(rows)  # `flatten` has no batching rule for is_grads_batched
    n = m.size(-2) - B
    if dispatch.statically(n, 0):
        return m.mT @ (torch.zeros_like(x) if start is None else start)
    at, later, earlier = (n, 0, B) if walk.reverse else (0, B, 0)
    later_m, earlier_x = m.narrow(-2, later, n).mT, x.narrow(-2, earlier, n)
    if start is None:
        return later_m @ earlier_x
    at_first = m.narrow(-2, at, B).mT @ start
    if at_first.dim() == 2:
        return torch.addmm(at_first, later_m, earlier_x)
    return at_first + later_m @ earlier_x
