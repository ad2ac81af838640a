r"""The four layouts of a sequence batch, brought to one and back.

    unbatched   input (T, I)                    hx (L * D, H)
    padded      input (T, B, I) or (B, T, I)    hx (L * D, B, H)
    packed      input PackedSequence            hx (L * D, B, H), in the order before sorting
    nested      input jagged (B, j, I)          hx (L * D, B, H)

Each becomes a plan: a 3-D or packed `data`, the states to begin with, and how to bring results back.
Letters: `T` steps, `B` batch, `I` input size, `H` hidden size, `L` layers, `D` directions, `N` packed rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .checks import check_ranks
from .rows import time_major_rows

__all__ = ["SequencePlan", "plan"]


def _same(x: Tensor) -> Tensor:
    return x


class SequencePlan(NamedTuple):
    """Rows to run over and the way back.

    Attributes:
        data: `(T, B, I)` or `(B, T, I)`, or `(N, I)` with `batch_sizes`.
        hx: the states to begin with, `(L * D, B, H)` in the order of the rows, or None.
        batch_sizes: how many rows each step has, `(T,)`; None for a padded batch.
        restore: from the output rows, `(N, D * H)` or padded as `data`, to the layout that came in.
        restore_state: from `h_n (L * D, B, H)` in the order of the rows to the order that came in.
    """

    data: Tensor
    hx: Tensor | None
    batch_sizes: Tensor | None = None
    restore: Callable[[Tensor], Any] = _same
    restore_state: Callable[[Tensor], Tensor] = _same


def plan(input: Tensor | PackedSequence, hx: Tensor | None, batch_first: bool) -> SequencePlan:
    """Choose the plan by what the input is."""
    if isinstance(input, PackedSequence):
        return _packed(input, hx)
    rank = input.dim()
    if input.is_nested:
        return _nested(input, hx, batch_first)
    check_ranks(input, hx)
    if rank == 3:
        return SequencePlan(input, hx)
    return _unbatched(input, hx, 0 if batch_first else 1)


def _unbatched(input: Tensor, hx: Tensor | None, batch_dim: int) -> SequencePlan:
    return SequencePlan(
        input.unsqueeze(batch_dim),
        None if hx is None else hx.unsqueeze(1),
        restore=lambda output: output.squeeze(batch_dim),
        restore_state=lambda h_n: h_n.squeeze(1),
    )


def _packed(input: PackedSequence, hx: Tensor | None) -> SequencePlan:
    data, batch_sizes, order, inverse = input
    return SequencePlan(
        data,
        hx if hx is None or order is None else hx.index_select(1, order),
        batch_sizes,
        lambda output: PackedSequence(output, batch_sizes, order, inverse),
        _same if inverse is None else lambda h_n: h_n.index_select(1, inverse),
    )


def _nested(input: Any, hx: Tensor | None, batch_first: bool) -> SequencePlan:
    """A jagged batch is packed by sorting its rows by length; sequences of length 0 have no row."""
    if input.layout is not torch.jagged or input.dim() != 3 or not batch_first:
        raise ValueError(
            "RNN: Expected a nested input to be a jagged (B, j, I) tensor with batch_first=True, got "
            f"a {input.dim()}D tensor of layout {input.layout} with batch_first={batch_first}"
        )
    offsets, values, B = input.offsets(), input.values(), input.size(0)
    if hx is not None and (hx.dim() != 3 or hx.size(1) != B):
        raise RuntimeError(f"Expected hidden size (L * D, {B}, H), got {list(hx.size())}")
    lengths, order = offsets.diff().sort(descending=True, stable=True)
    rows, batch_sizes = time_major_rows(offsets[order], lengths)
    alive, place, inverse = int((lengths > 0).sum()), rows.argsort(), order.argsort()
    hx = None if hx is None else hx.index_select(1, order)

    def restore_state(h_n: Tensor) -> Tensor:
        unread = h_n.new_zeros(h_n.size(0), B - alive, h_n.size(2)) if hx is None else hx[:, alive:]
        return torch.cat([h_n, unread], dim=1).index_select(1, inverse)

    return SequencePlan(
        values.index_select(0, rows),
        None if hx is None else hx[:, :alive],
        batch_sizes,
        lambda output: torch.nested.nested_tensor_from_jagged(output.index_select(0, place), offsets),
        restore_state,
    )
