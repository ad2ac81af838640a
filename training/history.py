r"""What a run leaves behind of its steps: the report tells it in a table, the picture in curves."""

from dataclasses import dataclass, field
from typing import Any

import torch

from .gradients import Comparison


@dataclass
class Extremes:
    """The largest differences seen of one parameter.

    Attributes:
        absolute: ``max |g_manual - g_builtin|`` at the same weights.
        relative: the norm of that difference over the larger of the two gradients' norms.
        parting: the norm of that difference in units of round-off (``gradients.py``).
        drift: relative, between the gradients that the twins trained with.
        first_step_past: the first step at which ``parting`` was beyond the tolerance.
    """

    absolute: float = 0.0
    relative: float = 0.0
    parting: float = 0.0
    drift: float = 0.0
    first_step_past: int | None = None


@dataclass(repr=False)
class History:
    """Numbers step by step: lists of equal length belong together.

    Attributes:
        steps: every step.
        losses: the loss at each of them, by twin.
        compared: the steps at which gradients were compared.
        differences: the largest absolute difference at each of those, by parameter; NaN where none was left
            to compare.
        partings: the same in units of round-off.
        validated: the steps after which there was a validation.
        scores: the task's metric in each of those, by twin.
    """

    steps: list[int] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    compared: list[int] = field(default_factory=list)
    differences: dict[str, list[float]] = field(default_factory=dict)
    partings: dict[str, list[float]] = field(default_factory=dict)
    validated: list[int] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)

    def __repr__(self) -> str:
        reached = {twin: float(f"{values[-1]:.4g}") for twin, values in self.scores.items()}
        counts = f"{len(self.steps)} steps, {len(self.compared)} compared, {len(self.validated)} validations"
        return f"History({counts}, scores at the end: {reached})"

    def note_losses(self, step: int, losses: dict[str, float]) -> None:
        self.steps.append(step)
        add(self.losses, losses, len(self.steps))

    def note_comparison(self, step: int, comparison: Comparison) -> None:
        self.compared.append(step)
        add(self.differences, comparison.absolute, len(self.compared))
        add(self.partings, comparison.partings, len(self.compared))

    def note_scores(self, step: int, scores: dict[str, float]) -> None:
        self.validated.append(step)
        add(self.scores, scores, len(self.validated))


def add(lists: dict[str, list[float]], values: dict[str, float], length: int) -> None:
    """Appends each value to the list of its name; all lists get ``length``, by NaN where one has no value."""
    for name in {**lists, **values}:
        so_far = lists.setdefault(name, [])
        so_far += [float("nan")] * (length - 1 - len(so_far)) + [values.get(name, float("nan"))]


def worse(a: float, b: float) -> float:
    """The larger, where NaN is larger than anything."""
    return b if b != b or b > a else a


def pack(value: Any) -> Any:
    """Lists as tensors, which a checkpoint holds in a tenth of the room."""
    if isinstance(value, dict):
        return {name: pack(v) for name, v in value.items()}
    return torch.tensor(value, dtype=torch.float64)


def unpack(value: Any) -> Any:
    """What :func:`pack` was given, whole numbers as floats."""
    if isinstance(value, dict):
        return {name: unpack(v) for name, v in value.items()}
    return value.tolist()
