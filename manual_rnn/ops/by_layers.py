r"""A whole network as its layers, one after the other: what a mode sees of it, and its further derivatives.

in_sight     the results of `whole.py`, with an operator or an event for each layer
noting       results of layers, and the states in between
by_layers    its gradients, of operations that have derivatives of their own
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import kernels
from . import sight
from .layer import Weights, grouped, run_layers
from .layer_rule import gradients

__all__ = ["Options", "by_layers", "in_sight", "noting"]


class Options(NamedTuple):
    """What a network's call is beside its tensors."""

    batch_sizes: Tensor | None
    phi: str
    bidirectional: bool
    bias: bool
    hidden_size: int
    input_size: int

    @property
    def D(self) -> int:  # noqa: N802
        return 1 + self.bidirectional

    @property
    def weights(self) -> int:
        """Of a layer in one direction."""
        return 4 if self.bias else 2

    def rows(self, states: Tensor) -> int:
        """`B`."""
        return states.size(1) if self.batch_sizes is None else int(self.batch_sizes[0])


def in_sight(x: Tensor, hx: Tensor | None, weights: tuple[Tensor, ...], *options: Any) -> Any:
    """`output`, `h_n`, and the states of the layers before, if some tensor wants a gradient."""
    how = Options(*options)
    recorded = sight.wants_gradient(x, hx, *weights)
    groups = grouped(weights, how.bias)
    if hx is None:
        hx = x.new_zeros(len(groups), how.rows(x), how.hidden_size)
    with torch.no_grad():
        *results, before = noting(x, hx, groups, how.phi, how.batch_sizes, len(groups) // how.D)
    return *results, tuple(before) if recorded else None


def noting(
    x: Tensor, hx: Tensor, groups: Sequence[Weights], phi: str, batch_sizes: Tensor | None, layers: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """What `run_layers` returns, and the states of all layers but the last."""
    before: list[Tensor] = []

    def note(output: Tensor) -> Tensor:
        before.append(output)
        return output

    return *run_layers(x, hx, groups, phi, batch_sizes, layers, between=note), before


def by_layers(
    how: Options,
    need: Sequence[bool],
    states: list[Tensor],
    x: Tensor | None,
    hx: Tensor | None,
    weights: list[Tensor | None],
    c: Tensor | None,
    c_last: Tensor | None,
    c_kept: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of `x`, `hx` and the weights where `need` has True, from those of the output, of `h_n` and of
    the states of every layer. What no gradient needs may be None."""
    need_x, need_hx, *need_w = need
    layer = how.weights * how.D
    dhx: list[Any] = []
    dweights: list[Tensor | None] = []
    for at in reversed(range(len(states))):
        before = at * layer
        below = need_x if at == 0 else need_x or need_hx or any(need_w[:before])
        found = _one_layer(
            how,
            at,
            (below, need_hx, need_w[before : before + layer]),
            states[at],
            states[at - 1] if at else x,
            hx,
            weights[before : before + layer],
            _sum(c, c_kept[at]),
            c_last,
        )
        c, dh0, dw = found
        dhx, dweights = dh0 + dhx, dw + dweights
    return [c, torch.stack(dhx) if need_hx else None, *dweights]


def _one_layer(
    how: Options,
    at: int,
    need: tuple[bool, bool, Sequence[bool]],
    states: Tensor,
    x: Any,
    hx: Tensor | None,
    weights: Sequence[Any],
    c: Tensor | None,
    c_last: Tensor | None,
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    """Gradients of what layer `at` reads, of its first states and of its weights, in all its directions."""
    H, B, size = how.hidden_size, how.rows(states), how.weights
    below: Tensor | None = None
    dh0: list[Tensor | None] = []
    dweights: list[Tensor | None] = []
    for d in range(how.D):
        index, own = at * how.D + d, slice(d * size, (d + 1) * size)
        h = states.narrow(-1, d * H, H)
        found = gradients(
            None if c is None else c.narrow(-1, d * H, H),
            None if c_last is None else c_last[index],
            h,
            x,
            h.new_zeros(B, H) if hx is None else hx[index],
            weights[own][0],
            weights[own][1],
            (*need[:2], *need[2][own], *(False,) * (4 - size)),
            B,
            how.batch_sizes,
            how.phi,
            bool(d),
            kernels.DEFAULT,
        )
        below = _sum(below, found[0])
        dh0.append(found[1])
        dweights += found[2 : 2 + size]
    return below, dh0, dweights


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Of those that are there."""
    return b if a is None else a if b is None else a + b
