r"""What a run showed: the record of its steps, and from it a sentence and a table."""

from dataclasses import asdict, dataclass, field
from functools import reduce
from math import isfinite, nan
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

NAMES = {"builtin": "nn.RNN", "manual": "ManualRNN"}
COLUMNS = ("largest\nabsolute", "largest\nrelative", "times\nround-off", "first step\npast", "own\npaths")
CAPTION = """absolute, relative: at the weights that nn.RNN's twin had reached.
times round-off: in units of how far sound computations of this gradient
  differ (training/compare.py); the tolerance is {tolerance:g}.
own paths: relative, between the gradients the twins trained with. Training
  amplifies round-off, so this grows even where every gradient is right."""


@dataclass
class Extremes:
    """The largest differences seen of one parameter.

    Attributes:
        absolute: ``max |g_manual - g_builtin|`` at the same weights.
        relative: the norm of that difference over the larger of the two gradients' norms.
        parting: the norm of that difference in units of round-off (``compare.py``).
        drift: relative, between the gradients that the twins trained with.
        first_step_past: the first step at which ``parting`` was beyond the tolerance.
    """

    absolute: float = 0.0
    relative: float = 0.0
    parting: float = 0.0
    drift: float = 0.0
    first_step_past: int | None = None


@dataclass(repr=False)
class Record:
    """Numbers step by step, and the largest of them: lists of equal length belong together.

    Attributes:
        tolerance: the parting beyond which a run has failed.
        losses: at each of ``steps``, by twin.
        partings: at each step ``compared``, in units of round-off, by parameter; NaN where none was left.
        scores: the task's metric after each step ``validated``, by twin.
        extremes: by parameter.
        loss_difference: the largest between the losses at the same weights.
        loss_drift: the largest between the losses of the twins' own paths.
        diverged: the step at which a twin's loss or gradients ceased to be finite, by twin.
    """

    tolerance: float = 16.0
    steps: list[int] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    compared: list[int] = field(default_factory=list)
    partings: dict[str, list[float]] = field(default_factory=dict)
    validated: list[int] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    extremes: dict[str, Extremes] = field(default_factory=dict)
    loss_difference: float = 0.0
    loss_drift: float = 0.0
    diverged: dict[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        reached = {twin: float(f"{score:.4g}") for twin, score in self.reached.items()}
        counts = f"{len(self.steps)} steps, {len(self.compared)} compared, {len(self.validated)} validations"
        return f"Record({counts}, scores at the end: {reached})"

    @property
    def reached(self) -> dict[str, float]:
        """The scores of the last validation."""
        return {twin: values[-1] for twin, values in self.scores.items()}

    def note_comparison(self, step: int, found: Comparison) -> None:
        add(self.compared, step, self.partings, found.partings)
        if found.diverged:
            self.diverged.setdefault("builtin", step)
        self.loss_difference = worse(self.loss_difference, found.loss)
        for name, parting in found.partings.items():
            of_name = self.extremes.setdefault(name, Extremes())
            of_name.absolute = worse(of_name.absolute, found.absolute[name])
            of_name.relative = worse(of_name.relative, found.relative[name])
            of_name.parting = worse(of_name.parting, parting)
            if of_name.first_step_past is None and not parting <= self.tolerance:  # NaN is past it too
                of_name.first_step_past = step

    def note_step(self, step: int, losses: dict[str, float], drift: dict[str, float] | None = None) -> None:
        """The losses, and as long as neither twin has diverged how far their own paths part."""
        add(self.steps, step, self.losses, losses)
        self.diverged = {name: step for name, loss in losses.items() if not isfinite(loss)} | self.diverged
        if self.diverged:
            return
        if losses:
            self.loss_drift = worse(self.loss_drift, abs(losses["manual"] - losses["builtin"]))
        for name, value in (drift or {}).items():
            of_name = self.extremes.setdefault(name, Extremes())
            of_name.drift = worse(of_name.drift, value)

    def note_scores(self, step: int, scores: dict[str, float]) -> None:
        add(self.validated, step, self.scores, scores)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: lists as tensors, which are read a hundred times as fast."""
        return apply_to_collection(asdict(self), list, lambda numbers: torch.from_numpy(np.array(numbers)))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        found = apply_to_collection(state, Tensor, Tensor.tolist) | {"tolerance": self.tolerance}
        extremes = {name: Extremes(**e) for name, e in found["extremes"].items()}
        vars(self).update(found, extremes=extremes)

    @property
    def largest_parting(self) -> float:
        return reduce(worse, (e.parting for e in self.extremes.values()), 0.0)

    @property
    def bitwise_equal(self) -> bool:
        """Whether every difference was exactly 0: of gradients, losses and the twins' own paths."""
        differences = [d for e in self.extremes.values() for d in (e.absolute, e.drift)]
        return not any((self.loss_difference, self.loss_drift, *differences))

    @property
    def failure(self) -> str | None:
        """The parameter whose gradient passed the tolerance first, and the step; None for a sound run."""
        past = [(e.first_step_past, n) for n, e in self.extremes.items() if e.first_step_past is not None]
        if not past:
            return None
        step, name = min(past)
        tolerance = f"the tolerance of {self.tolerance:g}"
        return f"the gradient of {name} parted by more than {tolerance} at step {step}"

    @property
    def divergence(self) -> str | None:
        """Whose loss or gradients ceased to be finite, and when."""
        steps = {NAMES[twin]: step for twin, step in sorted(self.diverged.items())}
        if len(steps) == 2 and len(set(steps.values())) == 1:
            return f"both diverged at step {min(steps.values())}"
        each = " and ".join(f"{name} at step {step}" for name, step in steps.items())
        return each and f"{'both' if len(steps) == 2 else 'one twin'} diverged, {each}"

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
        """The extremes of each parameter."""
        caption = CAPTION.format(tolerance=self.tolerance)
        columns = [Column("parameter", no_wrap=True), *(Column(name, justify="right") for name in COLUMNS)]
        table = Table(*columns, caption=caption, caption_justify="left", box=SIMPLE_HEAD)
        for name, e in self.extremes.items():
            past = "none" if e.first_step_past is None else str(e.first_step_past)
            figures = (number(e.absolute), number(e.relative), f"{e.parting:.2g}", past, number(e.drift))
            table.add_row(name, *figures)
        table.add_section()
        losses = (number(self.loss_difference), "", "", "", number(self.loss_drift))
        table.add_row("the loss (absolute)", *losses)
        return table


def add(steps: list[int], step: int, lists: dict[str, list[float]], values: dict[str, float]) -> None:
    """Adds a step, and its values to the lists of their names: to all of them, NaN where one has no value."""
    for name in {**lists, **values}:
        lists.setdefault(name, [nan] * len(steps)).append(values.get(name, nan))
    steps.append(step)


def worse(a: float, b: float) -> float:
    """The larger, where NaN is larger than anything."""
    return b if b != b or b > a else a


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
