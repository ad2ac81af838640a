"""python -m training: trains ManualRNN beside nn.RNN. `fit` where no subcommand is named."""

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from jsonargparse.typing import PositiveInt
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

from training.callbacks import StopWhenSolved, best_and_last
from training.checkpoints import read_settings
from training.commands import COMMANDS
from training.datamodule import Task
from training.report import Report
from training.side_by_side import SideBySide, from_every_process

DESCRIPTION = """Trains ManualRNN beside nn.RNN: the same initial weights, the same batches, and at the
end a table of how far their gradients parted. `fit` is the default: `python -m training` runs the adding
problem in under a minute. Besides those below there are `tasks`, `export` and `inspect`."""


class Laboratory(LightningCLI):
    """LightningCLI with the twins, the tasks, a run folder and a report."""

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            SideBySide,
            Task,
            subclass_mode_data=True,
            seed_everything_default=0,
            trainer_defaults={
                "accelerator": "cpu",
                "max_epochs": 12,
                "gradient_clip_val": 1.0,
                "log_every_n_steps": 10,
                "use_distributed_sampler": False,
                "enable_model_summary": False,
                "num_sanity_val_steps": 0,
            },
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "python -m training", "description": DESCRIPTION},
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--threads", type=PositiveInt, default=1, help="of torch on the CPU; small networks lose by more"
        )
        parser.add_argument(
            "--stop_when_solved", type=bool, default=True, help="stop once both twins have solved the task"
        )
        parser.add_argument(
            "--save_every",
            type=PositiveInt | None,
            default=None,
            help="steps between two writes of last.ckpt; each validation where none are given",
        )
        parser.add_optimizer_args((torch.optim.Optimizer,))
        parser.set_defaults({"optimizer": {"class_path": "Adam", "init_args": {"lr": 5e-3}}})
        for size in ("input_size", "output_size"):
            parser.link_arguments(f"data.{size}", f"model.{size}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        subcommand, *options = with_default_subcommand(args, list(self.subcommands()))
        self.config = parser.parse_args([subcommand, *defaults(options), *options])

    def _parse_ckpt_path(self) -> None:
        """Lightning's own lets a checkpoint's settings override the command line; ours yield to it."""

    def before_instantiate_classes(self) -> None:
        torch.set_num_threads(self._get(self.config, "threads"))
        optimizer = self._get(self.config, "optimizer").class_path.rpartition(".")[2]
        if optimizer == "LBFGS":  # one search direction for all parameters
            self.parser.error(f"expected an optimizer that moves each parameter by itself, got {optimizer}")

    def instantiate_classes(self) -> None:
        """What a constructor refuses is a usage error: its words, no traceback, and exit code 2."""
        try:
            super().instantiate_classes()
            self.datamodule.loader("train", self.model.tbptt_steps)
        except (ValueError, FileNotFoundError) as refusal:
            self.parser.error(str(refusal.__cause__ or refusal))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        task = self.datamodule
        assert isinstance(task, Task)
        if config["logger"] is None:
            kwargs["logger"] = loggers(type(task).__name__)
        callbacks: list[Callback] = [Report()]
        if self._get(self.config, "stop_when_solved"):
            callbacks.append(StopWhenSolved())
        if config["enable_checkpointing"] is not False:
            callbacks += best_and_last(task, self._get(self.config, "save_every"))
        return super().instantiate_trainer(callbacks=[*(config["callbacks"] or []), *callbacks], **kwargs)

    def after_fit(self) -> None:
        trainer: Any = self.trainer
        report = next(c for c in trainer.callbacks if isinstance(c, Report))
        folder = trainer.log_dir  # every process has to ask for it
        if report.history.compared and trainer.is_global_zero:
            report.show(trainer, folder)
        failures = [f for f in from_every_process(report.failure, trainer.world_size) if f]
        if failures:
            sys.exit(f"training: {failures[0]}")

    def predict(self, **kwargs: Any) -> None:
        """Writes what Lightning's predict returns."""
        predictions = self.trainer.predict(**kwargs)
        path = Path(self.trainer.log_dir or ".") / "predictions.pt"
        torch.save(predictions, path)
        print(f"predictions: {path}")


def loggers(name: str) -> list[Logger]:
    """A CSV and a TensorBoard log in one new folder, ``runs/<name>/version_<n>``."""
    csv = CSVLogger("runs", name)
    return [csv, TensorBoardLogger("runs", name, csv.version, default_hp_metric=False)]


def with_default_subcommand(args: list[str], subcommands: list[str]) -> list[str]:
    named = bool(args) and (args[0] in subcommands or args[0] in ("-h", "--help"))
    return args if named else ["fit", *args]


def defaults(options: list[str]) -> list[str]:
    """What comes before the options: those of a checkpoint's run where one is given; else the task's name.

    The task is named first, and not as the parser's default, because its parameters are handed on to a
    task that is named after it. A config comes later still, and names another task or only parameters.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt_path", type=Path)
    parser.add_argument("--data", default="Adding")
    given = parser.parse_known_args(options)[0]
    if given.ckpt_path and given.ckpt_path.is_file():
        return ["--config", json.dumps(read_settings(given.ckpt_path))]
    return ["--data", given.data]


def quieten() -> None:
    """Leaves out what Lightning says of devices and products, and what is meant to be as it is here."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.*is deprecated",  # Lightning 2.6 uses an old name of torch 2.13
        "The dirpath has changed from",  # a resumed run has a folder
        "Be aware that when using `ckpt_path`, callbacks",  # and checkpoints of its own
        "The '.*_dataloader' does not have many workers",  # a batch is drawn in a millisecond
        "The number of training batches",  # digits have fewer in a round than the logging interval
    ):
        warnings.filterwarnings("ignore", message=message)


def main(args: list[str] | None = None) -> None:
    quieten()
    given = sys.argv[1:] if args is None else args
    if given and given[0] in COMMANDS:
        command(given[0], given[1:])
    else:
        Laboratory(given)


def command(name: str, options: list[str]) -> None:
    prog = f"python -m training {name}"
    try:
        auto_cli(COMMANDS[name], args=options, as_positional=False, prog=prog)
    except (ValueError, FileNotFoundError) as refusal:
        sys.exit(f"{prog}: {refusal}")


if __name__ == "__main__":
    main()
