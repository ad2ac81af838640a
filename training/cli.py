r"""The commands fit, validate, test and predict: LightningCLI with the twins, a task, a folder and a report.

Options stand over configs, and both over the settings of the run that a checkpoint is of. LightningCLI is
used without its own subcommands: its parser then has the options of one command, and ``run.py`` runs it.
"""

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import set_loader
from jsonargparse.typing import PositiveInt, restricted_number_type
from lightning_fabric.plugins import CheckpointIO
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateFinder, ProgressBar
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from .__main__ import prog
from .callbacks import Bar, CompareGradients, Interrupted, WritePredictions, best_and_last, scores
from .datamodule import Task
from .entry import TRAINER, as_list, callbacks_of_a_run, quieten
from .files import WholeCheckpoints, find_checkpoint, note_start, read_checkpoint, write_whole
from .messages import InFewWords, places, told, usage_error
from .options import (
    check_run,
    differences,
    flat,
    grouped,
    in_words,
    load_settings,
    options_named,
    plain,
    values_of,
    with_config_files,
)
from .resume import GivenAnew, check_state, check_weights, settings_of, why_finished
from .twins import LEARNING_RATE, Twins

TASK, OPTIMIZER = "SequentialDigits", "Adam"
Threads = restricted_number_type("Threads", int, [(">=", 1), ("<=", 1024)])
REFUSALS = (ValueError, FileNotFoundError, ImportError, NotImplementedError, MisconfigurationException)
"""Exceptions that say what can't be had, rather than that this code is wrong."""


class Parser(InFewWords, LightningArgumentParser):
    """Lightning's, with the project's words for a usage error."""


