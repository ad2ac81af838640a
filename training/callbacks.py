"""What a run does by itself: stop when it should, keep its states and its settings, say where it is."""

from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from rich.console import Console

from .datamodule import Task
from .side_by_side import SideBySide

FOREVER = 10**9
ROOMY = 100
"""Columns of a terminal in which the speed has room beside the bar."""


def mode(task: Task) -> str:
    """Whether more or less of the task's metric is better, in Lightning's words."""
    return "max" if task.more_is_better else "min"


class StopWhenSolved(EarlyStopping):
    """Ends the training at the first validation in which both twins have solved the task."""

    NAME = "StopWhenSolved"

    def __init__(self, task: Task) -> None:
        super().__init__(
            f"val_{task.metric}/worse",
            mode=mode(task),
            patience=FOREVER,
            stopping_threshold=task.solved,
            check_on_train_epoch_end=False,
            check_finite=False,
        )

    @property
    def state_key(self) -> str:
        return self.NAME


class StopWhenDiverged(EarlyStopping):
    """Ends the training at the first validation in which a twin's loss is infinite or no number."""

    def __init__(self) -> None:
        super().__init__("val_loss/worse", patience=FOREVER, check_on_train_epoch_end=False)


def scores(trainer: Trainer, module: SideBySide) -> dict[str, float]:
    """Each twin's metric in the last validation, by its name; empty before the first one."""
    names = {twin: f"val_{module.task.metric}/{twin}" for twin in module.twins}
    found = trainer.callback_metrics
    return {twin: found[name].item() for twin, name in names.items() if name in found}


class Kept(ModelCheckpoint):
    """One checkpoint of a run, which is no other's that is named on the command line."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(filename=name, enable_version_counter=False, **options)

    @property
    def state_key(self) -> str:
        return f"{self.filename}, {super().state_key}"


def best_and_last(task: Task, save_every: int | None) -> list[Kept]:
    """``best.ckpt`` by ManualRNN's validation; ``last.ckpt`` at each too, and each ``save_every`` steps."""
    best = Kept("best", monitor=f"val_{task.metric}/manual", mode=mode(task))
    return [best, *(Kept("last", every_n_train_steps=steps) for steps in {None, save_every})]


class Bar(RichProgressBar):
    """A line of the terminal's width that stays for each epoch, with the validation of both twins."""

    def __init__(self) -> None:
        super().__init__(leave=True, theme=RichProgressBarTheme(metrics_format=".3g"))

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        epoch, bar, batches, *_, speed = super().configure_columns(trainer)
        bar.bar_width = 12
        return [epoch, bar, batches, *[speed] * (Console().width >= ROOMY)]

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        """With the task's metric named once, to fit eighty columns: ``mse/nn.RNN: 0.05 ManualRNN: 0.04``."""
        assert isinstance(module, SideBySide)
        metrics, found = super().get_metrics(trainer, module), scores(trainer, module)
        others = {name: value for name, value in metrics.items() if name != "v_num" and name[:4] != "val_"}
        if found:
            others |= {f"{module.task.metric}/nn.RNN": found["builtin"], "ManualRNN": found["manual"]}
        return others


class Settings(SaveConfigCallback):
    """Keeps all settings: in ``config.yaml``, in every checkpoint, and as hyperparameters of the loggers."""

    @property
    def settings(self) -> dict[str, Any]:
        dumped: dict[str, Any] = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        return dumped

    def save_config(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        for logger in trainer.loggers:
            logger.log_hyperparams(self.settings)

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """TensorBoard compares runs by what they reached."""
        assert isinstance(module, SideBySide)
        reached = {f"reached/{twin}": score for twin, score in scores(trainer, module).items()}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self.settings, reached)

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["settings"] = self.settings


class Interrupted(Callback):
    """Says where an interrupted run is, and how it goes on."""

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt | SIGTERMException) and trainer.is_global_zero:
            print(f"\nstopped at step {trainer.global_step}; run folder: {trainer.log_dir}")
            last = Path(trainer.log_dir or ".") / "checkpoints" / "last.ckpt"
            if last.is_file():
                print(f"it goes on with: python -m training fit --ckpt_path {last}")
