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
from .dispatch import packet_of

Step = Callable[[Tensor, Tensor, Sequence[Tensor]], Tensor]  # (state, weight, what a step reads) -> state


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


def _elman(
    z: Tensor,
    h0: Tensor,
    w: Tensor,
    batch_sizes: Tensor | None,
    phi: str,
    reverse: bool,
) -> Tensor:
    walk = Walk(w.dim() - 2, reverse, batch_sizes)
    if _length_is_fixed(z, walk):
        return reference.elman(z, h0, w, batch_sizes, phi, reverse)
    return _scan(_elman_step(phi), h0, [z], w, walk)[0]


def _elman_step(phi: str) -> Step:
    apply = PHI[phi].apply
    return lambda hidden, w, read: apply(read[0] + hidden @ w.mT)


def _linear_recurrence(
    v: Tensor,
    h: Tensor,
    a: Tensor,
    batch_sizes: Tensor | None,
    phi: str,
    reverse: bool,
) -> Tensor:
    walk, times_slope = Walk(a.dim() - 2, reverse, batch_sizes), PHI[phi].times_slope
    if _length_is_fixed(v, walk):
        return reference.linear_recurrence(v, h, a, batch_sizes, phi, reverse)
    step: Step = lambda y, a, read: times_slope(read[0] + y @ a, read[1])  # noqa: E731
    return _scan(step, walk.zero_start(v), [v, h], a, walk)[0]


def _network(
    x: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    phi: str,
    bidirectional: bool,
    has_biases: bool,
    save_states: bool,
    alpha: Tensor | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    options = NetworkOptions(batch_sizes, phi, bidirectional, has_biases, DEFAULT, alpha)
    output, h_n, states = composed.network(x, hx, weights, options, _direction)
    return output, h_n, states if save_states else []


def _direction(
    x: Tensor, h0: Tensor, weights: LayerWeights, reverse: bool, options: NetworkOptions
) -> tuple[Tensor, Tensor]:
    walk = Walk(0, reverse, options.batch_sizes)
    if options.alpha is not None:
        return _leaky_direction(x, h0, weights, walk, options)
    if _length_is_fixed(x, walk):
        return reference.layer(x, h0, weights, reverse, options)
    z = composed.input_projection(x, *weights)
    return _scan(_elman_step(options.nonlinearity), h0, [z], weights.weight_hh, walk)


def _leaky_direction(
    x: Tensor, h0: Tensor, weights: LayerWeights, walk: Walk, options: NetworkOptions
) -> tuple[Tensor, Tensor]:
    """States and rates side by side, as `composed.run_direction` gives them."""
    if _length_is_fixed(x, walk):
        return composed.run_direction(x, h0, weights, walk.reverse, options)
    apply, z = PHI[options.nonlinearity].apply, composed.input_projection(x, *weights)

    def step(both: Tensor, w: Tensor, read: Sequence[Tensor]) -> Tensor:
        z_t, alpha = read
        h, _ = both.chunk(2, -1)
        r = apply(z_t + h @ w.mT)
        return torch.cat([torch.lerp(h, r, alpha), r], -1)

    start, given = torch.cat([h0, torch.zeros_like(h0)], -1), [z, options.alpha.expand(z.shape)]
    both, last = _scan(step, start, given, weights.weight_hh, walk)
    return both, last.chunk(2, -1)[0].clone()


DECOMPOSED: dict[str, Callable[..., Any]] = {
    "elman": _elman,
    "linear_recurrence": _linear_recurrence,
    "network": _network,
}


def _length_is_fixed(x: Tensor, walk: Walk) -> bool:
    return walk.batch_sizes is None and isinstance(x.size(walk.dim), int)


def _scan(step: Step, start: Tensor, given: list[Tensor], w: Tensor, walk: Walk) -> tuple[Tensor, Tensor]:
    """The states, shaped as what each step is given, and the last of each sequence."""
    if walk.batch_sizes is not None:
        return _scan_packed(step, start, given, w, walk, walk.batch_sizes.to(start.device))
    if scan_op is None:
        raise RuntimeError(
            "decompositions: expected a padded input of a fixed number of steps, got a packed one or an open "
            f"number, which takes the scan of torch 2.13 or newer, not {torch.__version__}"
        )

    def combine(hidden: Tensor, *read: Any) -> list[Tensor]:
        new = step(hidden, read[len(given)], read[: len(given)])
        return [new, new.clone()]  # no two results may be one tensor

    def in_time(x: Tensor) -> Tensor:
        return x.flip(0) if walk.reverse else x

    open_sizes = [size for size in start.shape if isinstance(size, torch.SymInt)]  # inductor has to be told
    xs = [in_time(x.movedim(walk.dim, 0)) for x in given]
    last, states = scan_op(combine, [start], xs, (w, *open_sizes))
    return in_time(states).movedim(0, walk.dim), last


def _scan_packed(
    step: Step, start: Tensor, given: list[Tensor], w: Tensor, walk: Walk, batch_sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """`_scan` of packed rows, spread to all steps of all sequences."""
    dim, B = walk.dim, start.size(-2)
    sequence = torch.arange(B, device=start.device)
    alive = sequence < batch_sizes.unsqueeze(1)  # (T, B)
    first_row = (batch_sizes.cumsum(0) - batch_sizes).unsqueeze(1)
    rows = torch.where(alive, first_row + sequence, 0).flatten()
    padded = [x.index_select(dim, rows).unflatten(dim, alive.shape) for x in given]
    mask = alive.unsqueeze(-1).expand(padded[0][..., :1].shape)

    def carried(hidden: Tensor, w: Tensor, read: Sequence[Tensor]) -> Tensor:
        return torch.where(read[-1], step(hidden, w, read[:-1]), hidden)

    states, last = _scan(carried, start, [*padded, mask], w, walk._replace(batch_sizes=None))
    step_of, sequence_of = time_of_rows(batch_sizes, given[0].size(dim))
    return states.flatten(dim, dim + 1).index_select(dim, step_of * B + sequence_of), last
