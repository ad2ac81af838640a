r"""A run goes on as it was set: its own settings first, over them what the command line gives anew.

Settings out of a file are data. They may name classes of torch, of Lightning and of this package, with
arguments that are data too; any other class has to be named on the command line.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from pkgutil import resolve_name
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from torch import nn

from .callbacks import StopWhenSolved
from .datamodule import Task
from .files import CHECKPOINT
from .options import Flat, differences

NOT_RESTORED = ("ckpt_path", "name", "config")
STATE = ("optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step")
SOLVED = EarlyStoppingReason.STOPPING_THRESHOLD.value
PACKAGE = Task.__module__.rpartition(".")[0]
TRUSTED = ("torch", "pytorch_lightning", "lightning", "lightning_fabric")
DATA = (str, int, float, Path, timedelta, type(None))
CONTAINERS = (Union, UnionType, list, dict, tuple)


def settings_of(checkpoint: Mapping[str, Any], named: Iterable[str] = ()) -> dict[str, Any]:
    """The settings of the run that wrote a checkpoint, as its ``config.yaml`` has them.

    Those that said where the run began are left out: the checkpoint is where it goes on.

    Args:
        checkpoint: its content.
        named: words of the command line; a class that they name may stand in the settings.

    Raises:
        ValueError: for a checkpoint without settings, such as one of a plain ``Trainer``, and for settings
            that name other classes than those of torch, Lightning and this package.
    """
    try:
        settings = {n: value for n, value in checkpoint["settings"].items() if n not in NOT_RESTORED}
        model = {name: value for name, value in settings["model"].items() if name != "init_from"}
        data = {**settings["data"], "class_path": of_this_package(settings["data"]["class_path"])}
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f"expected {CHECKPOINT}, got one without the settings of its run") from None
    settings = {**settings, "model": model, "data": data}
    check_settings(settings, set(named))
    return settings


def of_this_package(class_path: str) -> str:
    """A task of this package by the name that the package has here: installed it is another one."""
    module, _, name = class_path.rpartition(".")
    return (
        f"{PACKAGE}.tasks.{name}" if module in ("training.tasks", "manual_rnn.training.tasks") else class_path
    )


def check_settings(settings: Mapping[str, Any], named: set[str]) -> None:
    """Raises ValueError for settings that would run code, or read another file of settings.

    jsonargparse takes a class or a function by its dotted path, and a class by a file that names one.
    """
    for name in ("data", "model", "compare", "optimizer", "lr_scheduler", "trainer"):
        if not isinstance(settings.get(name), Mapping | None):
            raise ValueError(f"expected settings of {name} in the checkpoint, got {settings[name]!r}")
    for name in ("callbacks", "logger", "plugins", "profiler", "strategy", "accelerator"):
        check_data(f"trainer.{name}", settings["trainer"].get(name), named)
    for spec in specs(settings):
        check_class(spec, named)


def check_data(name: str, value: Any, named: set[str]) -> None:
    """Raises ValueError for a text that would be taken for a path to code."""
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and text not in named and ("." in text or Path(text).exists()):
            raise ValueError(f"expected data as {name} in the checkpoint, got {text}")


def specs(value: Any) -> Iterator[Mapping[str, Any]]:
    """Everything in settings that names a class, however deep."""
    if isinstance(value, Mapping):
        if "class_path" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from specs(part)


def check_class(spec: Mapping[str, Any], named: set[str]) -> None:
    """Raises ValueError for a class that may not stand in a file, or for an argument of it that is code."""
    path = str(spec["class_path"])
    if path in named:
        return
    if not path.startswith(tuple(f"{package}." for package in (*TRUSTED, PACKAGE))):
        raise ValueError(f"expected {path}, which the checkpoint asks for, to be named: --data {path}, say")
    try:
        kind = resolve_name(path)
    except (ImportError, AttributeError, ValueError) as problem:
        raise ValueError(f"expected a class in the checkpoint's settings, got {path}: {problem}") from None
    if not isinstance(kind, type) or not kind.__module__.startswith((*TRUSTED, PACKAGE)):
        raise ValueError(f"expected a class of torch or Lightning in the checkpoint's settings, got {path}")
    for name, value in {**spec.get("init_args", {}), **spec.get("dict_kwargs", {})}.items():
        if not takes_data(kind, name):
            check_data(f"{name} of {kind.__name__}", value, named)


def takes_data(kind: type, argument: str) -> bool:
    """Whether a parameter of a class, or of the base that has it, is declared to be text or numbers alone."""
    for base in kind.__mro__:
        try:
            hints = get_type_hints(base.__init__)  # type: ignore[misc]
        except (AttributeError, NameError, TypeError):  # names that are imported for type checkers alone
            continue
        if argument in hints:
            return is_data(hints[argument])
    return False


def is_data(hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return True
    if get_args(hint):
        return get_origin(hint) in CONTAINERS and all(map(is_data, get_args(hint)))
    return isinstance(hint, type) and issubclass(hint, DATA)


def check_state(checkpoint: Mapping[str, Any]) -> None:
    """Raises ValueError where a checkpoint hasn't what a training goes on from."""
    missing = [part for part in STATE if part not in checkpoint]
    if missing:
        raise ValueError(f"expected a checkpoint to go on from, got one without {', '.join(missing)}")


