r"""Which row holds which step of which sequence, and the order in which a recurrence walks them.

A padded tensor has its steps along a time axis. A packed one has, step after step, one row for each
sequence still alive: `batch_sizes (T,)` counts them, longest sequence first. Letters: `T` steps, `B`
sequences, `N` packed rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Walk", "time_major_rows"]


class Walk(NamedTuple):
    """A direction through time, along one axis of padded or packed tensors."""

    time: int
    reverse: bool
    batch_sizes: Tensor | None

    def back(self) -> "Walk":
        """The other direction."""
        return self._replace(reverse=not self.reverse)

    def first(self, x: Tensor, B: int) -> Tensor:
        """The row of each sequence at which the walk begins: its last one where time runs backward."""
        if self.batch_sizes is None:
            return x.select(self.time, -1 if self.reverse else 0)
        if not self.reverse:
            return x.narrow(self.time, 0, B)
        return x.index_select(self.time, _last_rows(self.batch_sizes, B).to(x.device))

    def last(self, x: Tensor, B: int) -> Tensor:
        """The row of each sequence at which the walk ends."""
        if self.batch_sizes is None:
            return x.select(self.time, 0 if self.reverse else -1)
        return self.back().first(x, B)

    def previous(self, x: Tensor, start: Tensor) -> Tensor:
        """For each row the one visited before it in its sequence, `start` before the first."""
        if self.batch_sizes is not None:
            B, N = start.size(-2), x.size(self.time)
            index = _previous_rows(self.batch_sizes, B, N, self.reverse).to(x.device)
            return torch.cat([start, x], dim=self.time).index_select(self.time, index)
        start = start.unsqueeze(self.time)
        earlier = x.narrow(self.time, int(self.reverse), x.size(self.time) - 1)
        return torch.cat((earlier, start) if self.reverse else (start, earlier), dim=self.time)

    def zero_start(self, x: Tensor) -> Tensor:
        """Zeros for the state before the first step; for packed rows at least one per sequence, since
        how many there are a graph can't know."""
        return torch.zeros_like(x.select(self.time, 0) if self.batch_sizes is None else x)


def time_major_rows(offsets: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    r"""Where the rows of a packed batch stand in a concatenation of its sequences.

    `offsets` and `lengths (B,)`: where each sequence begins and how long it is, longest first. Returns
    the row numbers in packed order, `(N,)`, and `batch_sizes (T,)`.
    """
    t = torch.arange(int(lengths.max()) if len(lengths) else 0, device=lengths.device).unsqueeze(1)
    alive = t < lengths  # (T, B)
    return (offsets + t)[alive], alive.sum(1).cpu()


def _starts(batch_sizes: Tensor) -> Tensor:
    """The first row of each step."""
    return batch_sizes.cumsum(0) - batch_sizes


def _last_rows(batch_sizes: Tensor, B: int) -> Tensor:
    """The row of the last step of each sequence."""
    sequence = torch.arange(B)
    lengths = (batch_sizes.unsqueeze(1) > sequence).sum(0)
    return _starts(batch_sizes)[lengths - 1] + sequence


def _previous_rows(batch_sizes: Tensor, B: int, N: int, reverse: bool) -> Tensor:
    """For each row the one visited before it, as a number into `B` initial states and `N` rows."""
    starts = _starts(batch_sizes)
    step = torch.repeat_interleave(torch.arange(batch_sizes.size(0)), batch_sizes, output_size=N)
    sequence = torch.arange(N) - starts[step]
    if not reverse:
        before = torch.cat([starts.new_full((1,), -B), starts[:-1]])
        return B + before[step] + sequence
    alive_after = torch.cat([batch_sizes[1:], batch_sizes.new_zeros(1)])
    after = B + (starts + batch_sizes)[step] + sequence
    return torch.where(sequence < alive_after[step], after, sequence)
