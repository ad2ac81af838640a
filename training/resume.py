r"""A run goes on as it was set: its own settings first, over them what the command line gives anew.

Settings out of a file are data. They may name classes of torch, of Lightning and of this package, with
arguments that are data too; any other class has to be named on the command line.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args, get_origin, get_type_hints

from jsonargparse import Namespace
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from torch import nn

from .callbacks import StopWhenSolved
from .datamodule import Task
from .files import CHECKPOINT

NOT_RESTORED = ("ckpt_path", "name")
STATE = ("optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step")
SOLVED = EarlyStoppingReason.STOPPING_THRESHOLD.value
PACKAGE = Task.__module__.rpartition(".")[0]
TRUSTED = ("torch", "pytorch_lightning", "lightning", "lightning_fabric")
NO_DATA = object()
Flat = dict[str, Any]


def plain(value: Any) -> Any:
    """Settings as data that YAML and ``weights_only`` can hold.

    An object that has no such form, like a default ``torch.device``, is left out: when the settings are read
    again, the default holds again.
    """
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        found = {str(name): plain(part) for name, part in value.items()}
        return {name: part for name, part in found.items() if part is not NO_DATA}
    if isinstance(value, list | tuple | set):
        return [part for part in map(plain, value) if part is not NO_DATA]
    if isinstance(value, Enum):
        return plain(value.value)
    for kind in (str, int, float):  # of which settings are subclasses, such as PositiveInt
        if isinstance(value, kind) and not isinstance(value, bool):
            return kind(value)
    if isinstance(value, Path):
        return str(value)
    return value if value is None or isinstance(value, bool) else NO_DATA


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
    """Raises ValueError for settings that would run code, or read another file of settings."""
    for name in ("data", "model", "optimizer", "lr_scheduler", "trainer", "compare"):
        if not isinstance(settings.get(name), Mapping | None):
            raise ValueError(f"expected settings of {name} in the checkpoint, got {settings[name]!r}")
    for name in ("callbacks", "logger", "plugins", "profiler", "strategy", "accelerator"):
        for value in as_list(settings.get("trainer", {}).get(name)):
            if isinstance(value, str) and Path(value).exists():
                raise ValueError(f"expected a name as trainer.{name} in the checkpoint, got the file {value}")
    for spec in specs(settings):
        check_class(spec, named)


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def specs(value: Any) -> Iterator[Mapping[str, Any]]:
    """Everything in settings that names a class, however deep."""
    if isinstance(value, Mapping):
        if "class_path" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from specs(part)


def check_class(spec: Mapping[str, Any], named: set[str]) -> None:
    """Raises ValueError for a class that may not stand in a file, or for an argument of it that is code."""
    path = str(spec["class_path"])
    if path in named:
        return
    if "." not in path or not path.startswith(tuple(f"{package}." for package in (*TRUSTED, PACKAGE))):
        raise ValueError(f"expected the command line to name {path}, a class that the checkpoint asks for")
    try:
        kind = resolve_name(path)
    except (ImportError, AttributeError, ValueError) as problem:
        raise ValueError(f"expected a class in the checkpoint's settings, got {path}: {problem}") from None
    if not isinstance(kind, type) or not kind.__module__.startswith((*TRUSTED, PACKAGE)):
        raise ValueError(f"expected a class of torch or Lightning in the checkpoint's settings, got {path}")
    for name, value in {**spec.get("init_args", {}), **spec.get("dict_kwargs", {})}.items():
        if value is not None and takes_code(kind, name):
            raise ValueError(f"expected data as {name} of {kind.__name__} in the checkpoint, got {value!r}")


def takes_code(kind: type, argument: str) -> bool:
    """Whether a parameter of a class, or of its bases, is declared to be a function or a class."""
    for base in kind.__mro__:
        try:
            hints = get_type_hints(base.__init__)  # type: ignore[misc]
        except (AttributeError, NameError, TypeError):
            hints = getattr(base.__init__, "__annotations__", {})  # type: ignore[misc]
        if argument in hints and mentions_code(hints[argument]):
            return True
    return False


def mentions_code(hint: Any) -> bool:
    if isinstance(hint, str):
        return "Callable" in hint or "type[" in hint.lower()
    if hint in (Callable, type) or get_origin(hint) in (Callable, get_origin(Callable[[], Any]), type):
        return True
    return any(mentions_code(part) for part in get_args(hint) if not isinstance(part, list))


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


def flat(settings: Mapping[str, Any], prefix: str = "") -> Flat:
    """Settings by the name of their option: ``{"optimizer": "Adam", "optimizer.lr": 5e-3, ...}``."""
    return dict(by_option(settings, prefix))


def by_option(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if name == "class_path":
            yield prefix.removesuffix("."), value
        elif isinstance(value, Mapping):
            yield from by_option(value, prefix if name == "init_args" else f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(settings: Flat, others: Flat) -> Flat:
    """Those of ``settings`` that ``others`` has not, or has otherwise."""
    return {name: value for name, value in settings.items() if others.get(name, NO_DATA) != value}


def in_words(settings: Flat) -> str:
    """``model.hidden_size 64, optimizer.lr 0.01``."""
    return ", ".join(f"{name} {value}" for name, value in settings.items()) or "none"


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
