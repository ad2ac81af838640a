r"""The operators of this package in operations that every torch has, for a program that runs without it.

    padded, of a fixed length            the equation, step after step
    padded of an open length, packed     one `scan`, torch's loop over a length that stays open

Packed rows are spread to `(T, B)` for it. A sequence that has ended keeps its state, and one that hasn't
begun yet, read backward in time, the state it is to begin with: so both end in the last of each sequence.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..kernels import DEFAULT, reference
from ..kernels.interface import LayerWeights, NetworkOptions
from ..kernels.native import SCHEMAS
from ..kernels.nonlinearities import PHI
from ..kernels.time_order import Walk, time_of_rows
from ..torch_internals import scan_op
from . import composed
from .dispatch import packet_of, statically
from .leaky_recurrence import leaky_step

# (state, what is the same at each step, what this one reads) -> state
Step = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], Tensor]


def decompositions() -> dict[Any, Callable[..., Any]]:
    r"""What `torch.export.ExportedProgram.run_decompositions` needs to do without our operators.

    They become ATen operations: the steps one after the other where the program has a fixed number of them,
    and a `torch.ops.higher_order.scan` where that number is open or the input packed. All else in the program
    stays as it is; for core ATen throughout, merge this into `torch.export.default_decompositions()`.

    Returns:
        A function for each operator.

    Example:
        >>> from manual_rnn import ManualRNN
        >>> program = torch.export.export(ManualRNN(3, 4), (torch.randn(5, 2, 3),))
        >>> "manual_rnn" in str(program.graph)
        True
        >>> "manual_rnn" in str(program.run_decompositions(decompositions()).graph)
        False
    """
    found: dict[Any, Callable[..., Any]] = {}
    for name, decomposed in DECOMPOSED.items():
        packet, count = packet_of(name), len(SCHEMAS[name].arguments.split(", "))
        found |= {packet.default: decomposed, packet.compiled: decomposed}
        found[packet.kernel] = partial(_without_kernel, decomposed, count)
    return found


def _without_kernel(decomposed: Callable[..., Any], count: int, *args: Any) -> Any:
    """Of an overload whose argument behind the first `count` names a kernel."""
    return decomposed(*args[:count], *args[count + 1 :])


def _elman(z: Tensor, h0: Tensor, w: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool) -> Tensor:
    return _loop(_elman_step(phi), h0, [z], [w], Walk(w.dim() - 2, reverse, batch_sizes))[0]


def _elman_step(phi: str) -> Step:
    return lambda h, constants, read: PHI[phi].apply(read[0] + h @ constants[0].mT)


def _linear_recurrence(
    v: Tensor, h: Tensor, a: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool
) -> Tensor:
    walk = Walk(a.dim() - 2, reverse, batch_sizes)
    step: Step = lambda y, constants, read: PHI[phi].times_slope(read[0] + y @ constants[0], read[1])  # noqa: E731
    return _loop(step, walk.zero_start(v), [v, h], [a], walk)[0]


def _network(
    x: Tensor, hx: Tensor | None, weights: Sequence[Tensor], *options: Any
) -> tuple[Tensor, Tensor, list[Tensor]]:
    batch_sizes, phi, bidirectional, has_biases, save_states, *alpha = options
    how = NetworkOptions(batch_sizes, phi, bidirectional, has_biases, DEFAULT, *alpha)
    output, h_n, states = composed.network(x, hx, weights, how, _direction)
    return output, h_n, states if save_states else []


def _direction(
    x: Tensor, h0: Tensor, weights: LayerWeights, reverse: bool, options: NetworkOptions
) -> tuple[Tensor, Tensor]:
    """A layer in one direction, with a leak states and rates side by side, as `composed.run_direction` gives
    them."""
    w_hh, alpha = weights.weight_hh, options.alpha
    walk = Walk(w_hh.dim() - 2, reverse, options.batch_sizes)
    if statically(x.size(walk.dim), 0):
        return composed.run_direction(x, h0, weights, reverse, options)
    z = composed.input_projection(x, *weights)
    if alpha is None:
        return _loop(_elman_step(options.nonlinearity), h0, [z], [w_hh], walk)
    step: Step = lambda both, constants, read: leaky_step(options.nonlinearity, read[0], both, *constants)  # noqa: E731
    start = torch.cat([h0, torch.zeros_like(h0)], -1)
    both, last = _loop(step, start, [z], [w_hh, alpha.unsqueeze(-2)], walk)
    return both, last.chunk(2, -1)[0].clone()


DECOMPOSED: dict[str, Callable[..., Any]] = {
    "elman": _elman,
    "linear_recurrence": _linear_recurrence,
    "network": _network,
}


def _loop(
    step: Step, start: Tensor, read: list[Tensor], constants: list[Tensor], walk: Walk
) -> tuple[Tensor, Tensor]:
    """The states, shaped as what the steps read, and the last of each sequence."""
    if walk.batch_sizes is not None:
        return _scan_packed(step, start, read, constants, walk, walk.batch_sizes.to(start.device))
    if isinstance(read[0].size(walk.dim), int):
        parts = zip(*map(walk.steps, read), strict=True)
        return reference.scan(lambda _, state: step(state, constants, next(parts)), read[0], start, walk)
    return _scan(step, start, read, constants, walk)


def _scan(
    step: Step, start: Tensor, read: list[Tensor], constants: list[Tensor], walk: Walk
) -> tuple[Tensor, Tensor]:
    if scan_op is None:
        raise RuntimeError(
            "decompositions: expected a padded input of a fixed number of steps, got a packed one or an open "
            f"number, which takes the scan of torch 2.13 or newer, not {torch.__version__}"
        )

    count = len(read)

    def combine(state: Tensor, *tensors: Any) -> list[Tensor]:
        new = step(state, tensors[count : count + len(constants)], tensors[:count])
        return [new, new.clone()]  # no two results may be one tensor

    def in_time(x: Tensor) -> Tensor:
        return x.flip(0) if walk.reverse else x

    open_sizes = [size for size in start.shape if isinstance(size, torch.SymInt)]  # inductor has to be told
    xs = [in_time(x.movedim(walk.dim, 0)) for x in read]
    last, states = scan_op(combine, [start], xs, (*constants, *open_sizes))
    return in_time(states).movedim(0, walk.dim), last


def _scan_packed(
    step: Step, start: Tensor, read: list[Tensor], constants: list[Tensor], walk: Walk, batch_sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """`_scan` of packed rows, spread to all steps of all sequences."""
    dim, B = walk.dim, start.size(-2)
    sequence = torch.arange(B, device=start.device)
    alive = sequence < batch_sizes.unsqueeze(1)  # (T, B)
    first_row = (batch_sizes.cumsum(0) - batch_sizes).unsqueeze(1)
    rows = torch.where(alive, first_row + sequence, 0).flatten()
    padded = [x.index_select(dim, rows).unflatten(dim, alive.shape) for x in read]
    mask = alive.unsqueeze(-1).expand(padded[0][..., :1].shape)

    def carried(state: Tensor, constants: Sequence[Tensor], read: Sequence[Tensor]) -> Tensor:
        return torch.where(read[-1], step(state, constants, read[:-1]), state)

    states, last = _scan(carried, start, [*padded, mask], constants, walk._replace(batch_sizes=None))
    step_of, sequence_of = time_of_rows(batch_sizes, read[0].size(dim))
    return states.flatten(dim, dim + 1).index_select(dim, step_of * B + sequence_of), last
