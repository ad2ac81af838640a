"""The commands fit, validate, test and predict: LightningCLI with twins, a task, a folder and a report."""

import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning_fabric.plugins import CheckpointIO
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import LearningRateFinder, ProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from .callbacks import Bar, Interrupted, StopWhenDiverged, StopWhenSolved, best_and_last
from .checkpoints import misfit
from .datamodule import Task
from .entry import as_list
from .files import WholeCheckpoints, save_whole
from .folders import RUNS, new_folder
from .options import ENDED, INTERRUPTED, check_run
from .parser import in_few_words, usage_error
from .quiet import quieten
from .report import Report
from .resuming import GivenAnew, flat
from .settling import Settled
from .side_by_side import from_every_process

REFUSALS = (ValueError, FileNotFoundError, ImportError, NotImplementedError, MisconfigurationException)
LATE = (
    "kernel ",  # which can't take this precision, say
    "Early stopping conditioned on metric",  # that isn't logged
)


class Laboratory(Settled):
    """LightningCLI with the twins, the tasks, a run folder and a report."""

    folder: Path | None = None

    def before_instantiate_classes(self) -> None:
        torch.set_num_threads(self._get(self.config, "threads"))

    def instantiate_classes(self) -> None:
        """What a constructor refuses is a usage error: its words, no traceback, and exit code 2."""
        try:
            check_run(self._get(self.config, "trainer"), self._get(self.config, "optimizer").class_path)
            super().instantiate_classes()
            self.datamodule.loader("train", self.model.tbptt_steps)
            if self.checkpoint:
                misfit(self.model, self.checkpoint)
        except REFUSALS as refusal:
            self.refuse(refusal)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        if any(isinstance(callback, LearningRateFinder) for callback in as_list(config["callbacks"])):
            raise ValueError("expected no LearningRateFinder, which sets the rate of a model; see `sweep`")
        if config["logger"] is None:
            kwargs["logger"] = False  # until there is a folder
        kwargs["plugins"] = with_whole_checkpoints(as_list(config["plugins"]))
        given: list[Callback] = as_list(config["callbacks"])
        return super().instantiate_trainer(callbacks=[*given, *self.own_callbacks(config, given)], **kwargs)

    def own_callbacks(self, config: Any, given: list[Callback]) -> list[Callback]:
        task = self.datamodule
        assert isinstance(task, Task)
        own: list[Callback] = [Report(), Interrupted(), StopWhenDiverged()]
        if self._get(self.config, "stop_when_solved"):
            own.append(StopWhenSolved(task))
        if config["enable_checkpointing"] is not False:
            own += best_and_last(task, self._get(self.config, "save_every"))
        if config["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in given):
            own.append(Bar())
        if self.checkpoint:
            own.append(GivenAnew(flat(self.restored), flat(self.settings)))
        return own

    def open_folder(self) -> None:
        """Gives the run a folder, now that nothing of it was refused."""
        config = self._get(self.config_init, "trainer")
        if config["logger"] is not None or config["fast_dev_run"]:
            return
        parent, name = RUNS / type(self.datamodule).__name__, self._get(self.config, "name")
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self.folder = new_folder(parent, name)
            name = self.folder.name
        self.trainer.loggers = loggers(parent.name, name or "")

    before_fit = before_validate = before_test = before_predict = open_folder

    def _run_subcommand(self, subcommand: str) -> None:
        """What Lightning refuses before the first step is a usage error too, and leaves no folder."""
        try:
            super()._run_subcommand(subcommand)
        except SIGTERMException:
            sys.exit(ENDED)
        except SystemExit as exit:  # Lightning's after Ctrl-C has the code of a run that failed
            sys.exit(INTERRUPTED if self.trainer.interrupted else exit.code)
        except (RuntimeError, *REFUSALS) as refusal:
            if not self.is_of_the_settings(refusal):
                raise
            self.refuse(refusal)

    @property
    def started(self) -> bool:
        return self.trainer.global_step > self.checkpoint.get("global_step", 0)

    def is_of_the_settings(self, refusal: Exception) -> bool:
        """Whether the user asked for what can't be, rather than that this code is wrong."""
        late = isinstance(refusal, MisconfigurationException) or str(refusal).startswith(LATE)
        return late or (not self.started and isinstance(refusal, REFUSALS))

    def refuse(self, refusal: Exception) -> NoReturn:
        """Ends with a usage error; of a run that hasn't begun without its folder."""
        if self.folder is not None and not self.started:
            shutil.rmtree(self.folder)
            for parent in (self.folder.parent, RUNS):
                if not any(parent.iterdir()):
                    parent.rmdir()
        said = refusal.__cause__ if isinstance(refusal.__cause__, REFUSALS) else refusal
        usage_error(in_few_words(str(said), self.parser))

    def after_fit(self) -> None:
        trainer: Any = self.trainer
        report = next(c for c in trainer.callbacks if isinstance(c, Report))
        folder = trainer.log_dir  # every process has to ask for it
        if trainer.is_global_zero:
            report.show(trainer, folder)
        failures = [f for f in from_every_process(report.failure, trainer.world_size) if f]
        if failures:
            sys.exit(f"training: {failures[0]}")

    def predict(self, **kwargs: Any) -> None:
        """Writes what Lightning's predict returns."""
        predictions = self.trainer.predict(**kwargs)
        path = Path(self.trainer.log_dir or ".") / "predictions.pt"
        save_whole(predictions, path)
        print(f"predictions: {path}")


def with_whole_checkpoints(plugins: list[Any]) -> list[Any]:
    own = any(isinstance(plugin, CheckpointIO) for plugin in plugins)
    return plugins if own else [*plugins, WholeCheckpoints()]


def loggers(task: str, version: str) -> list[Logger]:
    """A CSV and a TensorBoard log in the folder ``runs/<task>/<version>``."""
    return [
        CSVLogger(RUNS, task, version),
        TensorBoardLogger(RUNS, task, version, default_hp_metric=False),
    ]


def run(name: str, options: list[str]) -> None:
    """One command line. A file that can't be written is an error of one line, and SIGTERM no success."""
    quieten()
    try:
        Laboratory([name, *options])
    except OSError as problem:
        sys.exit(f"training: {problem}")
