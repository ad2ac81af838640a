r"""Which row holds which step of which sequence, and the order in which a recurrence walks them.

A padded tensor has its steps along a time axis. A packed one has, step after step, one row for each
sequence still alive: `batch_sizes (T,)` counts them, longest sequence first. Nothing made here is larger
than the rows. Letters: `T` steps, `B` sequences, `N` packed rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Walk(NamedTuple):
    """A direction through time, along the axis `dim` of padded or packed tensors."""

    dim: int
    reverse: bool
    batch_sizes: Tensor | None

    def back(self) -> "Walk":
        """The other direction."""
        return self._replace(reverse=not self.reverse)

    def steps(self, x: Tensor) -> Sequence[Tensor]:
        """Views of `x`, one per step, in the order of the walk: of equal size, or of the rows alive at it."""
        steps = x.unbind(self.dim) if self.batch_sizes is None else self._split(x)
        return self.in_time(steps)

    def _split(self, x: Tensor) -> Sequence[Tensor]:
        assert self.batch_sizes is not None
        return x.split(self.batch_sizes.tolist(), self.dim)

    def in_time(self, steps: Sequence[Tensor]) -> Sequence[Tensor]:
        """From the order of the steps in memory to the order of the walk, or back."""
        return steps[::-1] if self.reverse else steps

    def first(self, x: Tensor, B: int) -> Tensor:
        """The row of each sequence at which the walk begins: its last one where time runs backward."""
        if self.batch_sizes is None:
            return x.select(self.dim, -1 if self.reverse else 0)
        if not self.reverse:
            return x.narrow(self.dim, 0, B)
        return x.index_select(self.dim, _last_rows(self.batch_sizes, B).to(x.device))

    def last(self, x: Tensor, B: int) -> Tensor:
        """The row of each sequence at which the walk ends."""
        if self.batch_sizes is None:
            return x.select(self.dim, 0 if self.reverse else -1)
        return self.back().first(x, B)

    def add_to_last(self, x: Tensor, last: Tensor) -> Tensor:
        """A new tensor like `x`, plus `last (B, H)` at the rows at which the walk ends."""
        if self.batch_sizes is None:
            last, n = last.unsqueeze(self.dim), x.size(self.dim) - 1
            end, others = (
                x.narrow(self.dim, 0 if self.reverse else n, 1),
                x.narrow(self.dim, int(self.reverse), n),
            )
            parts = (end + last, others) if self.reverse else (others, end + last)
            return torch.cat(parts, dim=self.dim)
        B = last.size(-2)
        if self.reverse:
            rows = torch.arange(B, device=x.device)
        else:
            rows = _last_rows(self.batch_sizes, B).to(x.device)
        return x.index_add(self.dim, rows, last)

    def previous(self, x: Tensor, start: Tensor) -> Tensor:
        """For each row the one visited before it in its sequence, `start` before the first."""
        if self.batch_sizes is not None:
            B, N = start.size(-2), x.size(self.dim)
            index = _previous_rows(self.batch_sizes, B, N, self.reverse).to(x.device)
            return torch.cat([start, x], dim=self.dim).index_select(self.dim, index)
        start = start.unsqueeze(self.dim)
        earlier = x.narrow(self.dim, int(self.reverse), x.size(self.dim) - 1)
        return torch.cat((earlier, start) if self.reverse else (start, earlier), dim=self.dim)

    def zero_start(self, x: Tensor) -> Tensor:
        """Zeros for the state before the first step; for packed rows at least one per sequence, since
        how many there are a graph can't know."""
        return torch.zeros_like(x.select(self.dim, 0) if self.batch_sizes is None else x)


def batch_size(x: Tensor, batch_sizes: Tensor | None, state: Tensor | None = None) -> int:
    """The size `B` of a batch with the rows `x`; without any steps, a packed one has that of its state."""
    if batch_sizes is None:
        return x.size(-2)
    if batch_sizes.numel():
        return int(batch_sizes[0])
    return 0 if state is None else state.size(-2)


def first_rows(x: Tensor, batch_sizes: Tensor | Sequence[int] | None, reverse: bool) -> int:
    """How many rows the first step of a direction has."""
    if batch_sizes is None:
        return x.size(-2)
    return int(batch_sizes[-1 if reverse else 0]) if len(batch_sizes) else 0


def check_sizes(batch_sizes: Tensor | None, N: int) -> None:
    """Sizes share out the rows, none larger than the one before. Python's ints can't overflow.

    Raises:
        ValueError: for others.
    """
    if batch_sizes is None:
        return
    sizes = batch_sizes.tolist()
    if sum(sizes) != N or any(n < m for n, m in zip(sizes, [*sizes[1:], 0], strict=False)):
        raise ValueError(f"expected batch_sizes that never grow and add up to {N} rows, got {sizes}")


def carry(hidden: Tensor, start: Tensor, rows: int) -> Tensor:
    """The state that enters a step of `rows` rows: sequences that ended leave it, sequences that
    begin (their last step, read backward in time) join it from `start`."""
    alive = hidden.size(-2)
    if rows <= alive:
        return hidden if rows == alive else hidden.narrow(-2, 0, rows)
    return torch.cat([hidden, start.narrow(-2, alive, rows - alive)], dim=-2)


def time_of_rows(batch_sizes: Tensor, N: int) -> tuple[Tensor, Tensor]:
    """Of each of the `N` packed rows the step and the sequence to which it belongs."""
    place = batch_sizes.device
    steps = torch.arange(batch_sizes.size(0), device=place)
    step = torch.repeat_interleave(steps, batch_sizes, output_size=N)
    return step, torch.arange(N, device=place) - _starts(batch_sizes)[step]


def _starts(batch_sizes: Tensor) -> Tensor:
    """The first row of each step."""
    return batch_sizes.cumsum(0) - batch_sizes


def _last_rows(batch_sizes: Tensor, B: int) -> Tensor:
    """The row of the last step of each sequence. Sizes never grow, so search finds how long each is."""
    sequence = torch.arange(B, device=batch_sizes.device)
    ended = torch.searchsorted(batch_sizes.flip(0), sequence, right=True)  # steps that it didn't live to see
    return _starts(batch_sizes)[batch_sizes.size(0) - ended - 1] + sequence


def _previous_rows(batch_sizes: Tensor, B: int, N: int, reverse: bool) -> Tensor:
    """For each row the one visited before it, as a number into `B` initial states and `N` rows."""
    starts, (step, sequence) = _starts(batch_sizes), time_of_rows(batch_sizes, N)
    if not reverse:
        before = torch.cat([starts.new_full((1,), -B), starts[:-1]])
        return B + before[step] + sequence
    alive_after = torch.cat([batch_sizes[1:], batch_sizes.new_zeros(1)])
    after = B + (starts + batch_sizes)[step] + sequence
    return torch.where(sequence < alive_after[step], after, sequence)
