r"""The whole network as one operation with a derivative: one autograd node for all layers and directions.

    output, h_n  <-  x, hx, weights      `network`

The node saves the states of every layer, which are outputs of it too: a second derivative reaches it as their
cotangents. Its backward calls the operation of `network_vjp.py`. A leak is one of the options, without a
gradient; among the states then are the rates of every layer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..kernels import native
from ..kernels.interface import NetworkOptions, Saved
from ..torch_internals import (
    Function,
    compiles_graph,
    functorch_active,
    has_many_tangents,
    no_tracing,
    profiling,
)
from . import composed, dispatch
from .network_vjp import network_vjp
from .operator_checks import check_network
from .profiler import record_network
from .saved_tensors import (
    alias,
    as_nn_rnn,
    copy,
    expanded_zeros,
    graph_copies,
    read_by_backward,
    saved_by,
)

Results = tuple[Tensor, Tensor, list[Tensor]]


def network(
    x: Tensor, hx: Tensor | None, weights: Sequence[Tensor], options: NetworkOptions
) -> tuple[Tensor, Tensor]:
    r"""`x (T, B, I)` or packed `(N, I)`, `hx (L * D, B, H)` or None for zeros, weights layer after layer and
    direction after direction; returns `output (T, B, D * H)` and `h_n`."""
    if not torch.compiler.is_compiling() and profiling() and native.runs(options.kernel, x):
        record_network(x, weights)
    if not dispatch.can_bypass_dispatcher(x, hx, options.alpha, *weights):
        run = dispatch.op("network", options.kernel, options.alpha)
        return run(x, hx, list(weights), *options[:4], False)[:2]
    with dispatch.named("network"):
        if not dispatch.requires_grad(x, hx, *weights):
            return compute(x, hx, weights, *options[:4], False, *options[4:])[:2]
        run = partial(compute, kernel=options.kernel, alpha=options.alpha)
        output, h_n, *_ = Network.apply(run, options, *aliases(x, hx, weights))
    return as_separate_output(output), as_separate_output(h_n)


def aliases(x: Tensor, hx: Tensor | None, weights: Sequence[Tensor]) -> list[Any]:
    """What the node saves, as tensors of its own; no derivative reads a bias."""
    biases = weights[0].dim() - 1
    return [as_nn_rnn(alias(x)), copy(hx), *(w if w.dim() == biases else alias(w) for w in weights)]


def as_separate_output(x: Tensor) -> Tensor:
    """`x` as the result of a node of its own: a hook on one of two results of a node is called, with None,
    where only the other has a gradient, and those on results of `nn.RNN` aren't."""
    return x.transpose_(0, 0)


def as_batch_first(output: Tensor) -> Tensor:
    """`(B, T, ...)`, which like that of `nn.RNN` isn't a view, so that `detach_` works on it; where axes
    don't move in place, in a trace, under a transform and with many tangents, it is one."""
    traced = torch.compiler.is_compiling() or not no_tracing()
    if traced or functorch_active() or has_many_tangents(output):
        return output.transpose(0, 1)
    return output.transpose_(0, 1)


def compute(
    x: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    nonlinearity: str,
    bidirectional: bool,
    has_biases: bool,
    save_states: bool,
    kernel: str = kernels.DEFAULT,
    alpha: Tensor | None = None,
) -> Results:
    """By a kernel, below autograd: `output`, `h_n` and, with `save_states`, the states of every layer."""
    options = NetworkOptions(batch_sizes, nonlinearity, bidirectional, has_biases, kernel, alpha)
    check_network(x, hx, weights, options)
    tensors, leaky = (x, hx, *weights, alpha), alpha is not None
    able = kernels.choose(kernel, *tensors, batch_sizes=batch_sizes, phi=nonlinearity, leaky=leaky)
    if hasattr(able, "network"):
        return able.network(x, hx, weights, options, save_states)
    run = kernels.layer_of(kernel, nonlinearity, x, weights[0], leaky)
    output, h_n, states = composed.network(x, hx, weights, options, run)
    return (output.clone() if save_states else output), h_n, states if save_states else []


class Network(Function):
    """The autograd node of a network."""

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[..., Results],
        options: NetworkOptions,
        x: Tensor,
        hx: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        needed = _needed(ctx.needs_input_grad[2:], x, hx, weights, options)
        if compiles_graph():
            needed[:2] = graph_copies(*needed[:2])
            x, hx = x if needed[0] is None else needed[0], hx if needed[1] is None else needed[1]
        output, h_n, states = run(x, hx, list(weights), *options[:4], True)
        ctx.options, ctx.states = options._replace(alpha=None), len(states)
        ctx.set_materialize_grads(False)
        ctx.shapes = [w.shape for w in weights if w.dim() > h_n.dim() - 2]
        ctx.input_shape, ctx.hx_shape = x.shape, hx if hx is None else hx.shape
        ctx.saved = [t is not None for t in needed]
        leak = () if options.alpha is None else (options.alpha,)
        ctx.save_for_backward(*states, *(t for t in needed if t is not None), *leak)
        return output, h_n, *states

    @staticmethod
    def backward(
        ctx: Any, c: Tensor | None, c_last: Tensor | None, *c_states: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        kept, count = saved_by(ctx), ctx.states
        states, kept = kept[:count], iter(kept[count:])
        x, hx, *saved_matrices = (next(kept) if there else None for there in ctx.saved)
        options = ctx.options._replace(alpha=next(kept, None))
        # in place of a tensor that no gradient reads, and that isn't kept alive
        x = expanded_zeros(states[0], ctx.input_shape) if x is None else x
        need = ctx.needs_input_grad[2:]
        if hx is None and need[1]:  # whose gradient has its shape
            hx = expanded_zeros(states[0], ctx.hx_shape)
        pairs = zip(saved_matrices, ctx.shapes, strict=True)
        matrices = [expanded_zeros(states[0], shape) if m is None else m for m, shape in pairs]
        grads = network_vjp(need, Saved(x, hx, matrices, states), (c, c_last, *c_states), options)
        return None, None, *grads


def _needed(
    need: Sequence[bool], x: Tensor, hx: Tensor | None, weights: Sequence[Tensor], options: NetworkOptions
) -> list[Tensor | None]:
    """`x`, `hx` and the matrices, or None for each that backward doesn't read for the gradients wanted."""
    size, sizes = 4 if options.has_biases else 2, options.batch_sizes
    steps = x.size(-3) if sizes is None else sizes.size(0)
    read = read_by_backward(tuple(need), dispatch.statically(steps, 1), options.D * size, size)
    needed = [t if is_read else None for t, is_read in zip((x, hx, *weights), read, strict=True)]
    return [*needed[:2], *(w for at, w in enumerate(needed[2:]) if at % size < 2)]
