"""python -m training: trains ManualRNN beside nn.RNN. `fit` where no subcommand is named."""

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger

from training.checkpoints import read_settings
from training.report import Report
from training.side_by_side import SideBySide
from training.tasks import Task

DESCRIPTION = """Trains ManualRNN beside nn.RNN: the same initial weights, the same batches, and at the
end a table of how far their gradients parted. `fit` is the default: `python -m training` runs the adding
problem in under a minute."""


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
        parser.add_optimizer_args((torch.optim.Optimizer,))
        parser.set_defaults(
            {"data": "Adding", "optimizer": {"class_path": "Adam", "init_args": {"lr": 5e-3}}}
        )
        for size in ("input_size", "output_size"):
            parser.link_arguments(f"data.{size}", f"model.{size}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        given = sys.argv[1:] if args is None else args
        assert isinstance(given, list)
        subcommand, *options = with_default_subcommand(given, list(self.subcommands()))
        self.config = parser.parse_args([subcommand, *settings_of_checkpoint(options), *options])

    def _parse_ckpt_path(self) -> None:
        """Lightning's own lets a checkpoint's settings override the command line; ours yield to it."""

    def before_instantiate_classes(self) -> None:
        torch.set_num_threads(self._get(self.config, "threads"))

    def instantiate_classes(self) -> None:
        """What a constructor refuses is a usage error: its words, no traceback, and exit code 2."""
        try:
            super().instantiate_classes()
        except (ValueError, FileNotFoundError) as refusal:
            self.parser.error(str(refusal.__cause__ or refusal))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        if config["logger"] is None:
            kwargs["logger"] = CSVLogger("runs", name=type(self.datamodule).__name__)
        callbacks: list[Callback] = [Report()]
        if config["enable_checkpointing"] is not False:
            callbacks.append(ModelCheckpoint(save_last=True, save_on_exception=True))
        return super().instantiate_trainer(callbacks=[*(config["callbacks"] or []), *callbacks], **kwargs)

    def after_fit(self) -> None:
        trainer: Any = self.trainer
        report = next(c for c in trainer.callbacks if isinstance(c, Report))
        if report.history.compared and trainer.is_global_zero:
            saves = trainer.log_dir and not trainer.fast_dev_run
            report.show(Path(trainer.log_dir) if saves else None)
        if report.failure:
            sys.exit(f"training: {report.failure}")


def with_default_subcommand(args: list[str], subcommands: list[str]) -> list[str]:
    named = bool(args) and (args[0] in subcommands or args[0] in ("-h", "--help"))
    return args if named else ["fit", *args]


def settings_of_checkpoint(options: list[str]) -> list[str]:
    """The settings of the run that made the checkpoint in ``--ckpt_path``, as options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt_path", type=Path)
    path = parser.parse_known_args(options)[0].ckpt_path
    if path is None or not path.is_file():
        return []
    return ["--config", json.dumps(read_settings(path))]


def quieten() -> None:
    """Leaves out what Lightning says of devices and products, and its use of an old torch name."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)


def main(args: list[str] | None = None) -> None:
    quieten()
    Laboratory(args)


if __name__ == "__main__":
    main()
