r"""A run goes on as it was set: its own settings first, over them what the command line gives anew."""

from collections.abc import Iterator, Mapping
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from .callbacks import StopWhenSolved
from .datamodule import Task
from .folders import CHECKPOINT

NOT_RESTORED = ("ckpt_path", "weights_only", "name")
STATE = ("optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step")
SOLVED = EarlyStoppingReason.STOPPING_THRESHOLD.value
Flat = dict[str, Any]


def settings_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the run that wrote a checkpoint, as its ``config.yaml`` has them.

    Those that said where it began are left out: the checkpoint is where it goes on.

    Raises:
        ValueError: for a checkpoint without them, such as one of a plain ``Trainer``.
    """
    try:
        settings = {n: value for n, value in checkpoint["settings"].items() if n not in NOT_RESTORED}
        model = {name: value for name, value in settings["model"].items() if name != "init_from"}
        data = {**settings["data"], "class_path": of_this_package(settings["data"]["class_path"])}
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f"expected {CHECKPOINT}, got one without the settings of its run") from None
    return {**settings, "model": model, "data": data}


def check_state(checkpoint: Mapping[str, Any]) -> None:
    """Raises ValueError where a checkpoint hasn't what a training goes on from."""
    missing = [part for part in STATE if part not in checkpoint]
    if missing:
        raise ValueError(f"expected a checkpoint to go on from, got one without {', '.join(missing)}")


def of_this_package(class_path: str) -> str:
    """A task of this package by the name that the package has here: installed it is another one."""
    module, _, name = class_path.rpartition(".")
    own = Task.__module__.rpartition(".")[0]
    return f"{own}.tasks.{name}" if module in ("training.tasks", "manual_rnn.training.tasks") else class_path


def flat(settings: Mapping[str, Any], prefix: str = "") -> Flat:
    """Settings by the name of their option: ``{"optimizer": "Adam", "optimizer.lr": 5e-3, ...}``."""
    return dict(named(settings, prefix))


def named(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if name == "class_path":
            yield prefix.removesuffix("."), value
        elif isinstance(value, Mapping):
            yield from named(value, prefix if name == "init_args" else f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(settings: Flat, others: Flat) -> Flat:
    """Those of ``settings`` that ``others`` has not, or has otherwise."""
    missing = object()
    return {name: value for name, value in settings.items() if others.get(name, missing) != value}


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
