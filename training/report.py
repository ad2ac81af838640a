r"""What a run showed: the record of its steps, and from it a sentence and a table."""

from dataclasses import asdict, dataclass, field
from math import inf, isfinite, isnan, nan
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from .compare import Comparison
from .datamodule import Task

LOSS = "the loss (absolute)"
NAMES = {"builtin": "nn.RNN", "manual": "ManualRNN"}
COLUMNS = ("largest\nabsolute", "largest\nrelative", "times\nround-off", "first step\npast", "own\npaths")
CAPTION = """absolute, relative: at the weights that nn.RNN's twin had reached.
times round-off: in units of how far sound computations of this gradient
  differ (training/compare.py); the tolerance is {tolerance:g}.
own paths: relative, between the gradients the twins trained with. Training
  amplifies round-off, so this grows even where every gradient is right."""


@dataclass(repr=False)
class Record:
    """Numbers step by step, and the largest of them: lists of equal length belong together.

    Attributes:
        tolerance: the parting beyond which a run has failed.
        losses: at each of ``steps``, by twin.
        partings: at each step ``compared`` the norm of the difference of the gradients, in units of round-off
            (``compare.py``), by parameter; NaN where the parameter was left out.
        scores: the task's metric after each step ``validated``, by twin.
        absolute: the largest ``|g_manual - g_builtin|`` at the same weights, by parameter, and of the loss.
        relative: the largest norm of that difference over the larger of the two gradients' norms.
        drift: relative, between the gradients that the twins trained with; of the loss absolute.
        diverged: the step at which a twin's loss or gradients ceased to be finite, by twin.
    """

    tolerance: float = 16.0
    steps: list[int] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    compared: list[int] = field(default_factory=list)
    partings: dict[str, list[float]] = field(default_factory=dict)
    validated: list[int] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    absolute: dict[str, float] = field(default_factory=dict)
    relative: dict[str, float] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)
    diverged: dict[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Record({self.sentence()})"

    @property
    def reached(self) -> dict[str, float]:
        """The scores of the last validation."""
        return {twin: values[-1] for twin, values in self.scores.items()}

    def note_comparison(self, step: int, found: Comparison) -> None:
        finite = {name: inf if isnan(parting) else parting for name, parting in found.partings.items()}
        add(self.compared, step, self.partings, finite)
        if found.diverged:
            self.diverged.setdefault("builtin", step)
        widen(self.absolute, {**found.absolute, LOSS: found.loss})
        widen(self.relative, found.relative)

    def note_step(self, step: int, losses: dict[str, float], drift: dict[str, float] | None = None) -> None:
        """The losses, and as long as neither twin has diverged how far their own paths part."""
        add(self.steps, step, self.losses, losses)
        self.diverged = {name: step for name, loss in losses.items() if not isfinite(loss)} | self.diverged
        if not self.diverged:
            apart = {LOSS: abs(losses["manual"] - losses["builtin"])} if losses else {}
            widen(self.drift, {**(drift or {}), **apart})

    def note_scores(self, step: int, scores: dict[str, float]) -> None:
        add(self.validated, step, self.scores, scores)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: lists as tensors, which are read a hundred times as fast."""
        return apply_to_collection(asdict(self), list, lambda numbers: torch.from_numpy(np.array(numbers)))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(apply_to_collection(state, Tensor, Tensor.tolist) | {"tolerance": self.tolerance})

    @property
    def largest_parting(self) -> float:
        return max(map(largest, self.partings.values()), default=0.0)

    @property
    def bitwise_equal(self) -> bool:
        """Whether every difference was exactly 0: of gradients, losses and the twins' own paths."""
        return not any((*self.absolute.values(), *self.drift.values()))

    def first_past(self, name: str) -> int | None:
        """The first step at which the parting of a parameter was beyond the tolerance."""
        steps = zip(self.compared, self.partings[name], strict=True)
        return next((step for step, parting in steps if parting > self.tolerance), None)

    @property
    def failure(self) -> str | None:
        """The parameter whose gradient passed the tolerance first, and the step; None for a sound run."""
        past = [(step, name) for name in self.partings if (step := self.first_past(name)) is not None]
        if not past:
            return None
        step, name = min(past)
        tolerance = f"the tolerance of {self.tolerance:g}"
        return f"the gradient of {name} parted by more than {tolerance} at step {step}"

    @property
    def divergence(self) -> str:
        """Whose loss or gradients ceased to be finite, and when; empty where both stayed so."""
        diverged = sorted(self.diverged.items())
        return " and ".join(f"{NAMES[twin]} diverged at step {step}" for twin, step in diverged)

    def sentence(self) -> str:
        """What was shown, in one sentence."""
        if self.failure:
            return f"FAILED: {self.failure}"
        if not self.compared:
            return "no gradients were compared"
        before = f"{self.divergence}; before that " if self.divergence else ""
        steps = counted(len(self.compared), "step") + f" of {len(self.steps)}" * (self.compared != self.steps)
        shown = f"{before}{steps}, {counted(len(self.partings), 'parameter')}: every gradient"
        if self.bitwise_equal:
            return f"{shown} bitwise equal to nn.RNN's, and so every loss and both twins' whole paths"
        largest = f"the largest difference is {self.largest_parting:.2g} in units of round-off"
        return f"{shown} equal to nn.RNN's to round-off; {largest}"

    def table(self) -> Table:
        """The largest differences of each parameter, and of the loss."""
        caption = CAPTION.format(tolerance=self.tolerance)
        columns = [Column("parameter", no_wrap=True), *(Column(name, justify="right") for name in COLUMNS)]
        table = Table(*columns, caption=caption, caption_justify="left", box=SIMPLE_HEAD)
        for name, partings in self.partings.items():
            at_the_same_weights = number(self.absolute[name]), number(self.relative[name])
            past = self.first_past(name) or "none"
            own_paths = number(self.drift.get(name, 0.0))
            table.add_row(name, *at_the_same_weights, f"{largest(partings):.2g}", str(past), own_paths)
        table.add_section()
        losses = (number(self.absolute.get(LOSS, 0.0)), "", "", "", number(self.drift.get(LOSS, 0.0)))
        table.add_row(LOSS, *losses)
        return table


def add(steps: list[int], step: int, lists: dict[str, list[float]], values: dict[str, float]) -> None:
    """Adds a step, and its values to the lists of their names: to all of them, NaN where one has no value."""
    for name in {**lists, **values}:
        lists.setdefault(name, [nan] * len(steps)).append(values.get(name, nan))
    steps.append(step)


def widen(kept: dict[str, float], values: dict[str, float]) -> None:
    """Keeps of each name the larger value, where NaN is larger than anything."""
    for name, value in values.items():
        if value > kept.setdefault(name, 0.0) or isnan(value):
            kept[name] = value


def largest(values: list[float]) -> float:
    """But for NaN, which stands for a value that is missing."""
    return max((value for value in values if not isnan(value)), default=0.0)


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def number(x: float) -> str:
    return "0.0" if x == 0 else f"{x:.1e}"


def show(record: Record, task: Task) -> None:
    """Prints the sentence, the table, and how well the twins do the task."""
    colour = "red" if record.failure else "yellow" if record.divergence else "green"
    scores = ", ".join(f"{NAMES[twin]} {score:.4g}" for twin, score in record.reached.items())
    solved = bool(scores) and all(map(task.is_solved, record.reached.values()))
    state = f"{'solved' if solved else 'not solved yet'} after {max(record.steps, default=0)} steps"
    reached = f"{task.metric} of {scores}" if scores else "no validation yet"
    goal = f"chance {task.chance:.4g}, solved at {task.solved:.4g}"
    standing = f"{type(task).__name__}: {state}, {reached}; {goal}"
    Console().print(f"[bold {colour}]{record.sentence()}[/]", record.table(), standing, sep="\n\n")
