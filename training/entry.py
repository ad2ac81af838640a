"""Training from Python: the twins, a task, and options of Lightning's Trainer."""

from typing import Any

from pytorch_lightning import Trainer

from .callbacks import StopWhenDiverged, StopWhenSolved
from .datamodule import Task
from .history import History
from .options import TRAINER
from .quiet import quieten
from .report import Report
from .side_by_side import SideBySide


def train(task: Task, model: SideBySide | None = None, **trainer: Any) -> History:
    """Trains the twins on a task, and returns what was seen of every step.

    Args:
        task: what they learn.
        model: the twins; those with the task's sizes and their defaults where none are given.
        trainer: options of Lightning's ``Trainer``, over those of the command line's defaults.

    Raises:
        ArithmeticError: where a gradient of ManualRNN parted from nn.RNN's by more than the tolerance.
    """
    report = Report()
    model = model or SideBySide(task.size("input_size"), task.size("output_size"))
    options: dict[str, Any] = TRAINER | {"logger": False, "enable_checkpointing": False} | trainer
    callbacks = [report, StopWhenDiverged(), StopWhenSolved(task), *as_list(options.pop("callbacks", None))]
    quieten()
    Trainer(**options, callbacks=callbacks).fit(model, datamodule=task)
    if report.failure:
        raise ArithmeticError(report.failure)
    return report.history


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
