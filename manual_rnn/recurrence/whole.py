r"""A whole network in one call to C, and its gradients in another.

    forward     h_n, output  <-  x, hx, weights                    kernels/native.py: network
    backward    dx, dhx, dweights  <-  c, c_last, all states       network_vjp

One node of autograd stands for all layers. Beside its two results it returns the states of every layer, which
it keeps: where backward is itself to be differentiated, the rule of a layer makes the same gradients of them,
layer after layer, and derivatives of those reach the node as cotangents of these states.
"""

from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..kernels import native
from . import dispatch
from .keeping import as_view, keep, kept
from .layer_rule import gradients

__all__ = ["run_whole"]


def run_whole(
    x: Tensor,
    hx: Tensor | None,
    weights: tuple[Tensor, ...],
    batch_sizes: Tensor | None,
    phi: str,
    batch_first: bool,
    bidirectional: bool,
    bias: bool,
    hidden_size: int,
    input_size: int = 0,
) -> tuple[Tensor, Tensor] | None:
    r"""`x (T, B, I)`, with `batch_first` `(B, T, I)`, or packed `(N, I)`; returns `output` alike and `h_n`.

    None where C finds a tensor that isn't exactly as it should be.
    """
    options = batch_sizes, phi, batch_first, bidirectional, bias, hidden_size, input_size
    found = native.network(x, hx, weights, *options, torch.is_grad_enabled())
    if found is NotImplemented:
        return None
    output, h_n, states = found
    if states is None:
        return (output.transpose_(0, 1) if batch_first and batch_sizes is None else output), h_n
    if x.grad_fn is not None or (hx is not None and hx.grad_fn is not None):
        x, hx = as_view(x), None if hx is None else as_view(hx)
    output, h_n, *_ = Whole.apply(options, found, x, hx, *weights)
    return dispatch.unhooked(output), dispatch.unhooked(h_n)


class Whole(dispatch.Function):
    """The network of `found`, C's results."""

    @staticmethod
    def forward(
        ctx: Any, options: tuple, found: tuple[Any, ...], x: Tensor, hx: Tensor | None, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        output, h_n, hidden = found
        states = *hidden, dispatch.copy_on_write(output)
        ctx.options, ctx.layers = options, len(states)
        ctx.set_materialize_grads(False)
        keep(ctx, states, _needed(ctx, x, hx, weights))
        if options[2] and options[0] is None:
            output.transpose_(0, 1)
        return output, h_n, *states

    @staticmethod
    def backward(ctx: Any, c: Tensor | None, c_last: Tensor | None, *c_kept: Tensor | None) -> tuple[Any, ...]:
        saved, L = kept(ctx), ctx.layers
        states, x, hx, weights = saved[:L], saved[L], saved[L + 1], saved[L + 2 :]
        need = ctx.needs_input_grad[2:]
        if not torch.is_grad_enabled() and c_kept.count(None) == L:
            found = native.network_vjp(need, x, hx, tuple(weights), tuple(states), c, c_last, *ctx.options)
            if found is not NotImplemented:
                dx = found[0]
                if dx is not None and ctx.options[2] and ctx.options[0] is None:
                    dx.transpose_(0, 1)
                return None, None, *found
        kernels.check_memory(saved)
        return None, None, *_by_layers(ctx.options, need, states, x, hx, weights, c, c_last, c_kept)


def _needed(ctx: Any, x: Tensor, hx: Tensor | None, weights: tuple[Tensor, ...]) -> list[Tensor | None]:
    """The inputs that backward needs for the gradients that are wanted."""
    batch_sizes, _, batch_first, bidirectional, bias, *_ = ctx.options
    need_x, need_hx, *need = ctx.needs_input_grad[2:]
    size, D = 4 if bias else 2, 1 + bidirectional
    steps = len(batch_sizes) if batch_sizes is not None else x.size(1 if batch_first else 0)
    keep_hh, below = steps > 1 or need_hx, need_x  # whether some gradient asks for that of what a layer reads
    needed: list[Tensor | None] = [None] * len(weights)
    for at in range(0, len(weights), size):
        if at == size * D:
            below = below or need_hx
        if at >= size * D and at % (size * D) == 0:
            below = below or any(need[:at])
        needed[at] = weights[at] if below else None
        needed[at + 1] = weights[at + 1] if keep_hh else None
    need_ih = any(need[: size * D : size])
    return [x if need_ih else None, hx if any(need[1::size]) else None, *needed]


def _by_layers(
    options: tuple,
    need: tuple[bool, ...],
    states: list[Tensor],
    x: Tensor | None,
    hx: Tensor | None,
    weights: list[Tensor | None],
    c: Tensor | None,
    c_last: Tensor | None,
    c_kept: tuple[Tensor | None, ...],
) -> list[Tensor | None]:
    """The same gradients of PyTorch's operations and ours, which have derivatives of their own."""
    batch_sizes, phi, batch_first, bidirectional, bias, H, _ = options
    size, D, L = 4 if bias else 2, 1 + bidirectional, len(states)
    swap = batch_first and batch_sizes is None
    x, c = (t.transpose(0, 1) if swap and t is not None else t for t in (x, c))
    B = states[0].size(1) if batch_sizes is None else int(batch_sizes[0])
    found: list[Tensor | None] = []
    dhx: list[Tensor | None] = []
    for layer in reversed(range(L)):
        if c_kept[layer] is not None:
            c = c_kept[layer] if c is None else c + c_kept[layer]
        below, group = None, []
        wants_below = need[0] if layer == 0 else any(need[:2]) or any(need[2 : 2 + layer * D * size])
        for d in range(D):
            at, index = (layer * D + d) * size, layer * D + d
            needs = wants_below, need[1], *need[2 + at : 4 + at], *(need[4 + at : 6 + at] if bias else (False,) * 2)
            h = states[layer].narrow(-1, d * H, H)
            dx, dh0, *dw = gradients(
                None if c is None else c.narrow(-1, d * H, H),
                None if c_last is None else c_last[index],
                h,
                states[layer - 1] if layer else x,
                h.new_zeros(B, H) if hx is None else hx[index],
                weights[at],
                weights[at + 1],
                needs,
                B,
                batch_sizes,
                phi,
                bool(d),
                kernels.DEFAULT,
            )
            below = dx if below is None else below + dx if dx is not None else below
            group += dw[:size]
            dhx.append(dh0)
        found, c = group + found, below
    ordered = [dhx[(L - 1 - layer) * D + d] for layer in range(L) for d in range(D)]
    dhx_all = torch.stack([t for t in ordered if t is not None]) if need[1] else None
    dx = c.transpose(0, 1) if swap and c is not None else c
    return [dx, dhx_all, *found]
