r"""What a batch is, and how outputs are judged by it: the loss, the metric, and whether the shapes fit."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanSquaredError, Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

MetricName = Literal["mse", "accuracy", "perplexity"]


class Batch(NamedTuple):
    """Sequences side by side."""

    input: Tensor
    """(B, T, I)"""
    target: Tensor
    """Of the last K steps: classes (B, K), or values (B, K, O)."""
    starts: bool = True
    """Whether the sequences begin here, rather than go on where the batch before ended."""


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

    @property
    def mode(self) -> Literal["min", "max"]:
        """Whether less or more of the metric is better, in Lightning's words."""
        return "max" if self.metric == "accuracy" else "min"

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

    def check(self, batch: Any, input_size: int) -> None:
        """Raises ValueError for a batch whose shapes or types don't fit the sizes and the metric."""
        if not isinstance(batch, Batch) or not all(isinstance(x, Tensor) for x in batch[:2]):
            got = ", ".join(type(x).__name__ for x in batch[:2]) if isinstance(batch, Batch) else ""
            got = f"one of {got}" if got else type(batch).__name__
            raise ValueError(f"expected sample to return a Batch of two tensors, got {got}")
        input, target = batch.input, batch.target
        if input.dim() != 3 or input.size(2) != input_size or not input.is_floating_point():
            raise ValueError(f"expected input of floats (B, T, {input_size}), got {shown(input)}")
        B, T, _ = input.shape
        values, outputs = self.metric == "mse", self.output_size
        K = target.size(1) if target.dim() > 1 else 0
        shape = (B, K, outputs) if values else (B, K)
        if target.shape != shape or not 1 <= K <= T or target.is_floating_point() != values:
            kind = "values (B, K, O)" if values else "whole numbers (B, K)"
            sizes = f"B = {B}, 1 <= K <= T = {T}" + f", O = {outputs}" * values
            expected = f"expected a target of {kind} with {sizes} for {self.metric}"
            raise ValueError(f"{expected}, got {shown(target)}")
        least, most = int(target.min()), int(target.max())
        if not values and not 0 <= least <= most < outputs:
            raise ValueError(f"expected classes from 0 to {outputs - 1}, got {least} to {most}")


def shown(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
