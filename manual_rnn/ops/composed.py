r"""The network and its gradients, composed of the two recurrences: what has derivatives of any order, forward
and reverse, and what runs where a kernel offers no whole network.

    network        z = x W_ih^T + b_ih + b_hh;  h = elman(z, h_0, W_hh)      in each layer and direction
    network_vjp    dz = linear(c, h, W_hh), back in time;  dx = dz W_ih;  dW_ih = sum_t dz_t^T x_t;
                   dW_hh = sum_t dz_t^T h_{t-1};  db = sum_t dz_t;  dh_0 = dz_first W_hh

With a leak `leaky_elman` and its vjp stand for the two, and behind the states of every layer are its rates.

Every tensor may have a leading axis `G`, one network for each of its members; all have it, or none.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import REFERENCE, reference
from ..kernels.interface import LayerWeights, NetworkOptions, Saved, grouped
from ..kernels.time_order import Walk, batch_size
from .dispatch import statically
from .leaky_recurrence import leaky_elman, leaky_elman_vjp
from .recurrences import elman, linear_recurrence, rows_matmul, weight_gradient

Direction = Callable[[Tensor, Tensor, LayerWeights, bool, NetworkOptions], tuple[Tensor, Tensor]]


def network(
    x: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    options: NetworkOptions,
    run: Direction | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    r"""`x (T, B, I)` or packed `(N, I)`, `hx (L * D, B, H)` or None for zeros.

    Returns the last layer's states `(T, B, D * H)`, `h_n (L * D, B, H)`, and the states of every layer.
    """
    groups = grouped(weights, options.has_biases)
    states: list[Tensor] = []
    rates: list[Tensor] = []
    last: list[Tensor] = []
    if hx is None:
        hx = _zero_state(x, groups, options)
    h0 = hx.unbind(-3)
    for at in range(0, len(groups), options.D):
        layer = slice(at, at + options.D)
        x, ends = run_layer(x, h0[layer], groups[layer], options, run or run_direction)
        if options.alpha is not None:
            both = x.unflatten(-1, (options.D, 2, -1)).unbind(-2)
            x, r = (torch.cat(half.unbind(-2), -1) for half in both)
            rates.append(r)
        states.append(x)
        last += ends
    return x, _stacked(last), states + rates


def run_layer(
    x: Tensor, h0: Sequence[Tensor], weights: Sequence[LayerWeights], options: NetworkOptions, run: Direction
) -> tuple[Tensor, list[Tensor]]:
    """One layer: the states of its directions side by side, and the last of each."""
    found = [run(x, h, group, bool(d), options) for d, (h, group) in enumerate(zip(h0, weights, strict=True))]
    states, last = zip(*found, strict=True)
    return states[0] if len(states) == 1 else torch.cat(states, dim=-1), list(last)


def _stacked(states: Sequence[Tensor]) -> Tensor:
    """`(L * D, B, H)` of so many states `(B, H)`; `torch.stack` would give a view, which no node returns."""
    return torch.cat([h.unsqueeze(-3) for h in states], dim=-3)


def _zero_state(x: Tensor, groups: Sequence[LayerWeights], options: NetworkOptions) -> Tensor:
    B, weight = batch_size(x, options.batch_sizes), groups[0].weight_hh
    return x.new_zeros(*weight.shape[:-2], len(groups), B, weight.size(-1))


def run_direction(
    x: Tensor, h0: Tensor, weights: LayerWeights, reverse: bool, options: NetworkOptions
) -> tuple[Tensor, Tensor]:
    """The states of a layer in one direction, with a leak beside them its rates, and the last state of each
    sequence."""
    z, w_hh = input_projection(x, *weights), weights.weight_hh
    walk = Walk(w_hh.dim() - 2, reverse, options.batch_sizes)
    if statically(x.size(walk.dim), 0):
        return z if options.alpha is None else torch.cat([z, z], -1), h0.clone()
    if options.alpha is not None:
        both, last = leaky_elman(z, h0, w_hh, options.alpha, options.nonlinearity, walk)
        return both, last.chunk(2, -1)[0].clone()
    states = elman(z, h0, w_hh, options.batch_sizes, options.nonlinearity, reverse, options.kernel)
    return states, walk.last(states, h0.size(-2)).clone()


def input_projection(
    x: Tensor, w_ih: Tensor, _: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> Tensor:
    r"""$x_t W_{ih}^T + b_{ih} + b_{hh}$, read in the order in which `x` lies in memory."""
    bias = bias_ih + bias_hh if bias_ih is not None and bias_hh is not None else None
    if w_ih.dim() == 3:
        return _members_projection(x, w_ih, bias)
    if x.dim() == 3 and x.stride(0) < x.stride(1):
        return F.linear(x.transpose(0, 1), w_ih, bias).transpose(0, 1)
    return F.linear(x, w_ih, bias)


def _members_projection(x: Tensor, w_ih: Tensor, bias: Tensor | None) -> Tensor:
    """Of each member of an ensemble, as one batched product of matrices."""
    rows, w_t = x.reshape(x.size(0), -1, x.size(-1)), w_ih.mT
    z = torch.bmm(rows, w_t) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, w_t)
    return z.reshape(*x.shape[:-1], z.size(-1))


def network_vjp(
    need: Sequence[bool], saved: Saved, cotangents: Sequence[Tensor | None], options: NetworkOptions
) -> list[Tensor | None]:
    """Gradients of `x`, `hx` and each weight where `need` has True, from the cotangents of the output, of
    `h_n`, and perhaps of the states of every layer, or None for each."""
    need_x, need_hx, *need_w = need
    x, hx, matrices, states = saved
    c, c_last, *c_saved = cotangents
    layers = len(matrices) // (2 * options.D)
    states, rates, c_states, c_rates = states[:layers], states[layers:], c_saved[:layers], c_saved[layers:]
    D, size = options.D, 4 if options.has_biases else 2
    dhx: list[Any] = []
    dweights: list[Tensor | None] = []
    for layer in reversed(range(len(states))):
        first = layer * D
        if not (need_x or need_hx or any(need_w[: (first + D) * size])):
            dweights[:0] = [None] * (first + D) * size
            c = None
            break
        below = need_x or (layer > 0 and (need_hx or any(need_w[: first * size])))
        c = add(c, c_states[layer]) if c_states else c
        source: Any = states[layer - 1] if layer else x
        c_source: Tensor | None = None
        for d in reversed(range(D)):
            at = first + d
            h, r, c_r = (_part(each, layer, d, D) for each in (states, rates, c_rates))
            found = _direction_vjp(
                (below, need_hx, *need_w[at * size : (at + 1) * size]),
                (source, None if hx is None else hx.select(-3, at), *matrices[2 * at : 2 * at + 2]),
                (h, r),
                (
                    _part([c], 0, d, D),
                    None if c_last is None else c_last.select(-3, at),
                    c_r,
                ),
                bool(d),
                options,
            )
            c_source = add(found[0], c_source)
            dhx.insert(0, found[1])
            dweights = found[2:] + dweights
        c = c_source
    return [c, _stacked(dhx) if need_hx else None, *dweights]


def _part(of_layers: Sequence[Tensor | None], layer: int, d: int, D: int) -> Any:
    """Of a layer what belongs to one direction, or None where there is nothing."""
    x = of_layers[layer] if of_layers else None
    return x if x is None or D == 1 else x.chunk(D, -1)[d]


def _direction_vjp(
    need: Sequence[bool],
    inputs: tuple[Any, ...],
    saved: tuple[Tensor, Tensor | None],
    cotangents: tuple[Tensor | None, Tensor | None, Tensor | None],
    reverse: bool,
    options: NetworkOptions,
) -> list[Tensor | None]:
    """Gradients of a layer's input, first state and weights in one direction, where `need` has True."""
    (x, h0, w_ih, w_hh), (h, _), (c, c_last, c_r) = inputs, saved, cotangents
    need_x, need_h0, need_ih, need_hh, *need_biases = need
    dh0: Any = None
    walk = Walk(w_hh.dim() - 2, reverse, options.batch_sizes)
    if h0 is None and need_h0:
        h0 = _zero_state(h, [LayerWeights(w_ih, w_hh)], options).squeeze(-3)
    c = torch.zeros_like(h) if c is None else c
    if statically(h.size(walk.dim), 0):
        dz = c
        if need_h0:
            dh0 = torch.zeros_like(h0) if c_last is None else c_last.clone()
    else:
        c = c if c_last is None else walk.add_to_last(c, c_last)
        dz, g = _recurrence_vjp((c, c_r), saved, w_hh, walk, options)
        if need_h0:
            dh0 = rows_matmul(walk.first(dz, h0.size(-2)), w_hh)
        if need_h0 and g is not None:
            dh0 = dh0 + (1 - options.alpha.unsqueeze(-2)) * walk.first(g, h0.size(-2))
    count = dz.size(-2) if options.batch_sizes is not None else dz.size(-3) * dz.size(-2)
    rows = dz.reshape(*w_hh.shape[:-2], count, dz.size(-1))
    dbiases = [rows.sum(-2) if needed else None for needed in need_biases]
    return [
        rows_matmul(dz, w_ih) if need_x else None,
        dh0,
        rows.mT @ x.reshape(*w_hh.shape[:-2], count, x.size(-1)) if need_ih else None,
        _recurrent_gradient(dz, h, h0, w_hh, walk) if need_hh else None,
        *dbiases,
    ]


def _recurrence_vjp(
    cotangents: tuple[Tensor, Tensor | None],
    saved: tuple[Tensor, Tensor | None],
    w_hh: Tensor,
    walk: Walk,
    options: NetworkOptions,
) -> tuple[Tensor, Tensor | None]:
    """`dz`, and with a leak the whole cotangent `g` of each state, part of which the state before gets past
    the weights."""
    (c, c_r), (h, r), phi = cotangents, saved, options.nonlinearity
    if r is None:
        how = options.batch_sizes, phi, not walk.reverse
        if options.kernel == REFERENCE:  # of operations that PyTorch differentiates
            return reference.linear_recurrence(c, h, w_hh, *how), None
        return linear_recurrence(c, h, w_hh, *how, options.kernel), None
    g, dz = leaky_elman_vjp(c, c_r, r, w_hh, options.alpha, phi, walk)
    return dz, g


def _recurrent_gradient(dz: Tensor, h: Tensor, h0: Tensor | None, w_hh: Tensor, walk: Walk) -> Tensor:
    if statically(dz.size(walk.dim), 0):
        return dz.new_zeros(w_hh.shape)
    return weight_gradient(dz, h, h0, walk)


def add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Of those that are there."""
    return b if a is None else a if b is None else a + b
