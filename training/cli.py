r"""The commands fit, validate, test and predict: LightningCLI with the twins, a task, a folder and a report.

Options stand over configs, and both over the settings of the run that a checkpoint is of. LightningCLI is
used without its own subcommands: its parser then has the options of one command.
"""

import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse.typing import PositiveInt, restricted_number_type
from lightning_fabric.plugins import CheckpointIO
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from . import TRAINER, as_list, quieten
from .__main__ import COMMANDS, as_words, grouped, prog
from .callbacks import Bar, CompareGradients, Settings, WritePredictions, best_and_last, stoppers
from .curves import draw_run
from .datamodule import Task
from .files import RUNS, STATE, WholeCheckpoints, find_checkpoint, new_folder, read_checkpoint
from .messages import ENDED, INTERRUPTED, InFewWords, told, usage_error
from .report import Record, show
from .resume import OTHER_RUN, GivenAnew, differences, in_words, why_finished
from .settings import (
    PACKAGE,
    allow_classes,
    attribute,
    check_run,
    in_braces,
    last_value,
    plain,
    read_config,
    settings_of,
)
from .twins import LEARNING_RATE, Twins, check_shapes, from_every_process

TASK, OPTIMIZER = "SequentialDigits", "Adam"
LATE = ("kernel ", "Early stopping conditioned on metric")
"""How refusals begin that come after the first step: of a precision, or of what isn't logged."""

Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])
Threads = restricted_number_type("Threads", int, [(">=", 1), ("<=", 1024)])

say = rank_zero_only(print)


