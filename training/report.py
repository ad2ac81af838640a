"""What a run showed: a table at the end, a picture, and the verdict that becomes the exit code."""

from dataclasses import asdict
from math import inf, isfinite
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .callbacks import scores
from .curves import LOOKS, draw_run
from .gradients import Comparison
from .history import Extremes, History, pack, unpack, worse
from .side_by_side import SideBySide

COLUMNS = ("largest\nabsolute", "largest\nrelative", "times\nround-off", "first step\npast", "own\npaths")
CAPTION = """absolute, relative: at the weights that nn.RNN's twin had reached.
times round-off: in units of how far sound computations of this gradient
  differ (training/gradients.py); the tolerance is {tolerance:g}.
own paths: relative, between the gradients the twins trained with. Training
  amplifies round-off, so this grows even where every gradient is right."""


class Report(Callback):
    """Collects each step's comparison; at the end prints a table and draws a picture."""

    def __init__(self) -> None:
        self.extremes: dict[str, Extremes] = {}
        self.history = History()
        self.loss_difference = 0.0
        self.loss_drift = 0.0
        self.tolerance = inf
        self.diverged: dict[str, int] = {}

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, SideBySide)
        self.tolerance = module.tolerance

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, SideBySide)
        step = trainer.global_step
        self.note_losses(step, {name: loss.item() for name, loss in outputs["losses"].items()})
        if outputs["comparison"] is not None:
            self.note(step, outputs["comparison"])
        if not self.diverged:  # the twins' own paths: past that, nothing of theirs can be compared
            for name, drift in module.drift.items():
                of_name = self.extremes.setdefault(name, Extremes())
                of_name.drift = worse(of_name.drift, drift)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, SideBySide)
        if not trainer.sanity_checking:  # type: ignore[attr-defined]
            self.history.note_scores(trainer.global_step, scores(trainer, module))

    def note_losses(self, step: int, losses: dict[str, float]) -> None:
        self.history.note_losses(step, losses)
        for name, loss in losses.items():
            if not isfinite(loss):
                self.diverged.setdefault(name, step)
        if not self.diverged:
            self.loss_drift = worse(self.loss_drift, abs(losses["manual"] - losses["builtin"]))

    def note(self, step: int, comparison: Comparison) -> None:
        self.history.note_comparison(step, comparison)
        if comparison.diverged:
            self.diverged.setdefault("builtin", step)
        self.loss_difference = worse(self.loss_difference, comparison.loss)
        for name, parting in comparison.partings.items():
            of_name = self.extremes.setdefault(name, Extremes())
            of_name.absolute = worse(of_name.absolute, comparison.absolute[name])
            of_name.relative = worse(of_name.relative, comparison.relative[name])
            of_name.parting = worse(of_name.parting, parting)
            if of_name.first_step_past is None and not parting <= self.tolerance:  # NaN is past it too
                of_name.first_step_past = step

    def state_dict(self) -> dict[str, Any]:
        history = {name: pack(value) for name, value in asdict(self.history).items()}
        extremes = {name: asdict(e) for name, e in self.extremes.items()}
        losses = (self.loss_difference, self.loss_drift)
        return {"history": history, "extremes": extremes, "losses": losses, "diverged": self.diverged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = History(**{name: unpack(value) for name, value in state["history"].items()})
        self.extremes = {name: Extremes(**e) for name, e in state["extremes"].items()}
        self.loss_difference, self.loss_drift = state["losses"]
        self.diverged = state["diverged"]

    def show(self, trainer: Any, folder: str | None) -> None:
        """Prints table, verdict and scores, and draws the picture where there is a run folder."""
        console = Console()
        console.print(self.table(), self.verdict(), standing(trainer), sep="\n\n")
        if folder and not trainer.fast_dev_run:
            picture = Path(folder) / "side_by_side.png"
            draw_run(self.history, trainer.datamodule, self.tolerance, picture)
            paths = f"picture: {picture}\nrun folder: {folder}"
            console.print(paths, soft_wrap=True, highlight=False)

    def table(self) -> Table:
        title = f"Gradients of ManualRNN against nn.RNN, {len(self.history.compared)} steps compared"
        table = Table(
            title=title,
            caption=CAPTION.format(tolerance=self.tolerance),
            caption_justify="left",
            box=SIMPLE_HEAD,
        )
        table.add_column("parameter", no_wrap=True)
        for heading in COLUMNS:
            table.add_column(heading, justify="right")
        for name, e in self.extremes.items():
            past = "none" if e.first_step_past is None else str(e.first_step_past)
            figures = (number(e.absolute), number(e.relative), f"{e.parting:.2g}", past, number(e.drift))
            table.add_row(name, *figures)
        table.add_section()
        table.add_row(
            "the loss (absolute)", number(self.loss_difference), "", "", "", number(self.loss_drift)
        )
        return table

    def verdict(self) -> str:
        if self.failure:
            return f"[bold red]FAILED[/]: {self.failure}"
        if not self.history.compared:
            return "no gradients were compared"
        before = f"[bold yellow]{self.divergence}[/]; before that " if self.divergence else ""
        if self.bitwise_equal:
            return (
                before + "[bold green]bitwise equal[/]: every gradient, every loss, both twins' whole paths"
            )
        largest = max((e.parting for e in self.extremes.values()), default=0.0)
        return (
            f"{before}[bold green]equal to round-off[/]: the largest parting is {largest:.2g} times round-off"
        )

    @property
    def divergence(self) -> str | None:
        """Whose loss or gradients ceased to be finite, and when."""
        steps = {LOOKS[twin][0]: step for twin, step in sorted(self.diverged.items())}
        if len(steps) == 2 and len(set(steps.values())) == 1:
            return f"both diverged at step {min(steps.values())}"
        each = " and ".join(f"{name} at step {step}" for name, step in steps.items())
        return each and f"{'both' if len(steps) == 2 else 'one twin'} diverged, {each}"

    @property
    def bitwise_equal(self) -> bool:
        differences = [(e.absolute, e.drift) for e in self.extremes.values()]
        return not any((self.loss_difference, self.loss_drift, *(d for pair in differences for d in pair)))

    @property
    def failure(self) -> str | None:
        """The parameter whose gradient passed the tolerance first, and the step; None for a sound run."""
        past = [
            (e.first_step_past, name) for name, e in self.extremes.items() if e.first_step_past is not None
        ]
        if not past:
            return None
        step, name = min(past)
        return f"the gradient of {name} parted by more than {self.tolerance:g} times round-off at step {step}"


def standing(trainer: Any) -> str:
    """How well the twins do the task."""
    task, found = trainer.datamodule, scores(trainer, trainer.lightning_module)
    solved = bool(found) and all(map(task.is_solved, found.values()))
    values = ", ".join(f"{LOOKS[twin][0]} {value:.4g}" for twin, value in found.items())
    state = f"{'solved' if solved else 'not solved yet'} after {trainer.global_step} steps"
    reached = f"{task.metric} of {values}" if found else "no validation yet"
    goal = f"chance {task.chance:.4g}, solved at {task.solved:.4g}"
    return f"{type(task).__name__}: {state}, {reached}; {goal}"


def number(x: float) -> str:
    return "0.0" if x == 0 else f"{x:.1e}"
