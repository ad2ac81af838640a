r"""What a run leaves behind of its steps: the report tells it in a table, the picture in curves."""

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Extremes:
    """The largest differences seen of one parameter.

    Attributes:
        absolute: ``max |g_manual - g_builtin|`` at the same weights.
        relative: the norm of that difference over the larger of the two gradients' norms.
        parting: the norm of that difference in units of round-off (:mod:`training.gradients`).
        drift: relative, between the gradients that the twins trained with.
        first_step_past: the first step at which ``parting`` was beyond the tolerance.
    """

    absolute: float = 0.0
    relative: float = 0.0
    parting: float = 0.0
    drift: float = 0.0
    first_step_past: int | None = None


@dataclass
class History:
    """Numbers step by step: lists of equal length belong together.

    Attributes:
        steps: every step.
        losses: the loss at each of them, by twin.
        compared: the steps at which gradients were compared.
        differences: the largest absolute difference at each of those, by parameter.
    """

    steps: list[int] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    compared: list[int] = field(default_factory=list)
    differences: dict[str, list[float]] = field(default_factory=dict)


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
