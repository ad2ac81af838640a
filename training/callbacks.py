"""What happens beside the training: comparing, stopping, keeping states and settings, the progress bar."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter, EarlyStopping, ModelCheckpoint, RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console
from torch.optim import Optimizer

from .compare import compare, relative_differences
from .datamodule import Task, at_least
from .files import note_start, save_whole, write_whole
from .report import NAMES, Record
from .twins import Twins


class CompareGradients(Callback):
    r"""Compares the gradients of two networks at the same weights, step by step, while a module trains.

    The module, anybody's, has the networks as ``builtin`` and ``manual``, with parameters of the same names,
    and a method ``loss(network, batch)``. The comparison comes before the training step, which it doesn't
    touch. Where ``training_step`` returns a dictionary with the networks' ``losses``, these are noted too.

    Args:
        every_n_steps: steps between two comparisons.
        tolerance: how far a gradient may part, in units of round-off, before the run has failed.

    Attributes:
        record: what was seen, a :class:`training.report.Record`; ``record.failure`` is None for a sound run.

    Raises:
        ValueError: for an argument out of range, and in ``setup`` for a module without such networks.

    Example:
        >>> compared = CompareGradients(every_n_steps=10)
        >>> Trainer(max_epochs=3, callbacks=compared).fit(module, loader)
        >>> print(compared.record.sentence())
    """

    def __init__(self, every_n_steps: int = 1, tolerance: float = 16.0) -> None:
        at_least(1, every_n_steps=every_n_steps)
        at_least(0, tolerance=tolerance)
        self.every_n_steps, self.record = every_n_steps, Record(float(tolerance))
        self.drift: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        missing = [name for name in ("builtin", "manual", "loss") if not hasattr(pl_module, name)]
        if missing:
            raise ValueError(
                "expected a module with two networks, builtin and manual, and a method loss(network, batch); "
                f"{type(pl_module).__name__} has no {', no '.join(missing)}"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        step, networks = trainer.global_step, (pl_module.builtin, pl_module.manual)
        if step % self.every_n_steps:
            return
        with trainer.precision_plugin.train_step_context():
            found = compare(*networks, pl_module.loss, batch, self.record.tolerance, seed=step)
        self.record.note_comparison(step + 1, found)
        pl_module.log_dict({f"gradient/{name}": value for name, value in found.absolute.items()})

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Measures how far the gradients that the networks train with have parted."""
        manual, builtin = (
            {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
            for network in (pl_module.manual, pl_module.builtin)
        )
        self.drift = relative_differences(manual, builtin)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        losses = outputs.get("losses", {}) if isinstance(outputs, Mapping) else {}
        numbers = {name: torch.as_tensor(loss).item() for name, loss in losses.items()}
        self.record.note_step(trainer.global_step, numbers, self.drift)

    def on_validation_end(self, trainer: Any, pl_module: LightningModule) -> None:
        if isinstance(pl_module, Twins) and not trainer.sanity_checking:
            metric, found = pl_module.objective.metric, trainer.callback_metrics
            scores = {twin: found[f"val_{metric}/{twin}"].item() for twin in NAMES}
            self.record.note_scores(trainer.global_step, scores)

    def state_dict(self) -> dict[str, Any]:
        return self.record.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.record.load_state_dict(state)


class Stopper(EarlyStopping):
    """Ends the training at a validation; its state is kept apart from that of a user's EarlyStopping."""


def stoppers(task: Task, stop_when_solved: bool) -> list[Callback]:
    """Of a twin whose loss is infinite or no number, and of a task that both twins have solved."""
    rule: Any = {"patience": 10**9, "check_on_train_epoch_end": False}
    goal: Any = {"mode": task.objective.mode, "stopping_threshold": task.solved, "check_finite": False}
    solved = Stopper(f"val_{task.metric}/worse", **rule, **goal)
    return [Stopper("val_loss/worse", **rule), *([solved] if stop_when_solved else [])]


class Kept(ModelCheckpoint):
    """One checkpoint of a run; the class keeps its state apart from that of a user's ModelCheckpoint."""


def best_and_last(task: Task, save_every: int | None) -> list[Callback]:
    """``best.ckpt`` by ManualRNN's validation; ``last.ckpt`` at each too, and each ``save_every`` steps.

    They are ModelCheckpoints of their own: ``save_last`` of the first would keep the state of the best one.
    """
    one_file: Any = {"enable_version_counter": False}
    best = Kept(filename="best", monitor=f"val_{task.metric}/manual", mode=task.objective.mode, **one_file)
    steps = {None, save_every}
    return [best, *(Kept(filename="last", every_n_train_steps=n, **one_file) for n in steps)]


class Bar(RichProgressBar):
    """A line of the terminal's width that stays for each epoch, with the validation of both twins."""

    def __init__(self) -> None:
        super().__init__(leave=True, theme=RichProgressBarTheme(metrics_format=".3g"))

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        epoch, bar, batches, *_, speed = super().configure_columns(trainer)
        bar.bar_width = 12
        return [epoch, bar, batches, speed] if Console().width >= 100 else [epoch, bar, batches]

    def get_metrics(self, trainer: Trainer, pl_module: Any) -> dict[str, Any]:
        """With the task's metric named once, to fit eighty columns: ``mse/nn.RNN: 0.05 ManualRNN: 0.04``."""
        metric = pl_module.objective.metric
        short = {f"val_{metric}/builtin": f"{metric}/nn.RNN", f"val_{metric}/manual": "ManualRNN"}
        return {short.get(name, name): value for name, value in trainer.progress_bar_metrics.items()}


class Settings(Callback):
    """Keeps all settings: in ``config.yaml``, in every checkpoint, and as hyperparameters of the loggers."""

    def __init__(self, settings: dict[str, Any], record: Record) -> None:
        self.settings, self.record, self.noted = settings, record, False

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        folder = trainer.log_dir  # every process has to ask for it
        if trainer.is_global_zero and not trainer.fast_dev_run:
            text = yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True)
            write_whole(Path(folder or ".") / "config.yaml", text.encode())
            for logger in trainer.loggers:
                logger.log_hyperparams(self.settings)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """TensorBoard compares runs by what they reached."""
        reached = {f"reached/{twin}": score for twin, score in self.record.reached.items()}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self.settings, reached)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Notes with the first checkpoint that there is a run whose ``last`` and ``best`` can be meant.

        Lightning counts an epoch that ``max_steps`` cut off as a whole one; a run goes on with its rest.
        """
        checkpoint["settings"] = self.settings
        progress = checkpoint["loops"]["fit_loop"]
        if not progress["epoch_loop.batch_progress"]["is_last_batch"]:
            for counts in progress["epoch_progress"].values():
                counts["processed"] = counts["completed"]
        folder = trainer.log_dir
        if not self.noted and trainer.is_global_zero and folder and trainer.loggers:
            note_start(Path(folder))
        self.noted = True


class WritePredictions(BasePredictionWriter):
    """Writes all predictions into ``predictions.pt`` of the run folder; each process writes its own file."""

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Any, batch_indices: Any
    ) -> None:
        process = f"_{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = Path(trainer.log_dir or ".") / f"predictions{process}.pt"
        save_whole(predictions, path)
        print(f"predictions: {path}")
