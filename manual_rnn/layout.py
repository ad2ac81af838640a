r"""The four forms of a batch of sequences, brought to rows and back.

    unbatched   input (T, I)                    hx (L * D, H)
    padded      input (T, B, I) or (B, T, I)    hx (L * D, B, H)
    packed      input PackedSequence            hx (L * D, B, H), in the order before sorting
    nested      input jagged (B, j, I)          hx (L * D, B, H)

Each becomes a layout: rows in the order of time, the states to begin with, and how to bring results back.
Letters: `T` steps, `B` batch, `I` input size, `H` hidden size, `L` layers, `D` directions, `N` packed rows.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .kernels.time_order import time_of_rows
from .ops import as_batch_first
from .parameters import RNNBase
from .torch_internals import as_numbers
from .validation import check_ranks


class Layout:
    """A padded batch, `(T, B, I)` or with `batch_first` `(B, T, I)`; the other forms say what they change.

    Attributes:
        rows: `(T, B, I)`, or `(N, I)` with `batch_sizes`.
        input: what came.
        data: the same rows as they came, for the checks that `nn.RNN` makes of them.
        hx: the states to begin with, `(L * D, B, H)` in the order of the rows, or None.
        batch_sizes: how many rows each step has, `(T,)`; None for a padded batch.
        order: which sequence of the batch each row of the first step belongs to, if they were sorted.
    """

    batch_sizes: Tensor | None = None
    order: Tensor | None = None
    input: Any

    def __init__(self, rnn: RNNBase, data: Tensor, hx: Tensor | None) -> None:
        self.rnn, self.input, self.data = rnn, data, data
        self.rows = data.transpose(0, 1) if rnn.batch_first else data
        self.hx = hx if hx is None else rnn.permute_hidden(hx, None)

    def restore(self, output: Tensor, h_n: Tensor) -> tuple[Any, Tensor]:
        """From `output (T, B, D * H)` or `(N, D * H)` and `h_n (L * D, B, H)` to the form that came in."""
        if self.rnn.batch_first:
            output = as_batch_first(output)
        return output, self.rnn.permute_hidden(h_n, None)


class UnbatchedLayout(Layout):
    """`(T, I)` as a batch of one."""

    def __init__(self, rnn: RNNBase, input: Tensor, hx: Tensor | None) -> None:
        self.axis = 0 if rnn.batch_first else 1
        super().__init__(rnn, input.unsqueeze(self.axis), None if hx is None else hx.unsqueeze(1))

    def restore(self, output: Tensor, h_n: Tensor) -> tuple[Tensor, Tensor]:
        return output.squeeze(1), self.rnn.permute_hidden(h_n.squeeze(1), None)


class PackedLayout(Layout):
    """Rows already, sorted by length."""

    def __init__(self, rnn: RNNBase, input: PackedSequence, hx: Tensor | None) -> None:
        self.rnn, self.input = rnn, input
        self.data, sizes, self.order, self.inverse = input
        self.batch_sizes = as_numbers(sizes if sizes.dim() == 1 else sizes.flatten())
        self.rows = self.data
        self.hx = None if hx is None else rnn.permute_hidden(hx, self.order)

    def restore(self, output: Tensor, h_n: Tensor) -> tuple[Any, Tensor]:
        packed = PackedSequence(output, self.input.batch_sizes, self.order, self.inverse)
        return packed, self.rnn.permute_hidden(h_n, self.inverse)


class NestedLayout(PackedLayout):
    """A jagged batch is packed by sorting its rows by length; sequences of length 0 have no row."""

    def __init__(self, rnn: RNNBase, input: Any, hx: Tensor | None) -> None:
        _check_nested(input, hx, rnn.batch_first)
        self.rnn, self.input, self.offsets = rnn, input, input.offsets()
        lengths, order = self.offsets.diff().sort(descending=True, stable=True)
        rows, self.batch_sizes = time_major_rows(self.offsets[order], lengths)
        alive = int((lengths > 0).sum())
        self.rows = self.data = input.values().index_select(0, rows)
        self.place, self.inverse = rows.argsort(), order.argsort()
        self.unread, self.hx = input.size(0) - alive, None
        if hx is not None:
            hx = rnn.permute_hidden(hx, order)
            self.hx, self.kept = hx[:, :alive], hx[:, alive:]

    def restore(self, output: Tensor, h_n: Tensor) -> tuple[Any, Tensor]:
        jagged = torch.nested.nested_tensor_from_jagged(output.index_select(0, self.place), self.offsets)
        kept = h_n.new_zeros(len(h_n), self.unread, h_n.size(2)) if self.hx is None else self.kept
        return jagged, self.rnn.permute_hidden(torch.cat([h_n, kept], dim=1), self.inverse)


def layout_of(rnn: RNNBase, input: Tensor | PackedSequence, hx: Tensor | None) -> Layout:
    """Choose the form by what the input is."""
    if isinstance(input, PackedSequence):
        return PackedLayout(rnn, input, hx)
    rank = input.dim()
    if input.is_nested:
        return NestedLayout(rnn, input, hx)
    check_ranks(input, hx)
    return Layout(rnn, input, hx) if rank == 3 else UnbatchedLayout(rnn, input, hx)


def time_major_rows(offsets: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    r"""Where the rows of a packed batch stand in a concatenation of its sequences.

    `offsets` and `lengths (B,)`: where each sequence begins and how long it is, longest first. Returns
    the row numbers in packed order, `(N,)`, and `batch_sizes (T,)`.
    """
    place = lengths.device
    steps = torch.arange(int(lengths.max()) if len(lengths) else 0, device=place)
    batch_sizes = len(lengths) - torch.searchsorted(lengths.flip(0), steps, right=True)
    step, sequence = time_of_rows(batch_sizes, int(lengths.sum()))
    return offsets[sequence] + step, batch_sizes.cpu()


def _check_nested(input: Any, hx: Tensor | None, batch_first: bool) -> None:
    if input.layout is not torch.jagged or input.dim() != 3 or not batch_first:
        raise ValueError(
            "RNN: Expected a nested input to be a jagged (B, j, I) tensor with batch_first=True, got "
            f"a {input.dim()}D tensor of layout {input.layout} with batch_first={batch_first}"
        )
    if hx is not None and (hx.dim() != 3 or hx.size(1) != input.size(0)):
        raise RuntimeError(f"Expected hidden size (L * D, {input.size(0)}, H), got {list(hx.size())}")
