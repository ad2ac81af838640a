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
from ..kernels.nonlinearities import PHI_OF_MODE
from ..torch_internals import is_legacy_batched
from . import dispatch, sight
from .by_layers import Options, by_layers, in_sight
from .keeping import as_views, keep, kept

__all__ = ["run_module", "run_whole"]


def run_whole(
    x: Tensor,
    hx: Tensor | None,
    weights: tuple[Tensor, ...],
    batch_sizes: Tensor | None,
    phi: str,
    bidirectional: bool,
    bias: bool,
    hidden_size: int,
    input_size: int = 0,
    seen: bool = False,
) -> tuple[Tensor, Tensor] | None:
    r"""`x (T, B, I)` or packed `(N, I)`; returns `output` alike and `h_n`.

    None where C finds a tensor that isn't exactly as it should be. Where it's to be `seen` by a mode, or by a
    profiler, layers run one by one.
    """
    options = batch_sizes, phi, bidirectional, bias, hidden_size, input_size
    if seen:
        found = in_sight(x, hx, weights, *options)
    else:
        found = native.network(x, hx, weights, *options, torch.is_grad_enabled())
    if found is NotImplemented:
        return None
    return found[:2] if found[2] is None else _recorded(options, found, x, hx, weights)


def run_module(
    attributes: dict[str, Any], x: Tensor, hx: Tensor | None, batch_sizes: Tensor | None = None
) -> tuple[Tensor, Tensor] | None:
    """The same of a module with these attributes, `vars(module)`, which C reads, and with `batch_first` of
    `x (B, T, I)`; None where one isn't as the constructor leaves it, too."""
    if kernels.vendor_may_pay(getattr(x, "dtype", None), attributes.get("hidden_size")):
        return None
    found = native.call(attributes, batch_sizes, x, hx, torch.is_grad_enabled())
    if found is NotImplemented:
        return None
    results, weights = found
    first = 1 if attributes["batch_first"] and batch_sizes is None else 0
    if results[2] is None:
        output, h_n, _ = results
        return (output.transpose_(0, 1) if first else output), h_n
    options = (
        batch_sizes,
        PHI_OF_MODE[attributes["mode"]],
        attributes["bidirectional"],
        attributes["bias"],
        attributes["hidden_size"],
        attributes["input_size"],
    )
    return _recorded(options, results, x.transpose(0, 1) if first else x, hx, weights, first)


def _recorded(
    options: tuple,
    found: tuple[Any, ...],
    x: Tensor,
    hx: Tensor | None,
    weights: tuple[Tensor, ...],
    first: int = 0,
) -> tuple[Tensor, Tensor]:
    """C's `output`, its steps at dimension `first`, and `h_n`, of an autograd node.

    The node is time-major, whatever its user is: it keeps the same tensors on every way to it, as
    `torch.utils.checkpoint` expects where a mode sees the one run and not the other.
    """
    output, h_n, *_ = Whole.apply(options, found, *as_views(x, hx, *weights))
    return dispatch.unhooked(output, first), dispatch.unhooked(h_n)


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
        return output, h_n, *states

    @staticmethod
    def backward(
        ctx: Any, c: Tensor | None, c_last: Tensor | None, *c_kept: Tensor | None
    ) -> tuple[Any, ...]:
        saved, L = kept(ctx), ctx.layers
        states, x, hx, weights = saved[:L], saved[L], saved[L + 1], saved[L + 2 :]
        need = ctx.needs_input_grad[2:]
        if c_kept.count(None) == L and not (torch.is_grad_enabled() or _by_operations(c, c_last)):
            found = native.network_vjp(need, x, hx, tuple(weights), tuple(states), c, c_last, *ctx.options)
            if found is not NotImplemented:
                return None, None, *found
        kernels.check_memory(saved)
        return None, None, *by_layers(Options(*ctx.options), need, states, x, hx, weights, c, c_last, c_kept)


def _by_operations(c: Tensor | None, c_last: Tensor | None) -> bool:
    """Whether a mode, a profiler, a trace or the vmap of `is_grads_batched` has to see operations."""
    if torch.compiler.is_compiling() or sight.looked_at():
        return True
    return (c is not None and is_legacy_batched(c)) or (c_last is not None and is_legacy_batched(c_last))


def _needed(ctx: Any, x: Tensor, hx: Tensor | None, weights: tuple[Tensor, ...]) -> list[Tensor | None]:
    """The inputs that backward needs for the gradients that are wanted."""
    batch_sizes, _, bidirectional, bias, *_ = ctx.options
    need_x, need_hx, *need = ctx.needs_input_grad[2:]
    size = 4 if bias else 2
    layer = 2 * size if bidirectional else size
    carried = need_hx or len(x if batch_sizes is None else batch_sizes) > 1
    needed: list[Tensor | None] = [None] * len(weights)
    for at in range(0, len(weights), size):
        before = at - at % layer  # weights of the layers before
        if need_x or (before and (need_hx or any(need[:before]))):  # something reads dx of this layer
            needed[at] = weights[at]
        if carried:
            needed[at + 1] = weights[at + 1]
    need_ih, need_hh = any(need[:layer:size]), any(need[1::size])
    return [x if need_ih else None, hx if need_hh else None, *needed]
