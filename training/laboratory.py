"""The commands fit, validate, test and predict: LightningCLI with twins, a task, a folder and a report."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse.typing import PositiveInt
from lightning_fabric.plugins import CheckpointIO
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import LearningRateFinder, ProgressBar
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from .callbacks import Bar, Interrupted, Settings, StopWhenDiverged, StopWhenSolved, best_and_last
from .checkpoints import find_checkpoint, misfit, read_checkpoint
from .datamodule import Task
from .entry import DEFAULTS, as_list
from .files import RUNS, WholeCheckpoints, new_folder
from .parser import Parser, usage_error
from .quiet import quieten
from .report import Report
from .resuming import GivenAnew, differences, flat, in_words, settings_of, why_finished
from .side_by_side import LEARNING_RATE, SideBySide, from_every_process

UNFIT = {
    "LBFGS": "moves each parameter by itself",  # it has one search direction for all
    "SparseAdam": "takes dense gradients",
}
REFUSALS = (ValueError, FileNotFoundError, ImportError, NotImplementedError, MisconfigurationException)


class Laboratory(LightningCLI):
    """LightningCLI with the twins, the tasks, a run folder and a report."""

    def __init__(self, args: ArgsType = None) -> None:
        self.folder: Path | None = None
        self.checkpoint: dict[str, Any] = {}
        self.restored: dict[str, Any] = {}
        super().__init__(
            SideBySide,
            Task,
            save_config_callback=Settings,
            save_config_kwargs={"overwrite": True},
            subclass_mode_data=True,
            seed_everything_default=0,
            trainer_defaults=DEFAULTS,
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
        parser.set_defaults({f"trainer.{name}": value for name, value in DEFAULTS.items()})

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
            help="steps between two more writes of last.ckpt than that of each validation",
        )
        parser.add_argument(
            "--name", type=str | None, default=None, help="of the run's folder; else version_<n>"
        )
        parser.add_optimizer_args((torch.optim.Optimizer,))
        parser.set_defaults({"optimizer": {"class_path": "Adam", "init_args": {"lr": LEARNING_RATE}}})
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
        task = options_named(["--data"], options) or ["--data=Adding"]
        deciding = options_named(["--data", "--config", "-c", "--ckpt_path"], options)
        first = parser.parse_args([command, *task, *deciding])[command]
        if first.ckpt_path is None:
            self.config = parser.parse_args([command, *task, *options])
            return
        path = self.read(first.ckpt_path, first.data.class_path.rpartition(".")[2])
        self.config = parser.parse_args([command, "--config", json.dumps(self.restored), *options])
        self.config[command].ckpt_path = str(path)
        self.say_what_is_restored(command, path)

    def read(self, given: str, task: str) -> Path:
        """Finds and reads the checkpoint that is given."""
        try:
            path = find_checkpoint(given, task)
            self.checkpoint = read_checkpoint(path)
            self.restored = settings_of(self.checkpoint)
        except (ValueError, FileNotFoundError) as refusal:
            self.refuse(refusal)
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
        print(f"restored: {path}, step {self.checkpoint['global_step']}, with all settings of its run")
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

    def before_instantiate_classes(self) -> None:
        torch.set_num_threads(self._get(self.config, "threads"))
        optimizer = self._get(self.config, "optimizer").class_path.rpartition(".")[2]
        if optimizer in UNFIT:
            usage_error(f"expected an optimizer that {UNFIT[optimizer]}, got {optimizer}")
        trainer = self._get(self.config, "trainer")
        if trainer["barebones"]:
            usage_error("expected a run that logs, for the report; got --trainer.barebones true")
        if str(trainer["strategy"]).startswith(("ddp_spawn", "ddp_fork", "ddp_notebook")):
            usage_error(
                "expected --trainer.strategy to leave the report in this process, as auto and ddp do; got "
                f"{trainer['strategy']}"
            )

    def instantiate_classes(self) -> None:
        """What a constructor refuses is a usage error: its words, no traceback, and exit code 2."""
        try:
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
            own.append(Bar(leave=True))
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
        except (RuntimeError, *REFUSALS) as refusal:
            of_a_kernel = str(refusal).startswith("kernel ")  # which can't take this precision, say
            started = self.trainer.global_step > self.checkpoint.get("global_step", 0)
            if started or not (of_a_kernel or isinstance(refusal, REFUSALS)):
                raise
            self.refuse(refusal)

    def refuse(self, refusal: Exception) -> NoReturn:
        if self.folder is not None:
            shutil.rmtree(self.folder)
            for parent in (self.folder.parent, RUNS):
                if not any(parent.iterdir()):
                    parent.rmdir()
        said = refusal.__cause__ if isinstance(refusal.__cause__, REFUSALS) else refusal
        usage_error(str(said))

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
        torch.save(predictions, path)
        print(f"predictions: {path}")


def options_named(names: list[str], options: Sequence[str]) -> list[str]:
    """The options of these names, each with its value: ``--name=value`` or ``--name value``."""
    return [
        word
        for before, word in zip(["", *options], options, strict=False)
        if word.split("=")[0] in names or before in names
    ]


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
    except SIGTERMException:
        sys.exit(143)
    except OSError as problem:
        sys.exit(f"training: {problem}")
