r"""What every task shares: its checks, and loaders that never repeat a batch.

A batch is a function of its number: (seed, split, number) seed the generator that draws it. So workers
can't repeat a batch, a resumed run goes on with the batch that comes next, and under DDP every process
draws the whole batch and keeps its share.
"""

import os
from collections.abc import Iterator
from copy import copy
from typing import Any, ClassVar, get_args

import numpy as np
import torch.nn.functional as F
from pytorch_lightning import LightningDataModule
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .objective import Batch, MetricName, Objective

SPLITS = {"train": 0, "val": 1, "test": 2}
NEEDED = ("metric", "input_size", "output_size", "chance", "solved")


class Task(LightningDataModule):
    r"""A task is a subclass with the attributes below and one method, :meth:`sample`.

    Args:
        length: how long the sequences are, or what they ask to be remembered for.
        batch_size: sequences in one optimizer step, over however many processes.
        train_batches: batches between two validations.
        val_batches: batches of a validation or a test.
        num_workers: processes that prepare batches.
        seed: of everything that is drawn; that of the run where none is given, 0 outside of one.

    Raises:
        ValueError: for a parameter out of range.
    """

    source: ClassVar[str] = ""
    metric: ClassVar[MetricName]
    shortest: ClassVar[int] = 1
    """The least ``length`` that makes sense."""

    input_size: int
    output_size: int
    chance: float
    """The metric of the best constant answer."""
    solved: float
    """The metric at which the task counts as solved."""
    scored_steps: int | None = None
    """How many of the last steps count for the metric; all that have a target where None."""

    def __init__(
        self,
        length: int = 20,
        batch_size: int = 64,
        train_batches: int = 100,
        val_batches: int = 10,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if seed is None:  # that which Lightning's seed_everything was called with
            seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        at_least(self.shortest, length=length)
        at_least(1, batch_size=batch_size, train_batches=train_batches, val_batches=val_batches)
        at_least(0, num_workers=num_workers, seed=seed)
        self.length, self.batch_size, self.num_workers, self.seed = length, batch_size, num_workers, seed
        self.batches = dict.fromkeys(SPLITS, val_batches) | {"train": train_batches}

    @property
    def objective(self) -> Objective:
        return Objective(self.metric, self.output_size, self.scored_steps)

    def check(self) -> None:
        """Draws a batch, and raises ValueError where it or the task isn't as a task should be."""
        missing = [needed for needed in NEEDED if not hasattr(self, needed)]
        if type(self).sample is Task.sample and type(self).batch is Task.batch:
            missing.append("sample")
        if missing:
            name, lacks = type(self).__name__, ", no ".join(missing)
            raise ValueError(f"expected a task with sample, {', '.join(NEEDED)}; {name} has no {lacks}")
        if self.metric not in get_args(MetricName):
            raise ValueError(f"expected a metric of {', '.join(get_args(MetricName))}, got {self.metric}")
        self.objective.check(self.batch("train", 0), self.input_size)

    def sample(self, generator: Generator, count: int) -> Batch:
        """Draws ``count`` sequences."""
        raise NotImplementedError

    def batch(self, split: str, number: int) -> Batch:
        """The batch of that number, before any process takes its share."""
        return self.sample(seeded_by(self.seed, SPLITS[split], number), self.batch_size)

    def is_solved(self, value: float) -> bool:
        return value >= self.solved if self.objective.mode == "max" else value <= self.solved

    def train_dataloader(self) -> DataLoader[Batch]:
        module = self.trainer.lightning_module if self.trainer else None
        return self.loader("train", getattr(module, "tbptt_steps", None))

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self.loader("test")

    predict_dataloader = test_dataloader

    def loader(self, split: str, steps: int | None = None) -> DataLoader[Batch]:
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.batch_size % processes:
            expected = f"expected a batch_size that {processes} processes can share"
            raise ValueError(f"{expected}, got {self.batch_size}")
        dataset, workers = Batches(self, split, slice(rank, None, processes), steps), self.num_workers
        options: Any = {"batch_size": None, "num_workers": workers, "persistent_workers": workers > 0}
        if split != "train":
            return DataLoader(dataset, **options)
        return ResumableLoader(dataset, sampler=Unseen(self, len(dataset)), **options)


class Batches(Dataset[Batch]):
    """The batches of one split by number, of each the rows of this process.

    With ``steps`` a batch is cut in time into pieces of that many steps, each with a number of its own.
    """

    def __init__(self, task: Task, split: str, rows: slice, steps: int | None) -> None:
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
        got = f"got targets in the last {K} of {T} steps only"
        raise ValueError(f"expected targets in every {steps} steps to truncate backpropagation there, {got}")
    return -(-T // steps)


def cut(batch: Batch, first: int, end: int) -> Batch:
    """The steps from ``first`` to before ``end``, with their targets."""
    before_targets = batch.input.size(1) - batch.target.size(1)
    target = batch.target[:, max(first - before_targets, 0) : end - before_targets]
    return Batch(batch.input[:, first:end], target, first == 0)


class Unseen(Sampler[int]):
    """The numbers of the ``count`` batches of an epoch that a training hasn't drawn yet.

    Its trainer knows how many those are, also where it restored a checkpoint; without one they are counted.
    """

    def __init__(self, task: Task, count: int) -> None:
        self.task, self.count, self.drawn = task, count, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        trainer = self.task.trainer
        first = trainer.fit_loop.total_batch_idx + 1 if trainer else self.drawn
        for number in range(first, first - first % self.count + self.count):
            self.drawn = number + 1
            yield number


class ResumableLoader(DataLoader[Batch]):
    """Lightning lets a loader with a state begin in mid-epoch; this one's is the number of batches drawn."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The trainer restores it."""


def seeded_by(*numbers: int) -> Generator:
    """A generator for these numbers: near ones give streams that have nothing to do with each other."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return Generator().manual_seed(int(state[0]) >> 1)


def one_hot(classes: Tensor, count: int) -> Tensor:
    return F.one_hot(classes, count).float()


def at_least(smallest: int, **values: float) -> None:
    """Raises ValueError for the first of the named ``values`` that is below ``smallest``."""
    for name, value in values.items():
        if not value >= smallest:  # nor is NaN
            raise ValueError(f"expected {name} of at least {smallest}, got {value}")
