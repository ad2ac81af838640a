r"""What every task shares: its objective, checks, and loaders that never repeat a batch.

A batch is a function of its number: (seed, split, number) seed the generator that draws it. So workers
can't repeat a batch, a resumed run goes on with the batch that comes next, and under DDP every process
draws the whole batch and keeps its share.
"""

import os
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch.nn.functional as F
from jsonargparse.typing import NonNegativeInt, PositiveInt
from pytorch_lightning import LightningDataModule
from torch import Generator, Tensor
from torch.utils.data import DataLoader
from torchmetrics import MeanSquaredError, Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from .loading import Batch, Batches, Numbers, Progress, ResumableLoader

SPLITS = {"train": 0, "val": 1, "test": 2, "predict": 2}
NEEDED = ("metric", "input_size", "output_size", "chance", "solved")
MetricName = Literal["mse", "accuracy", "perplexity"]


@dataclass(frozen=True)
class Objective:
    """Loss and metric of outputs (B, T, O), judged at the last K steps, those that have a target.

    Attributes:
        metric: ``mse`` has values as targets, ``accuracy`` and ``perplexity`` have classes.
        output_size: outputs of a step, O.
        scored_steps: how many of the last steps count for the metric; all K where None.
    """

    metric: MetricName
    output_size: int
    scored_steps: int | None = None

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean squared error, or the cross-entropy."""
        output = output[:, -target.size(1) :]
        if self.metric == "mse":
            return F.mse_loss(output, target)
        return F.cross_entropy(output.flatten(0, 1), target.flatten())

    def new_metric(self) -> Metric:
        """Measures how well the task is done; :meth:`scored` has what it takes."""
        if self.metric == "accuracy":
            return MulticlassAccuracy(self.output_size, average="micro")
        return MeanSquaredError() if self.metric == "mse" else Perplexity()

    def scored(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The answers that count, and their targets."""
        target = target[:, -(self.scored_steps or target.size(1)) :]
        output = output[:, -target.size(1) :]
        answers = output.argmax(-1) if self.metric == "accuracy" else output
        return answers.contiguous(), target.contiguous()  # torchmetrics takes views of them

    @property
    def more_is_better(self) -> bool:
        return self.metric == "accuracy"

    def worst(self, values: Tensor) -> Tensor:
        return values.min() if self.more_is_better else values.max()


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
        length: PositiveInt = 20,
        batch_size: PositiveInt = 64,
        train_batches: PositiveInt = 100,
        val_batches: PositiveInt = 10,
        num_workers: NonNegativeInt = 0,
        seed: NonNegativeInt | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        seed = seed_of_the_run() if seed is None else seed
        at_least(
            1, length=length, batch_size=batch_size, train_batches=train_batches, val_batches=val_batches
        )
        at_least(0, num_workers=num_workers, seed=seed)
        self.length, self.batch_size, self.num_workers, self.seed = length, batch_size, num_workers, seed
        self.batches = dict.fromkeys(SPLITS, val_batches) | {"train": train_batches}
        self.progress = Progress()

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
        check_batch(self.batch("train", 0), self.input_size, self.objective)

    def sample(self, generator: Generator, count: int) -> Batch:
        """Draws ``count`` sequences."""
        raise NotImplementedError

    def batch(self, split: str, number: int) -> Batch:
        """The batch of that number, before any process takes its share."""
        return self.sample(seeded_by(self.seed, SPLITS[split], number), self.batch_size)

    def is_solved(self, value: float) -> bool:
        return value >= self.solved if self.objective.more_is_better else value <= self.solved

    def setup(self, stage: str) -> None:
        self.progress.drawn = 0  # a checkpoint is read after this

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.progress.drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.progress.drawn = state_dict["drawn"]

    def train_dataloader(self) -> DataLoader[Batch]:
        module = self.trainer.lightning_module if self.trainer else None
        return self.loader("train", getattr(module, "tbptt_steps", None))

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self.loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self.loader("predict")

    def loader(self, split: str, steps: int | None = None) -> DataLoader[Batch]:
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.batch_size % processes:
            raise ValueError(
                f"expected a batch_size that {processes} processes can share, got {self.batch_size}"
            )
        dataset = Batches(self, split, slice(rank, None, processes), steps)
        return ResumableLoader(
            dataset,
            batch_size=None,
            sampler=Numbers(len(dataset), self.progress if split == "train" else None),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


def check_batch(batch: Any, input_size: int, objective: Objective) -> None:
    """Raises ValueError for a batch whose shapes or types don't fit the sizes and the metric of its task."""
    if not isinstance(batch, Batch):
        raise ValueError(f"expected sample to return a Batch, got {type(batch).__name__}")
    input, target = batch.input, batch.target
    if input.dim() != 3 or input.size(2) != input_size or not input.is_floating_point():
        raise ValueError(f"expected input of floats (B, T, {input_size}), got {shown(input)}")
    B, T, _ = input.shape
    values = objective.metric == "mse"
    shape = "(B, K, O)" if values else "(B, K)"
    fits = target.shape[2:] == ((objective.output_size,) if values else ()) and target.dim() == 2 + values
    if not fits or len(target) != B or not 1 <= target.size(1) <= T or target.is_floating_point() != values:
        kind = "values" if values else "whole numbers"
        sizes = f"B = {B}, 1 <= K <= T = {T}" + (f", O = {objective.output_size}" if values else "")
        raise ValueError(
            f"expected a target of {kind} {shape} with {sizes} for {objective.metric}, got {shown(target)}"
        )
    if not values and not 0 <= int(target.min()) <= int(target.max()) < objective.output_size:
        raise ValueError(
            f"expected classes from 0 to {objective.output_size - 1}, "
            f"got {int(target.min())} to {int(target.max())}"
        )


def shown(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"


def seed_of_the_run() -> int:
    """What Lightning's ``seed_everything`` was last called with; 0 where it never was."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def seeded_by(*numbers: int) -> Generator:
    """A generator for these numbers: near ones give streams that have nothing to do with each other."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return Generator().manual_seed(int(state[0]) >> 1)


def one_hot(classes: Tensor, count: int) -> Tensor:
    return F.one_hot(classes, count).float()


def at_least(smallest: int, **values: int) -> None:
    """Raises ValueError for the first of the named ``values`` that is below ``smallest``."""
    for name, value in values.items():
        if value < smallest:
            raise ValueError(f"expected {name} of at least {smallest}, got {value}")
