r"""A run that keeps what it computes: every state and pre-activation, as tensors in the graph.

    a_t = x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh        the pre-activation
    h_t = phi(a_t)                                         the state

`manual_rnn.inspect` offers it, with functions of what it gives. Letters: `T` steps, `B` batch, `H` hidden
size, `L` layers, `D` directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import validation
from .kernels import reference
from .kernels.interface import LayerWeights
from .kernels.nonlinearities import PHI
from .kernels.time_order import Walk
from .module import ManualRNN
from .ops import Options, input_projection, run_directions
from .override import overrides_step
from .parameters import RUNNER


@dataclass(frozen=True)
class Pass:
    """One layer in one direction of time.

    The tuples have one tensor for each step, `(B, H)`, in the order of the input; of packed or nested
    input the sequences that have this step, the longest first.

    Attributes:
        name: "layer 0", or with two directions "layer 0 forward" and "layer 0 backward".
        reverse: whether time runs from the last step to the first.
        weight_hh: `(H, H)`.
        start: the states before the first step, `(B, H)`.
        preactivations: $a_t$. Of an overridden `step` the same sum, as a plain network would have it at
            this state; it then lies beside the path from the states to the output, not on it.
        states: $h_t$.
        own_step: whether a `step` or `begin` of your own made them, which may use `weight_hh` otherwise.
    """

    name: str
    reverse: bool
    weight_hh: Tensor
    start: Tensor
    preactivations: tuple[Tensor, ...]
    states: tuple[Tensor, ...]
    own_step: bool = False

    def __repr__(self) -> str:
        return f"Pass({self.name!r}, {len(self.states)} steps, start={tuple(self.start.shape)})"

    def walk(self, sequence: int = 0) -> list[Tensor]:
        """The states of every step that a sequence has, in the order in which they came about.

        Raises:
            ValueError: for a sequence that isn't in the batch.
        """
        validation.check_kind("sequence", sequence, int)
        if not 0 <= sequence < len(self.start):
            raise ValueError(f"sequence: expected 0 to {len(self.start) - 1}, got {sequence}")
        alive = [h for h in self.states if len(h) > sequence]
        return alive[::-1] if self.reverse else alive


@dataclass(frozen=True)
class Trace:
    """`output` and `h_n` as the module returns them, and the `L * D` passes in the order of `h_n`."""

    output: Any
    h_n: Tensor
    passes: tuple[Pass, ...]

    def __repr__(self) -> str:
        data = self.output.data if isinstance(self.output, PackedSequence) else self.output
        kind, passes = type(self.output).__name__, ", ".join(run.name for run in self.passes)
        return f"Trace(output={kind} {tuple(data.shape)}, h_n={tuple(self.h_n.shape)}, passes: {passes})"


def trace(rnn: ManualRNN, input: Tensor | PackedSequence, hx: Tensor | None = None) -> Trace:
    r"""Run `rnn` step by step and keep what it computes on the way.

    The values are those of the reference kernel to the last bit, whichever kernel was asked for. Every
    tensor is part of the graph, even where all weights are frozen, so that `torch.autograd.grad(loss,
    trace.passes[0].states)` gives the gradient of `loss` with respect to every $h_t$.

    Args:
        input, hx: as `rnn` takes them, in any layout.

    Raises:
        TypeError: for another module; of a model around a `ManualRNN` the error names the attribute, and of
            an `nn.RNN` `ManualRNN.from_builtin` makes one.

    Example:
        >>> rnn, input = ManualRNN(3, 4), torch.randn(5, 2, 3)
        >>> seen = trace(rnn, input)
        >>> seen
        Trace(output=Tensor (5, 2, 4), h_n=(1, 2, 4), passes: layer 0)
        >>> torch.allclose(torch.stack(seen.passes[0].states), rnn(input)[0], atol=1e-6)
        True
    """
    validation.check_rnn(rnn, ManualRNN)
    validation.check_kind("input", input, Tensor, PackedSequence)
    passes: list[Pass] = []
    watched = rnn.__new__(type(rnn))  # the same parameters, modules and hooks
    vars(watched).update(vars(rnn) | {RUNNER: partial(_record_layers, passes)})
    output, h_n = watched(input, hx)
    if overrides_step(rnn):
        passes = [replace(run, own_step=True) for run in passes]
    _mark(passes)
    return Trace(output, h_n, tuple(passes))


def _record_layers(
    passes: list[Pass], x: Tensor, hx: Tensor, weights: Sequence[LayerWeights], options: Options
) -> tuple[Tensor, Tensor]:
    """`ops.run_rnn` by the reference, which adds to `passes` what it computes."""
    return run_directions(partial(_record_direction, passes, options), x, hx, weights, options)


def _record_direction(
    passes: list[Pass], options: Options, input: Tensor, h0: Tensor, weights: LayerWeights, walk: Walk
) -> tuple[Tensor, Tensor]:
    """One direction of a layer by the reference: its states, and the last of them."""
    layer, phi = len(passes) // (1 + options.bidirectional), options.nonlinearity
    direction = " backward" if walk.reverse else " forward"
    name = f"layer {layer}" + direction * options.bidirectional
    w_ih, w_hh, bias_ih, bias_hh = weights
    start = h0 if h0.requires_grad else h0.detach().requires_grad_()
    own_step: Any = None if isinstance(phi, str) else phi(h0, w_hh)
    if own_step is None:
        gates = F.linear(input, w_ih, bias_ih)
    else:
        gates = input_projection(input, w_ih, w_hh, bias_ih, bias_hh)
        bias_hh = None  # which is in the gates already
    preactivations: list[Tensor] = []
    states: list[Tensor] = []

    def step(gates: Tensor, hidden: Tensor) -> Tensor:
        a = gates + F.linear(hidden, w_hh, bias_hh)
        preactivations.append(a)
        states.append(PHI[phi].apply(a) if isinstance(phi, str) else own_step(gates, hidden, w_hh))
        return states[-1]

    output, last = reference.scan(step, gates, start, walk) if input.size(0) else (gates, start)
    before, after = tuple(walk.in_time(preactivations)), tuple(walk.in_time(states))
    passes.append(Pass(name, walk.reverse, w_hh, start, before, after))
    return output, last


RUN = "manual_rnn.run"  # where a node of the graph keeps which trace it comes from


def _mark(passes: Sequence[Pass]) -> None:
    """Tell the states of this run apart from those of any other, in the graph itself."""
    run = object()
    for each in passes:
        for x in (*each.preactivations, *each.states):
            if x.grad_fn is not None:
                _metadata(x.grad_fn)[RUN] = run


def trace_of(x: Tensor) -> object:
    """Which trace `x` is a state or pre-activation of, or None."""
    return None if x.grad_fn is None else _metadata(x.grad_fn).get(RUN)


def traces_in_graph(loss: Tensor) -> set[object]:
    """Every trace of which a state or pre-activation is in the graph of `loss`."""
    seen, ahead = set(), [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead += [before for before, _ in node.next_functions]
    return {_metadata(node)[RUN] for node in seen if RUN in _metadata(node)}


def _metadata(node: Any) -> dict[str, object]:
    return node.metadata  # which torch's types take for a method