class Laboratory(LightningCLI):
    """One command line: its settings, what they build, and the run.

    Attributes:
        checkpoint: the content of the one that the run goes on from.
        restored: the settings of that one's run.
        folder: of this run alone; None where nothing is logged.
    """

    def __init__(self, command: str, options: Sequence[str]) -> None:
        self.command = command
        self.folder: Path | None = None
        self.checkpoint: dict[str, Any] = {}
        self.restored: dict[str, Any] = {}
        parser: Any = {
            "prog": f"{prog()} {command}",
            "usage": "%(prog)s [options]",
            "description": COMMANDS[command],
            "allow_abbrev": False,
        }
        own: Any = {"parser_class": InFewWords, "parser_kwargs": parser, "args": list(options), "run": False}
        super().__init__(Twins, Task, save_config_callback=None, subclass_mode_data=True, **own)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add = parser.add_argument
        add("--ckpt_path", type=str | None, help="a checkpoint, or last or best of the newest run")
        add("--name", type=str | None, help="of the run's folder; else version_<n>")
        add("--seed_everything", type=Seed, default=0, help="of the weights, the batches and dropout")
        add("--threads", type=Threads, default=1, help="of torch on the CPU; small networks lose by more")
        add("--stop_when_solved", type=bool, default=True, help="stop once both twins have solved the task")
        add("--save_every", type=PositiveInt | None, help="steps between two more writes of last.ckpt")

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The help has them in this order: the twins' own, then what they are trained with."""
        parser.add_lightning_class_args(Twins, "model")
        parser.add_lightning_class_args(Task, "data", subclass_mode=True)
        parser.add_lightning_class_args(CompareGradients, "compare")
        parser.add_optimizer_args((torch.optim.Optimizer,))
        parser.set_defaults({"optimizer": {"class_path": OPTIMIZER, "init_args": {"lr": LEARNING_RATE}}})
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER.items()})
        for name in ("input_size", "output_size", "metric", "scored_steps"):
            parser.link_arguments("data", f"model.{name}", partial(attribute, name=name), "instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Settings of a checkpoint's run come first, then configs and options in their order.

        The task is named before all others, and not as the parser's default, whose parameters would be handed
        on to a task that is named after it.
        """
        assert isinstance(args, list)
        given = [(n, [*map(read_config, v)] if n == "--config" else v) for n, v in grouped(args)]
        allow_classes(given)
        options, ckpt_path = as_words(given), last_value("ckpt_path", given)
        if ckpt_path is None:
            task = as_words(option for option in given if option[0] == "--data")
            self.config = parser.parse_args([*(task or [f"--data={TASK}"]), *options])
            return
        path = find_checkpoint(str(ckpt_path), str(last_value("data", given) or "*").rpartition(".")[2])
        self.checkpoint = read_checkpoint(path, STATE if self.command == "fit" else ())
        self.restored = settings_of(self.checkpoint)
        allow_classes(given, no_others=True)
        self.config = parser.parse_args(["--config", in_braces(self.restored), *options])
        self.config.ckpt_path = str(path)
        say(f"restored: {path}, step {self.checkpoint.get('global_step')}, with all settings of its run")
        say(f"  given anew: {in_words(differences(self.settings, self.restored)) or 'none'}")
        if self.command == "fit" and (finished := why_finished(self.checkpoint, self.settings)):
            say(f"nothing is left to do: the run {finished}")
            sys.exit(0)

    @property
    def settings(self) -> dict[str, Any]:
        """Those in force, as ``config.yaml`` has them."""
        return {n: value for n, value in plain(self.config).items() if n != "config"} | {"ckpt_path": None}

    def before_instantiate_classes(self) -> None:
        if self.command != "fit" and self.config.ckpt_path is None:
            raise ValueError(f"expected --ckpt_path with {self.command}: a checkpoint, or last or best")
        check_run(self.config.trainer, self.config.optimizer.class_path)
        self.config.trainer.callbacks = as_list(self.config.trainer.callbacks)
        torch.set_num_threads(self.config.threads)
        self.config_dump = self.settings  # Lightning's own dump refuses the default of its Timer

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        self.datamodule.loader("train", self.model.tbptt_steps)
        if self.checkpoint:
            check_shapes(self.model, self.checkpoint["state_dict"], OTHER_RUN)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init.trainer
        self.record: Record = self.config_init.compare.record
        given, plugins = as_list(config.callbacks), as_list(config.plugins)
        if config.logger is None:
            kwargs["logger"] = False  # until there is a folder
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(WholeCheckpoints())
        callbacks = [*given, *stoppers(self.datamodule, self.config.stop_when_solved)]
        callbacks += [Settings(self.settings, self.record), WritePredictions("epoch")]
        if config.enable_checkpointing is not False:
            callbacks += best_and_last(self.datamodule, self.config.save_every)
        if config.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in given):
            callbacks.append(Bar())
        if self.checkpoint:
            callbacks.append(GivenAnew(self.restored, self.settings))
        return super().instantiate_trainer(plugins=plugins, callbacks=callbacks, **kwargs)

    def start(self) -> None:
        """Runs the command. Raises SystemExit with the exit code, where that isn't 0."""
        options: Any = {"return_predictions": False} if self.command == "predict" else {}
        options |= {"ckpt_path": self.config.ckpt_path, "weights_only": True}  # no code of a file runs
        try:
            self.open_folder()
            getattr(self.trainer, self.command)(self.model, datamodule=self.datamodule, **options)
        except SIGTERMException:
            self.stopped(ENDED)
        except SystemExit:  # Lightning's after Ctrl-C has the code of a run that failed
            if not self.trainer.interrupted:
                raise
            self.stopped(INTERRUPTED)
        except Exception as problem:
            self.refuse(problem)
        if self.command == "fit":
            self.report()

    def open_folder(self) -> None:
        """Gives the run a folder with a CSV and a TensorBoard log, now that nothing of it was refused."""
        given = self.config_init.trainer
        if given.logger is not None or given.fast_dev_run:
            return
        task, name = type(self.datamodule).__name__, self.config.name
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self.folder = new_folder(RUNS / task, name)
            name = self.folder.name
        board = TensorBoardLogger(RUNS, task, name or "", default_hp_metric=False)
        self.trainer.loggers = [CSVLogger(RUNS, task, name or ""), board]

    def stopped(self, code: int) -> NoReturn:
        """Says where an interrupted run is, and how it goes on. Raises SystemExit with the exit code."""
        if self.trainer.is_global_zero:
            folder = Path(self.trainer.log_dir or ".")
            print(f"\nstopped at step {self.trainer.global_step}; run folder: {folder}")
            if (last := folder / "checkpoints" / "last.ckpt").is_file():
                task = self.config.data.class_path
                named = "" if task.startswith(f"{PACKAGE}.") else f" --data {task}"
                print(f"it goes on with: {prog()} fit --ckpt_path {last}{named}")
        sys.exit(code)

    def refuse(self, problem: Exception) -> None:
        """Raises SystemExit for what can't be had, ``problem`` for a failed write, or one after a step."""
        begun = self.trainer.global_step > self.checkpoint.get("global_step", 0)
        late = isinstance(problem, MisconfigurationException) or str(problem).startswith(LATE)
        if isinstance(problem, OSError) or (begun and not late):
            raise problem
        if self.folder is not None and not begun:
            shutil.rmtree(self.folder)
            with suppress(OSError):  # of other runs
                self.folder.parent.rmdir()
                RUNS.rmdir()
        usage_error(told(problem, anywhere=True))

    def report(self) -> None:
        trainer: Any = self.trainer
        folder = trainer.log_dir  # every process has to ask for it
        if trainer.is_global_zero:
            show(self.record, self.datamodule)
            if folder and not trainer.fast_dev_run:
                picture = Path(folder) / "side_by_side.png"
                draw_run(self.record, self.datamodule, picture)
                print(f"picture: {picture}\nrun folder: {folder}")
        failures = [f for f in from_every_process(self.record.failure, trainer.world_size) if f]
        if failures:
            sys.exit(f"training: {failures[0]}")


def build(command: str, options: Sequence[str]) -> Laboratory:
    """What a command line asks for; what can't be had is a usage error of one line."""
    quieten()
    try:
        return Laboratory(command, options)
    except BrokenPipeError:
        raise
    except Exception as problem:  # whatever a class that was asked for raises
        usage_error(told(problem, anywhere=True))


def main(command: str, options: Sequence[str]) -> None:
    try:
        build(command, options).start()
    finally:  # threads of a process group that lives on may abort the process at its exit
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
