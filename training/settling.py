r"""Which settings a run has: options stand over configs, and both over those of a checkpoint's run."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning import Trainer
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI

from . import tasks  # noqa: F401  jsonargparse finds them among what is derived from Task
from .callbacks import Settings
from .checkpoints import read_checkpoint
from .datamodule import Task
from .folders import find_checkpoint
from .options import LEARNING_RATE, OPTIMIZER, TASK, TRAINER, add_options_of_a_run, grouped, name_of
from .parser import InFewWords, usage_error
from .resuming import check_state, differences, flat, in_words, settings_of, why_finished
from .side_by_side import SideBySide


class Parser(InFewWords, LightningArgumentParser):
    """Lightning's, with the project's words for a usage error."""


class Settled(LightningCLI):
    """LightningCLI with the options of the twins, a task and a run, and with those of a run that goes on."""

    def __init__(self, args: ArgsType = None) -> None:
        self.checkpoint: dict[str, Any] = {}
        self.restored: dict[str, Any] = {}
        super().__init__(
            SideBySide,
            Task,
            save_config_callback=Settings,
            save_config_kwargs={"overwrite": True},
            subclass_mode_data=True,
            seed_everything_default=0,
            trainer_defaults=TRAINER,
            parser_class=Parser,
            parser_kwargs={
                "prog": f"python -m {__package__}",
                "allow_abbrev": False,
                **{name: {"usage": "%(prog)s [options]"} for name in self.subcommands()},
            },
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, without a choice of how files are read: by weights alone."""
        return {name: {*skip, "weights_only"} for name, skip in LightningCLI.subcommands().items()}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The twins and the task come before Lightning's many."""
        parser.add_lightning_class_args(Task, "data", subclass_mode=True)
        parser.add_lightning_class_args(SideBySide, "model")
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER.items()})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_options_of_a_run(parser)
        parser.add_optimizer_args((torch.optim.Optimizer,))
        parser.set_defaults({"optimizer": {"class_path": OPTIMIZER, "init_args": {"lr": LEARNING_RATE}}})
        for size in ("input_size", "output_size"):
            parser.link_arguments("data", f"model.{size}", lambda task, s=size: task.size(s), "instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        try:
            self.settle(parser, *args)
        except UnicodeDecodeError as problem:
            usage_error(f"expected a config in UTF-8: {problem}")

    def settle(self, parser: LightningArgumentParser, command: str, *options: str) -> None:
        """Settings of a checkpoint's run come first, then configs and options in their order.

        The task is named before all others, and not as the parser's default, whose parameters would be handed
        on to a task that is named after it.
        """
        task = options_named(["--data"], options) or [f"--data={TASK}"]
        deciding = options_named(["--data", "--config", "--ckpt_path"], options)
        first = parser.parse_args([command, *task, *deciding])[command]
        if first.ckpt_path is None:
            self.config = parser.parse_args([command, *task, *options])
            return
        path = self.read(command, first.ckpt_path, first.data.class_path.rpartition(".")[2])
        self.config = parser.parse_args([command, "--config", json.dumps(self.restored), *options])
        self.config[command].ckpt_path = str(path)
        self.say_what_is_restored(command, path)

    def read(self, command: str, given: str, task: str) -> Path:
        """Finds and reads the checkpoint that is given, for a command."""
        try:
            path = find_checkpoint(given, task)
            self.checkpoint = read_checkpoint(path)
            self.restored = settings_of(self.checkpoint)
            if command == "fit":
                check_state(self.checkpoint)
        except (ValueError, FileNotFoundError) as refusal:
            usage_error(str(refusal))
        return path

    @property
    def settings(self) -> dict[str, Any]:
        """Those in force, as ``config.yaml`` has them."""
        command = self.config.subcommand
        dumped = self._parser(command).dump(self.config[command], skip_unset=False)
        return dict(yaml.safe_load(dumped), ckpt_path=None)

    @rank_zero_only
    def say_what_is_restored(self, command: str, path: Path) -> None:
        of_the_run, now = flat(self.restored), flat(self.settings)
        task = self.restored["data"]["class_path"]
        default = self._parser(command).parse_args([f"--data={task}"])
        plain = flat(yaml.safe_load(self._parser(command).dump(default, skip_unset=False)))
        print(f"restored: {path}, step {self.checkpoint.get('global_step')}, with all settings of its run")
        print(f"  other than the defaults: {in_words(differences(of_the_run, plain))}")
        print(
            f"  given anew: {in_words(differences({k: now[k] for k in of_the_run if k in now}, of_the_run))}"
        )
        finished = command == "fit" and why_finished(self.checkpoint, self.settings)
        if finished:
            print(f"nothing is left to do: the run {finished}")
            sys.exit(0)

    def _parse_ckpt_path(self) -> None:
        """Lightning's own lets a checkpoint's settings override the command line; ours yield to it."""


def options_named(names: list[str], options: Sequence[str]) -> list[str]:
    """The options of these names, each with its value."""
    return [word for group in grouped(options) if name_of(group) in names for word in group]
