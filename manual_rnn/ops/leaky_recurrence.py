r"""The recurrence of an Elman network with a leak, and its vjp, as loops of PyTorch's operations.

Its derivatives are one linear recurrence with two diagonal factors, p and q, and l = 1 - alpha:

    leaky_elman          h_t = l h_{t-1} + alpha r_t,  r_t = phi(z_t + h_{t-1} w^T)
    diagonal             y_t = l y_{t-1} + p_t ((q_{t-1} y_{t-1}) a) + u_t

    jvp of leaky_elman   diagonal with a = w^T, p_t = alpha phi'(r_t), q = 1,
                         u_t = p_t (z'_t + h_{t-1} w'^T)
    vjp of leaky_elman   g = diagonal with a = w, p = 1, q_t = alpha phi'(r_t), u = c, back
                         dz = q g;  dh0 = l g_first + dz_first w;  dw = sum_t dz_t^T h_{t-1}

Each is the other's transpose, so these two are closed under differentiation, as those of `recurrences.py`
are. The slope is written through the rates r, which a network keeps beside its states, since
(h_t - l h_{t-1}) / alpha has few digits where alpha is small. The engine has `leaky_elman` and its vjp; the
loops here serve where it doesn't run, and every transform takes them.
"""

import torch
from torch import Tensor

from ..kernels import reference
from ..kernels.nonlinearities import PHI
from ..kernels.time_order import Walk, batch_size


def leaky_elman(
    z: Tensor, h0: Tensor, w: Tensor, alpha: Tensor, phi: str, walk: Walk
) -> tuple[Tensor, Tensor]:
    r"""$h_t = (1 - \alpha) h_{t-1} + \alpha r_t$ with $r_t = \phi(z_t + h_{t-1} w^T)$: states and rates side
    by side, `(T, B, 2 H)` or `(N, 2 H)`, and the last of each sequence."""
    alpha = alpha.unsqueeze(-2)
    start = torch.cat([h0, torch.zeros_like(h0)], -1)
    return reference.scan(lambda z_t, both: leaky_step(phi, z_t, both, w, alpha), z, start, walk)


def leaky_step(phi: str, z_t: Tensor, both: Tensor, w: Tensor, alpha: Tensor) -> Tensor:
    """A state and its rate, side by side, from those before."""
    h, _ = both.chunk(2, -1)
    r = PHI[phi].apply(z_t + h @ w.mT)
    return torch.cat([torch.lerp(h, r, alpha), r], -1)


def leaky_elman_vjp(
    c: Tensor, c_rates: Tensor | None, r: Tensor, w: Tensor, alpha: Tensor, phi: str, walk: Walk
) -> tuple[Tensor, Tensor]:
    r"""$g_t = c_t + (1 - \alpha) g_{t+1} + dz_{t+1} w$ and $dz_t = \phi'(r_t) \alpha g_t$, of `c` the
    cotangent of the states; that of the rates, if there is one, joins $\alpha g_t$. `walk` is that of the
    states."""
    alpha, times_slope, back = alpha.unsqueeze(-2), PHI[phi].times_slope, walk.back()
    read = torch.cat([c, r] if c_rates is None else [c, r, c_rates], -1)

    def step(read_t: Tensor, both: Tensor) -> Tensor:
        c_t, r_t, *of_rates = read_t.split(w.size(-1), -1)
        g, dz = both.chunk(2, -1)
        g = c_t + (1 - alpha) * g + dz @ w
        return torch.cat([g, times_slope(sum(of_rates, alpha * g), r_t)], -1)

    zeros = read.new_zeros(*w.shape[:-2], batch_size(c, walk.batch_sizes), 2 * w.size(-1))
    g, dz = reference.scan(step, read, zeros, back)[0].chunk(2, -1)
    return g, dz
