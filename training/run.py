r"""A command line carried out: in a folder of its own, with a report at its end, and an exit code."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from .callbacks import scores
from .cli import REFUSALS, build
from .curves import draw_run
from .files import RUNS, new_folder
from .messages import ENDED, INTERRUPTED, told, usage_error
from .report import Record, show
from .twins import from_every_process

LATE = (
    "kernel ",  # which can't take this precision, say
    "Early stopping conditioned on metric",  # that isn't logged
)
"""How refusals begin that come after the first step."""


class Run:
    """One run of fit, validate, test or predict.

    Attributes:
        lab: the settings, and the task, the twins and the trainer that they built.
        folder: of this run alone; None where nothing is logged.
        record: what was seen of its steps.
    """

    def __init__(self, command: str, options: Sequence[str]) -> None:
        self.lab = build(command, options)
        self.trainer: Any = self.lab.trainer
        self.record: Record = self.lab.config_init.compare.record
        self.folder: Path | None = None

    def start(self) -> None:
        """Raises SystemExit with the exit code, where that isn't 0."""
        try:
            self.open_folder()
            self.run_stage()
        except SIGTERMException:
            sys.exit(ENDED)
        except SystemExit as exit:  # Lightning's after Ctrl-C has the code of a run that failed
            sys.exit(INTERRUPTED if self.trainer.interrupted else exit.code)
        except Exception as problem:
            if not self.is_refusal(problem):
                raise
            self.remove_folder()
            usage_error(told(problem))
        if self.lab.command == "fit":
            self.report()

    def open_folder(self) -> None:
        """Gives the run a folder, now that nothing of it was refused."""
        given = self.lab.config_init.trainer
        if given.logger is not None or given.fast_dev_run:
            return
        parent, name = RUNS / type(self.lab.datamodule).__name__, self.lab.config.name
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self.folder = new_folder(parent, name)
            name = self.folder.name
        self.trainer.loggers = loggers(parent.name, name or "")

    def run_stage(self) -> None:
        command, given = self.lab.command, self.lab.config
        options: Any = {"return_predictions": False} if command == "predict" else {}
        stage = getattr(self.trainer, command)
        stage(self.lab.model, datamodule=self.lab.datamodule, ckpt_path=given.ckpt_path, **options)

    @property
    def started(self) -> bool:
        return bool(self.trainer.global_step > self.lab.checkpoint.get("global_step", 0))

    def is_refusal(self, problem: Exception) -> bool:
        """Whether the user asked for a thing that can't be, rather than that this code is wrong."""
        late = isinstance(problem, MisconfigurationException) or str(problem).startswith(LATE)
        return late or (not self.started and isinstance(problem, REFUSALS))

    def remove_folder(self) -> None:
        """Of a run that hasn't begun."""
        if self.folder is not None and not self.started:
            shutil.rmtree(self.folder)
            for parent in (self.folder.parent, RUNS):
                if not any(parent.iterdir()):
                    parent.rmdir()

    def report(self) -> None:
        folder = self.trainer.log_dir  # every process has to ask for it
        if self.trainer.is_global_zero:
            show(self.record, self.trainer, scores(self.trainer))
        if self.trainer.is_global_zero and folder and not self.trainer.fast_dev_run:
            picture = Path(folder) / "side_by_side.png"
            draw_run(self.record, self.lab.datamodule, picture)
            print(f"picture: {picture}\nrun folder: {folder}")
        failures = [f for f in from_every_process(self.record.failure, self.trainer.world_size) if f]
        if failures:
            sys.exit(f"training: {failures[0]}")


def loggers(task: str, version: str) -> list[Logger]:
    """A CSV and a TensorBoard log in the folder ``runs/<task>/<version>``."""
    return [
        CSVLogger(RUNS, task, version),
        TensorBoardLogger(RUNS, task, version, default_hp_metric=False),
    ]


def run(command: str, options: Sequence[str]) -> None:
    """One command line. A file that can't be written is an error of one line."""
    try:
        Run(command, options).start()
    except OSError as problem:
        sys.exit(f"training: {problem}")