class Laboratory(LightningCLI):
    """One command line: its settings, and what they build: task, twins and trainer."""

    def __init__(self, command: str, options: Sequence[str]) -> None:
        self.command = command
        self.checkpoint: dict[str, Any] = {}
        self.restored: dict[str, Any] = {}
        own: Any = {"prog": f"{prog()} {command}", "usage": "%(prog)s [options]", "allow_abbrev": False}
        set_loader("yaml", load_settings, (yaml.YAMLError,))
        super().__init__(
            Twins,
            Task,
            save_config_callback=None,
            subclass_mode_data=True,
            seed_everything_default=0,
            trainer_defaults=TRAINER,
            parser_class=Parser,
            parser_kwargs=own,
            args=list(options),
            run=False,
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The twins and the task come before Lightning's many."""
        parser.add_lightning_class_args(Task, "data", subclass_mode=True)
        parser.add_lightning_class_args(Twins, "model")
        parser.add_lightning_class_args(CompareGradients, "compare")
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER.items()})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add = parser.add_argument
        add("--threads", type=Threads, default=1, help="of torch on the CPU; small networks lose by more")
        add("--stop_when_solved", type=bool, default=True, help="stop once both twins have solved the task")
        add("--save_every", type=PositiveInt | None, help="steps between two more writes of last.ckpt")
        add("--name", type=str | None, help="of the run's folder; else version_<n>")
        add("--ckpt_path", type=str | None, help="a checkpoint, or last or best of the newest run")
        parser.add_optimizer_args((torch.optim.Optimizer,))
        parser.set_defaults({"optimizer": {"class_path": OPTIMIZER, "init_args": {"lr": LEARNING_RATE}}})
        for name in ("input_size", "output_size", "metric", "scored_steps"):
            parser.link_arguments("data", f"model.{name}", partial(attribute, name=name), "instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Settings of a checkpoint's run come first, then configs and options in their order.

        The task is named before all others, and not as the parser's default, whose parameters would be handed
        on to a task that is named after it.
        """
        assert isinstance(args, list)
        options = with_config_files(args)
        task = options_named(["--data"], options) or [f"--data={TASK}"]
        deciding = options_named(["--data", "--config", "--ckpt_path"], options)
        first = parser.parse_args([*task, *deciding])
        if first.ckpt_path is None:
            self.config = parser.parse_args([*task, *options])
            return
        name = first.data.class_path.rpartition(".")[2]
        path = find_checkpoint(
            first.ckpt_path, name if name != TASK or "--data" in " ".join(options) else "*"
        )
        self.checkpoint = read_checkpoint(path)
        self.restored = settings_of(
            self.checkpoint, [value for group in grouped(options) for value in values_of(group)]
        )
        if self.command == "fit":
            check_state(self.checkpoint)
        self.config = parser.parse_args(["--config", json.dumps(self.restored), *options])
        self.config.ckpt_path = str(path)
        self.say_what_is_restored(parser, path)

    @property
    def settings(self) -> dict[str, Any]:
        """Those in force, as ``config.yaml`` has them."""
        settings: dict[str, Any] = plain(self.config)
        settings.pop("config", None)
        return settings | {"ckpt_path": None}

    @rank_zero_only
    def say_what_is_restored(self, parser: LightningArgumentParser, path: Path) -> None:
        of_the_run, now = flat(self.restored), flat(self.settings)
        default = flat(plain(parser.parse_args([f"--data={self.restored['data']['class_path']}"])))
        anew = differences({name: now[name] for name in of_the_run if name in now}, of_the_run)
        print(f"restored: {path}, step {self.checkpoint.get('global_step')}, with all settings of its run")
        print(f"  other than the defaults: {in_words(differences(of_the_run, default))}")
        print(f"  given anew: {in_words(anew)}")
        finished = self.command == "fit" and why_finished(self.checkpoint, self.settings)
        if finished:
            print(f"nothing is left to do: the run {finished}")
            sys.exit(0)

    def before_instantiate_classes(self) -> None:
        if self.command != "fit" and self.config.ckpt_path is None:
            raise ValueError(f"expected --ckpt_path with {self.command}: a checkpoint, or last or best")
        check_run(self.config.trainer, self.config.optimizer.class_path)
        torch.set_num_threads(self.config.threads)
        self.config_dump = self.settings  # Lightning's own dump refuses the default of its Timer

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        self.datamodule.loader("train", self.model.tbptt_steps)
        if self.checkpoint:
            check_weights(self.model, self.checkpoint)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init.trainer
        if any(isinstance(callback, LearningRateFinder) for callback in as_list(config.callbacks)):
            raise ValueError("expected no LearningRateFinder, which sets the rate of a model; see `sweep`")
        if config.logger is None:
            kwargs["logger"] = False  # until there is a folder
        plugins = as_list(config.plugins)
        own = any(isinstance(plugin, CheckpointIO) for plugin in plugins)
        kwargs["plugins"] = plugins if own else [*plugins, WholeCheckpoints()]
        kwargs["callbacks"] = [*as_list(config.callbacks), *self.own_callbacks(config)]
        return super().instantiate_trainer(**kwargs)

    def own_callbacks(self, config: Any) -> list[Callback]:
        """Those of the run besides CompareGradients, which LightningCLI adds, and those that are given."""
        own = callbacks_of_a_run(self.datamodule, self.config.stop_when_solved)
        own += [Settings(self.settings), Interrupted(), WritePredictions()]
        if config.enable_checkpointing is not False:
            own += best_and_last(self.datamodule, self.config.save_every)
        bars = [c for c in as_list(config.callbacks) if isinstance(c, ProgressBar)]
        if config.enable_progress_bar is not False and not bars:
            own.append(Bar())
        if self.checkpoint:
            own.append(GivenAnew(flat(self.restored), flat(self.settings)))
        return own


class Settings(Callback):
    """Keeps all settings: in ``config.yaml``, in every checkpoint, and as hyperparameters of the loggers."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.begun = settings, False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = trainer.log_dir  # every process has to ask for it
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            text = yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True)
            write_whole(Path(folder or ".") / "config.yaml", text.encode())
            for logger in trainer.loggers:
                logger.log_hyperparams(self.settings)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes that the run has begun, once its first step is made and nothing can refuse it any more."""
        if self.begun:
            return
        self.begun, folder = True, trainer.log_dir
        if trainer.is_global_zero and folder and trainer.loggers:
            note_start(Path(folder))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """TensorBoard compares runs by what they reached."""
        reached = {f"reached/{twin}": score for twin, score in scores(trainer).items()}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self.settings, reached)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["settings"] = self.settings


def attribute(task: Task, name: str) -> Any:
    """One of a checked task, as data: a checkpoint has it among the hyperparameters of the twins."""
    if name == "input_size":  # the first to be asked for
        task.check()
    return plain(getattr(task, name))


def build(command: str, options: Sequence[str]) -> Laboratory:
    """What a command line asks for; what can't be had is a usage error of one line."""
    quieten()
    try:
        return Laboratory(command, options)
    except UnicodeDecodeError as problem:
        usage_error(f"expected a config in UTF-8: {problem}")
    except Exception as problem:
        if not isinstance(problem, REFUSALS) and not places(problem):
            raise
        usage_error(told(problem))
