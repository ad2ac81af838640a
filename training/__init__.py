r"""A laboratory that trains ManualRNN beside nn.RNN: ``train``, and ``python -m training`` from a shell.

Lightning takes seconds to load, so ``train`` imports it when it is called.
"""

import logging
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .callbacks import CompareGradients
    from .datamodule import Task
    from .report import Record
    from .twins import Twins

__all__ = ["train"]
TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "max_epochs": 20,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "enable_autolog_hparams": False,
}
"""Options of Lightning's Trainer, where they are other than its own."""
LEFT_OUT = (
    ".*LeafSpec.*is deprecated",  # Lightning 2.6 uses an old name of torch 2.13
    "The dirpath has changed from",  # a resumed run has a folder
    "Be aware that when using `ckpt_path`, callbacks",  # and checkpoints of its own
    "The '.*_dataloader' does not have many workers",  # a batch is drawn in a millisecond
    "The number of training batches",  # digits have fewer in a round than the logging interval
    "Couldn't infer the batch indices",  # a task's batches have none
    r"`ModelCheckpoint\(monitor='val_",  # a run that ends before its first validation has no best one
    ".*configure_optimizers` will be overridden",  # by that of --optimizer
)
"""Warnings of what is meant to be so."""


def train(
    task: "Task",
    model: "Twins | None" = None,
    compare: "CompareGradients | None" = None,
    stop_when_solved: bool = True,
    **trainer: Any,
) -> "Record":
    r"""Trains the twins on a task, and returns what was seen of every step.

    Args:
        task: what they learn.
        model: the twins; those with the task's sizes and their defaults where none are given.
        compare: how often gradients are compared, and how strictly; every step by default.
        stop_when_solved: whether the run ends once both twins have solved the task.
        trainer: options of Lightning's ``Trainer``, over those of the command line's defaults.

    Raises:
        ArithmeticError: where a gradient of ManualRNN parted from nn.RNN's by more than the tolerance.
        ValueError: for a task that isn't whole, or whose batches don't fit its sizes.

    Example:
        >>> record = train(Parity(length=5), max_epochs=2)
        >>> print(record.sentence())
        200 steps, 6 parameters: every gradient equal to nn.RNN's to round-off; the largest difference ...
    """
    from pytorch_lightning import Trainer

    from .callbacks import CompareGradients, stoppers
    from .twins import Twins

    quieten()
    task.check()
    compare = compare or CompareGradients()
    options = {**TRAINER, "logger": False, "enable_checkpointing": False, **trainer}
    given = as_list(options.pop("callbacks", None))
    callbacks = [compare, *stoppers(task, stop_when_solved), *given]
    Trainer(**options, callbacks=callbacks).fit(model or Twins.for_task(task), datamodule=task)
    if compare.record.failure:
        raise ArithmeticError(compare.record.failure)
    return compare.record


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def quieten() -> None:
    """Leaves out Lightning's news of devices and products, and warnings of what is meant to be so."""
    for source in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed"):
        logging.getLogger(source).setLevel(logging.WARNING)
    for message in LEFT_OUT:
        warnings.filterwarnings("ignore", message=message)
