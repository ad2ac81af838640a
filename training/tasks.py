r"""The tasks: each one is a seeded LightningDataModule, a small class with one method, :meth:`Task.sample`.

A batch is a function of its number: (seed, split, number) seed the generator that draws it. So
workers can't repeat a batch, a resumed run goes on with the batch that comes next, and under DDP
every process draws the whole batch and keeps its share.
"""

from collections.abc import Callable, Iterator
from copy import copy
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_lightning import LightningDataModule
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

Batch = tuple[Tensor, Tensor]
SPLITS = {"train": 0, "val": 1, "test": 2, "predict": 3}


class Task(LightningDataModule):
    r"""What every task has: sizes, loss and metric, and the loaders.

    A subclass sets the class attributes, :attr:`input_size`, :attr:`output_size` and
    :attr:`chance`, and draws sequences in :meth:`sample`. ``batch_size`` sequences are one
    optimizer step, over however many processes.

    Raises ValueError for a parameter out of range.
    """

    source: ClassVar[str]
    metric: ClassVar[Literal["mse", "accuracy", "perplexity"]]
    solved: ClassVar[float]
    every_step: ClassVar[bool]
    """Whether there is a target at every step, or one for the whole sequence."""

    input_size: int
    output_size: int
    chance: float
    """The metric of a model that ignores its input."""

    def __init__(
        self, length: int, batch_size: int, train_batches: int, val_batches: int, num_workers: int, seed: int
    ) -> None:
        super().__init__()
        at_least("length", length, 1)
        at_least("batch_size", batch_size, 1)
        at_least("train_batches", train_batches, 1)
        at_least("val_batches", val_batches, 1)
        at_least("num_workers", num_workers, 0)
        self.length, self.batch_size, self.num_workers, self.seed = length, batch_size, num_workers, seed
        self.batches = dict.fromkeys(SPLITS, val_batches) | {"train": train_batches}

    def sample(self, generator: Generator, count: int) -> Batch:
        """Draws ``count`` sequences: input (B, T, I) and target (B,), (B, T) or (B, O)."""
        raise NotImplementedError

    def batch(self, split: str, number: int) -> Batch:
        """The batch of that number, before any process takes its share."""
        state = np.random.SeedSequence((self.seed, SPLITS[split], number)).generate_state(1, np.uint64)
        return self.sample(Generator().manual_seed(int(state[0]) >> 1), self.batch_size)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Of the readout at every step, (B, T, O): mean squared error or cross-entropy."""
        output, target = self.at_targets(output, target)
        if self.metric == "mse":
            return F.mse_loss(output, target)
        return F.cross_entropy(output.flatten(0, -2), target.flatten())

    def metrics(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The loss and, where it says more, the accuracy or the perplexity."""
        loss = self.loss(output, target)
        if self.metric == "mse":
            return {"loss": loss, "mse": loss}
        output, target = self.at_targets(output, target)
        right = (output.argmax(-1) == target).double().mean()
        return {"loss": loss, "accuracy": right}

    def at_targets(self, output: Tensor, target: Tensor) -> Batch:
        """The outputs that have a target, and these targets."""
        return (output if self.every_step else output[:, -1]), target

    def train_dataloader(self) -> DataLoader[Batch]:
        return self.loader("train")

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self.loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self.loader("predict")

    def loader(self, split: str) -> DataLoader[Batch]:
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.batch_size % processes:
            raise ValueError(
                f"expected a batch_size that {processes} processes can share, got {self.batch_size}"
            )
        dataset = Batches(self, split, slice(rank, None, processes))
        return ResumableLoader(
            dataset,
            batch_size=None,
            sampler=Numbers(self, split),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


class Batches(Dataset[Batch]):
    """The batches of one split by number, and of each the rows that this process takes."""

    def __init__(self, task: Task, split: str, rows: slice) -> None:
        self.task, self.split, self.rows = copy(task), split, rows
        self.task.trainer = None  # it can't go to a worker, and isn't needed there

    def __getitem__(self, number: int) -> Batch:
        input, target = self.task.batch(self.split, number)
        return input[self.rows], target[self.rows]


class Numbers(Sampler[int]):
    """The numbers of an epoch's batches; in training they go on from the trainer's own count."""

    def __init__(self, task: Task, split: str) -> None:
        self.task, self.split, self.count = task, split, task.batches[split]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        if self.split != "train" or self.task.trainer is None:
            return iter(range(self.count))
        done: int = self.task.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        return iter(range(done, done - done % self.count + self.count))


class ResumableLoader(DataLoader[Batch]):
    """Tells Lightning that it resumes in mid-epoch; its state is the trainer's, see Numbers."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Adding(Task):
    r"""Adding problem: of ``length`` numbers in [0, 1) two are marked; the target is their sum.

    Input (B, T, 2): the number and the mark, of which there is one in each half.
    Target (B, 1). Always answering 1 has a mean squared error of 1/6, the variance of the sum.
    """

    source = (
        "Hochreiter and Schmidhuber 1997, experiment 4; numbers in [0, 1) as in Le, Jaitly and Hinton 2015"
    )
    metric = "mse"
    solved = (
        0.0064  # (their margin of 0.04 on a scale where the sum has range 1) squared, where it has range 2
    )
    every_step = False
    input_size, output_size = 2, 1
    chance = 1 / 6

    def __init__(
        self,
        length: int = 20,
        batch_size: int = 64,
        train_batches: int = 100,
        val_batches: int = 10,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(length, batch_size, train_batches, val_batches, num_workers, seed)
        at_least("length", length, 2)
        self.save_hyperparameters()

    def sample(self, generator: Generator, count: int) -> Batch:
        numbers = torch.rand(count, self.length, generator=generator)
        half = self.length // 2
        first = torch.randint(half, (count,), generator=generator)
        second = torch.randint(half, self.length, (count,), generator=generator)
        marks = F.one_hot(first, self.length) + F.one_hot(second, self.length)
        return torch.stack((numbers, marks), -1), (numbers * marks).sum(1, keepdim=True)


class CopyMemory(Task):
    r"""Copy memory: ``symbols`` letters, a delay of ``length``, a marker: recall the letters.

    Input (B, length + 2 symbols, alphabet + 2), one-hot: letters, blank, marker. Target (B, T):
    blank but for the last ``symbols`` steps. The accuracy counts these last steps alone; guessing
    has 1 / alphabet.
    """

    source = "Hochreiter and Schmidhuber 1997; in this form Arjovsky, Shah and Bengio 2016"
    metric = "accuracy"
    solved = 0.99
    every_step = True

    def __init__(
        self,
        length: int = 10,
        symbols: int = 5,
        alphabet: int = 8,
        batch_size: int = 64,
        train_batches: int = 100,
        val_batches: int = 10,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(length, batch_size, train_batches, val_batches, num_workers, seed)
        at_least("symbols", symbols, 1)
        at_least("alphabet", alphabet, 2)
        self.symbols, self.alphabet = symbols, alphabet
        self.input_size, self.output_size, self.chance = alphabet + 2, alphabet + 1, 1 / alphabet
        self.save_hyperparameters()

    def sample(self, generator: Generator, count: int) -> Batch:
        blank, marker = self.alphabet, self.alphabet + 1
        letters = torch.randint(self.alphabet, (count, self.symbols), generator=generator)
        blanks = letters.new_full((count, self.length + self.symbols), blank)
        sequence = torch.cat((letters, blanks), 1)
        sequence[:, -self.symbols - 1] = marker
        return F.one_hot(sequence, self.alphabet + 2).float(), torch.cat((blanks, letters), 1)

    def metrics(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        recalled = super().metrics(output[:, -self.symbols :], target[:, -self.symbols :])
        return {"loss": self.loss(output, target), "accuracy": recalled["accuracy"]}


def at_least(name: str, value: int, smallest: int) -> None:
    if value < smallest:
        raise ValueError(f"expected {name} of at least {smallest}, got {value}")


TASKS: dict[str, Callable[..., Task]] = {task.__name__: task for task in (Adding, CopyMemory)}
