r"""The two recurrences of an Elman network, each other's derivatives to any order.

    elman    h_t = phi(z_t + h_{t-1} w^T)              h before the first step = h0
    linear   y_t = phi'(h_t) * (v_t + y_{t-1} a)       y before the first step = 0

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

Shapes: `z`, `h`, `v`, `y` `(T, B, H)`, or `(N, H)` with `batch_sizes (T,)` for a packed batch; `h0 (B, H)`;
`w`, `a` `(H, H)`. In an ensemble each has one more axis in front, `G`.

Each is one op to every transform and trace: `ops.py` ties these derivatives to it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import ops
from .rows import Walk

__all__ = ["elman", "linear", "vjp_of_state_and_weight"]

BEND: dict[str, Callable[[Tensor], Tensor] | None] = {"tanh": lambda h: -2 * h, "relu": None}


def elman(*args: Any) -> Tensor:
    r"""$h_t = \phi(z_t + h_{t-1} w^T)$ of `(z, h0, w, batch_sizes, phi, reverse, kernel)`."""
    return ops.call("elman", Elman, *args)


def linear(*args: Any) -> Tensor:
    r"""$y_t = \phi'(h_t) (v_t + y_{t-1} a)$ of `(v, h, a, batch_sizes, phi, reverse, kernel)`."""
    return ops.call("linear", Linear, *args)


class Elman(Function):
    """`forward(z, h0, w, batch_sizes, phi, reverse, kernel) -> h`"""

    forward = ops.forward_of("elman")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, h0, w, batch_sizes, *ctx.options = inputs
        ctx.save_for_backward(output, h0, w, batch_sizes)
        ctx.save_for_forward(output, h0, w, batch_sizes)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor | None, ...]:
        h, h0, w, batch_sizes = ctx.saved_tensors
        phi, reverse, kernel = ctx.options
        walk = Walk(w.dim() - 2, reverse, batch_sizes)
        dz = linear(c, h, w, batch_sizes, phi, not reverse, kernel)
        dh0, dw = vjp_of_state_and_weight(dz, h, h0, w, walk, *ctx.needs_input_grad[1:3])
        return dz, dh0, dw, None, None, None, None

    @staticmethod
    @ops.nestable
    def jvp(ctx: Any, dz: Tensor, dh0: Tensor, dw: Tensor, *_: None) -> Tensor:
        h, h0, w, batch_sizes = ctx.saved_tensors
        phi, reverse, kernel = ctx.options
        walk = Walk(w.dim() - 2, reverse, batch_sizes)
        through_w = times(walk.previous(h, h0), dw.mT)
        through_h0 = times(walk.previous(torch.zeros_like(h), dh0), w.mT)
        return linear(dz + through_w + through_h0, h, w.mT, batch_sizes, phi, reverse, kernel)


class Linear(Function):
    """`forward(v, h, a, batch_sizes, phi, reverse, kernel) -> y`"""

    forward = ops.forward_of("linear")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        v, h, a, batch_sizes, *ctx.options = inputs
        ctx.save_for_backward(v, h, a, batch_sizes, output)
        ctx.save_for_forward(v, h, a, batch_sizes, output)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor | None, ...]:
        v, h, a, batch_sizes, y = ctx.saved_tensors
        phi, reverse, kernel = ctx.options
        walk = Walk(a.dim() - 2, reverse, batch_sizes)
        dh = da = None
        zero, bend = walk.zero_start(y), BEND[phi]
        m = linear(c, h, a.mT, batch_sizes, phi, not reverse, kernel)
        if ctx.needs_input_grad[1] and bend is not None:
            after = times(walk.back().previous(m, zero), a.mT)
            dh = bend(h) * (c + after) * (v + times(walk.previous(y, zero), a))
        if ctx.needs_input_grad[2]:
            da = sum_of_products(m, y, zero, walk).mT
        return m, dh, da, None, None, None, None

    @staticmethod
    @ops.nestable
    def jvp(ctx: Any, dv: Tensor, dh: Tensor, da: Tensor, *_: None) -> Tensor:
        v, h, a, batch_sizes, y = ctx.saved_tensors
        phi, reverse, kernel = ctx.options
        walk = Walk(a.dim() - 2, reverse, batch_sizes)
        zero, bend = walk.zero_start(y), BEND[phi]
        y_before = walk.previous(y, zero)
        dv = dv + times(y_before, da)
        if bend is None:
            return linear(dv, h, a, batch_sizes, phi, reverse, kernel)
        q = bend(h) * dh * (v + times(y_before, a))
        dv = dv + times(walk.previous(q, zero), a)
        return q + linear(dv, h, a, batch_sizes, phi, reverse, kernel)


def vjp_of_state_and_weight(
    dz: Tensor, h: Tensor, h0: Tensor, w: Tensor, walk: Walk, need_h0: bool, need_w: bool
) -> tuple[Tensor | None, Tensor | None]:
    """What the cotangent of `z` says of `h0` and `w`, where they are needed."""
    dh0 = walk.first(dz, h0.size(-2)) @ w if need_h0 else None
    return dh0, sum_of_products(dz, h, h0, walk) if need_w else None


def times(x: Tensor, w: Tensor) -> Tensor:
    """Every row of `x` times `w`; in an ensemble, times the `w` of its member."""
    return x @ (w.unsqueeze(1) if x.dim() > w.dim() > 2 else w)


def sum_of_products(m: Tensor, x: Tensor, start: Tensor, walk: Walk) -> Tensor:
    r"""$\sum_t m_t^T x_{t-1}$, one matrix product over all steps, `(H, H)` or `(G, H, H)`."""
    if walk.batch_sizes is not None:
        return m.mT @ walk.previous(x, start)
    B, rows = start.size(-2), (*start.shape[:-2], -1, start.size(-1))  # B rows for each step
    m, x = m.reshape(rows), x.reshape(rows)  # `flatten` has no batching rule for is_grads_batched
    if (n := m.size(-2) - B) == 0:
        return m.mT @ start
    at, later, earlier = (n, 0, B) if walk.reverse else (0, B, 0)
    at_first = m.narrow(-2, at, B).mT @ start
    return at_first + m.narrow(-2, later, n).mT @ x.narrow(-2, earlier, n)


ops.define("elman", "Tensor z, Tensor h0, Tensor w", Elman)
ops.define("linear", "Tensor v, Tensor h, Tensor a", Linear)
