"""What a run does by itself: stop when its task is solved, and keep its best and its last state."""

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from training.datamodule import Task
from training.side_by_side import SideBySide


class StopWhenSolved(Callback):
    """Ends the training at the first validation in which both twins have solved the task."""

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, SideBySide)
        if not trainer.sanity_checking:  # type: ignore[attr-defined]
            trainer.should_stop |= all(map(module.task.is_solved, scores(trainer, module).values()))


def scores(trainer: Trainer, module: SideBySide) -> dict[str, float]:
    """Each twin's metric in the last validation, by its name; empty before the first one."""
    names = {twin: f"val_{module.task.metric}/{twin}" for twin in module.twins}
    found = trainer.callback_metrics
    return {twin: found[name].item() for twin, name in names.items() if name in found}


def best_and_last(task: Task, save_every: int | None) -> list[ModelCheckpoint]:
    """``best.ckpt`` by ManualRNN's validation; ``last.ckpt`` each ``save_every`` steps or validation."""
    best = ModelCheckpoint(
        filename="best",
        monitor=f"val_{task.metric}/manual",
        mode="max" if task.metric == "accuracy" else "min",
        enable_version_counter=False,
    )
    last = ModelCheckpoint(filename="last", every_n_train_steps=save_every, enable_version_counter=False)
    return [best, last]
