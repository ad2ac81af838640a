r"""The equation as a loop over time, any step, any dtype, any device; autograd does the rest.

    h_t = step(g_t, h_{t-1})            g_t the gates, that is the projected input of step t

As `layer` it adds in the order in which `torch.nn.RNN` adds, and so equals it to the last bit on a CPU, in
its outputs and in every gradient. It takes any tensor, and is the judge of the other kernels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .interface import LayerWeights, NetworkOptions
from .nonlinearities import PHI
from .time_order import Walk, carry

Step = Callable[[Tensor, Tensor], Tensor]


def unsupported_reason(*tensors: Tensor | None) -> str | None:
    """None: it takes any tensor."""
    return None


def layer(
    x: Tensor, h0: Tensor, weights: LayerWeights, reverse: bool, options: NetworkOptions
) -> tuple[Tensor, Tensor]:
    r"""$h_t = \phi(g_t + (h_{t-1} W_{hh}^T + b_{hh}))$, where $g_t = x_t W_{ih}^T + b_{ih}$, and the last;
    with a leak $h_t = (1 - \alpha) h_{t-1} + \alpha \phi(...)$."""
    w_ih, w_hh, bias_ih, bias_hh = weights
    apply, alpha = PHI[options.nonlinearity].apply, options.alpha

    def step(gates: Tensor, hidden: Tensor) -> Tensor:
        new = apply(gates + F.linear(hidden, w_hh, bias_hh))
        return new if alpha is None else torch.lerp(hidden, new, alpha)

    return scan(step, F.linear(x, w_ih, bias_ih), h0, Walk(0, reverse, options.batch_sizes))


def scan(step: Step, gates: Tensor, h0: Tensor, walk: Walk) -> tuple[Tensor, Tensor]:
    r"""`gates (T, B, H)` or packed `(N, H)`, `h0 (B, H)`; returns the states, shaped as `gates`, and the
    last one of each sequence, `(B, H)`."""
    hidden = h0
    states: list[Tensor] = []
    ended: list[Tensor] = []
    for gates_t in walk.steps(gates):
        rows, alive = gates_t.size(-2), hidden.size(-2)
        if rows < alive and states:
            ended.append(hidden.narrow(-2, rows, alive - rows))
        hidden = step(gates_t, carry(hidden, h0, rows))
        states.append(hidden)
    join = torch.stack if walk.batch_sizes is None else torch.cat
    last = torch.cat([hidden, *ended[::-1]], dim=-2) if ended else hidden
    return join(list(walk.in_time(states)), dim=walk.dim), last


def elman(z: Tensor, h0: Tensor, w: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool) -> Tensor:
    r"""$h_t = \phi(z_t + h_{t-1} w^T)$."""
    apply = PHI[phi].apply
    step: Step = lambda z_t, hidden: apply(z_t + hidden @ w.mT)  # noqa: E731
    return scan(step, z, h0, Walk(w.dim() - 2, reverse, batch_sizes))[0]


def linear_recurrence(
    v: Tensor, h: Tensor, a: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool
) -> Tensor:
    r"""$y_t = \phi'(h_t) (v_t + y_{t-1} a)$."""
    walk = Walk(a.dim() - 2, reverse, batch_sizes)
    times_slope = PHI[phi].times_slope
    slopes = iter(walk.steps(h))
    B = v.size(-2) if batch_sizes is None else int(batch_sizes[0])
    zeros = v.new_zeros(*a.shape[:-2], B, v.size(-1))

    def step(v_t: Tensor, y: Tensor) -> Tensor:
        return times_slope(v_t if y is zeros else v_t + y @ a, next(slopes))

    return scan(step, v, zeros, walk)[0]