def check_weights(model: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Raises ValueError where weights of a checkpoint don't fit the model, for the first of them."""
    expected = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    got = {name: tuple(p.shape) for name, p in checkpoint["state_dict"].items()}
    for name in {**expected, **got}:
        if expected.get(name) != got.get(name):
            raise ValueError(
                f"expected {name} of shape {expected.get(name)}, got {got.get(name)} in the checkpoint; "
                "a run goes on with its own task and sizes"
            )


def why_finished(checkpoint: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """Why a run with these settings has no step left to make; None where it has."""
    trainer, step = settings["trainer"], checkpoint["global_step"]
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if trainer["max_epochs"] is not None and 0 <= trainer["max_epochs"] <= epochs:
        return f"has made its {epochs} epochs, {step} steps; --trainer.max_epochs says how many more"
    if 0 <= trainer["max_steps"] <= step:
        return f"has made its {step} steps; --trainer.max_steps says how many more"
    stopping = checkpoint["callbacks"].get(StopWhenSolved.NAME)
    if settings["stop_when_solved"] and stopping and stopping["stopping_reason"] == SOLVED:
        return f"has solved its task at step {step}; --stop_when_solved false trains on"
    return None


class GivenAnew(Callback):
    """Lets options of the optimizer and the scheduler take effect over what a checkpoint remembers of both.

    Of another class each begins anew. A new learning rate scales the whole schedule.
    """

    def __init__(self, before: Flat, now: Flat) -> None:
        self.before = before
        self.optimizer = differences(chosen(now, "optimizer"), before)
        self.scheduler = differences(chosen(now, "lr_scheduler"), before)

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if "optimizer" in self.optimizer:
            checkpoint["optimizer_states"] = []
        if {"optimizer", "lr_scheduler"} & {*self.optimizer, *self.scheduler}:
            checkpoint["lr_schedulers"] = []
        anew = {name.removeprefix("optimizer."): value for name, value in self.optimizer.items()}
        for state in checkpoint.get("optimizer_states", []):
            for group in state["param_groups"]:
                lr = self.learning_rate(group["lr"], anew)
                group.update(anew, lr=lr, initial_lr=anew.get("lr", group.get("initial_lr", lr)))
        for state in checkpoint.get("lr_schedulers", []):
            state.update({name.removeprefix("lr_scheduler."): v for name, v in self.scheduler.items()})
            if "lr" in anew:
                state["base_lrs"] = [anew["lr"]] * len(state.get("base_lrs", []))

    def learning_rate(self, reached: float, anew: Mapping[str, Any]) -> float:
        """``reached``, in proportion to the new one."""
        before = self.before.get("optimizer.lr")
        if "lr" not in anew or not before or reached == before:
            return float(anew.get("lr", reached))
        return reached * anew["lr"] / before


def chosen(settings: Flat, name: str) -> Flat:
    """Those of one option and of its own options."""
    return {key: value for key, value in settings.items() if key == name or key.startswith(f"{name}.")}
