r"""The loader of a task's batches: by number, each process its share, cut in time where asked, resumable."""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


class Batch(NamedTuple):
    """Sequences side by side."""

    input: Tensor
    """(B, T, I)"""
    target: Tensor
    """Of the last K steps: classes (B, K), or values (B, K, O)."""
    starts: bool = True
    """Whether the sequences begin here, rather than go on where the batch before ended."""


class Numbered(Protocol):
    """A task, as far as its loader knows it: batches by split and number, and how many of each split."""

    batches: dict[str, int]
    trainer: Any

    def batch(self, split: str, number: int) -> Batch: ...


class Batches(Dataset[Batch]):
    """The batches of one split by number, of each the rows of this process.

    With ``steps`` a batch is cut in time into pieces of that many steps, each with a number of its own.
    """

    def __init__(self, task: Numbered, split: str, rows: slice, steps: int | None) -> None:
        self.task, self.split, self.rows, self.steps = copy(task), split, rows, steps
        self.task.trainer = None  # it can't go to a worker, and isn't needed there
        self.pieces = 1 if steps is None else pieces(task.batch(split, 0), steps)

    def __len__(self) -> int:
        return self.task.batches[self.split] * self.pieces

    def __getitem__(self, number: int) -> Batch:
        number, piece = divmod(number, self.pieces)
        whole = self.task.batch(self.split, number)
        batch = Batch(whole.input[self.rows], whole.target[self.rows])
        return batch if self.steps is None else cut(batch, piece * self.steps, (piece + 1) * self.steps)


def pieces(batch: Batch, steps: int) -> int:
    """How many pieces of ``steps`` steps there are in a batch. Raises ValueError where one has no target."""
    T, K = batch.input.size(1), batch.target.size(1)
    if steps <= T - K:
        raise ValueError(
            f"expected targets in every {steps} steps to truncate backpropagation there, got targets in "
            f"the last {K} of {T} steps only"
        )
    return -(-T // steps)


def cut(batch: Batch, first: int, end: int) -> Batch:
    """The steps from ``first`` to before ``end``, with their targets."""
    before_targets = batch.input.size(1) - batch.target.size(1)
    target = batch.target[:, max(first - before_targets, 0) : end - before_targets]
    return Batch(batch.input[:, first:end], target, first == 0)


@dataclass
class Progress:
    """How many batches of a training were given out. The task keeps it in its checkpoints."""

    drawn: int = 0


class Numbers(Sampler[int]):
    """The numbers of the batches that are left in an epoch, of ``count``.

    With a ``progress`` an epoch begins with the number after the last one of the epoch before.
    """

    def __init__(self, count: int, progress: Progress | None) -> None:
        self.count, self.progress = count, progress

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        first = self.progress.drawn if self.progress else 0
        return iter(range(first, first - first % self.count + self.count))


class ResumableLoader(DataLoader[Batch]):
    """A loader that goes on in the middle of an epoch, which ``state_dict`` tells Lightning."""

    def __iter__(self) -> Any:
        progress = getattr(self.sampler, "progress", None)
        for batch in super().__iter__():
            if progress:
                progress.drawn += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The state is the task's, since Lightning loads a loader's own in mid-epoch alone."""
