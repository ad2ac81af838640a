r"""What a checkpoint holds: twins, a task, and a run that goes on, with options given anew."""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, seed_everything
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from .callbacks import Stopper
from .datamodule import Task
from .files import read_checkpoint
from .messages import InFewWords
from .settings import allow_classes, settings_of
from .twins import Twins, check_shapes

OTHER_RUN = "in the checkpoint; a run goes on with its own task and sizes"
SOLVED = EarlyStoppingReason.STOPPING_THRESHOLD.value
Flat = dict[str, Any]
Settings = Mapping[str, Any]


def flat(settings: Mapping[str, Any], prefix: str = "") -> Flat:
    """Settings by the name of their option: ``{"optimizer": "Adam", "optimizer.lr": 5e-3, ...}``."""
    found: Flat = {}
    for name, value in settings.items():
        if name == "class_path":
            found[prefix.removesuffix(".")] = value
        elif isinstance(value, Mapping):
            found |= flat(value, prefix if name == "init_args" else f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def differences(settings: Settings, others: Settings) -> Flat:
    """By their options those of ``settings`` that ``others`` have otherwise; None is as none at all."""
    known = flat(others)
    return {name: value for name, value in flat(settings).items() if known.get(name) != value}


def in_words(settings: Flat) -> str:
    """``model.hidden_size 64, optimizer.lr 0.01``."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def why_finished(checkpoint: Settings, settings: Settings) -> str | None:
    """Why a run with these settings has no step left to make; None where it has."""
    trainer, step = settings["trainer"], checkpoint["global_step"]
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if trainer["max_epochs"] is not None and 0 <= trainer["max_epochs"] <= epochs:
        return f"has made its {epochs} epochs, {step} steps; --trainer.max_epochs says how many more"
    if 0 <= trainer["max_steps"] <= step:
        return f"has made its {step} steps; --trainer.max_steps says how many more"
    stopped = [c for name, c in checkpoint["callbacks"].items() if name.startswith(Stopper.__name__)]
    if settings["stop_when_solved"] and any(state["stopping_reason"] == SOLVED for state in stopped):
        return f"has solved its task at step {step}; --stop_when_solved false trains on"
    return None


class GivenAnew(Callback):
    """Lets options of the optimizer and the scheduler take effect over what a checkpoint remembers of both.

    Of another class each begins anew. A new learning rate scales the whole schedule.
    """

    def __init__(self, before: Settings, now: Settings) -> None:
        self.anew, self.rate_before = differences(now, before), flat(before).get("optimizer.lr")

    def options_of(self, name: str) -> Flat:
        """The options given anew of an optimizer or a scheduler that is still of the same class."""
        return {n.partition(".")[2]: value for n, value in self.anew.items() if n.startswith(f"{name}.")}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if "optimizer" in self.anew:
            checkpoint["optimizer_states"] = []
        if {"optimizer", "lr_scheduler"} & self.anew.keys():
            checkpoint["lr_schedulers"] = []
        rate = self.anew.get("optimizer.lr")
        for state in checkpoint.get("optimizer_states", []):
            for group in state["param_groups"]:
                reached = group["lr"] / self.rate_before if self.rate_before else 1.0
                group.update(self.options_of("optimizer"))
                if rate is not None:
                    group.update(lr=reached * rate, initial_lr=rate)
        for state in checkpoint.get("lr_schedulers", []):
            state.update(self.options_of("lr_scheduler"))
            if rate is not None:
                state["base_lrs"] = [rate] * len(state.get("base_lrs", []))


def load_model(ckpt_path: Path) -> Twins:
    """The twins of a checkpoint, ready to answer. Raises ValueError where its weights don't fit."""
    content = read_checkpoint(ckpt_path)
    given, known = content["hyper_parameters"], signature(Twins).parameters
    try:
        model = Twins(**{name: value for name, value in given.items() if name in known})
    except TypeError as problem:
        raise ValueError(f"expected the options of twins in {ckpt_path}: {problem}") from None
    check_shapes(model, content["state_dict"], OTHER_RUN)
    model.load_state_dict(content["state_dict"])
    return model.eval()


def load_task(ckpt_path: Path, data: str | None) -> Task:
    """The task of a checkpoint, with its settings; one of the user's own where ``data`` names it."""
    settings = settings_of(read_checkpoint(ckpt_path))
    allow_classes([("--data", [data] if data else [])], no_others=True)
    seed_everything(settings.get("seed_everything", 0), verbose=False)  # a task without a seed has the run's
    parser = InFewWords()
    parser.add_subclass_arguments(Task, "data")
    task: Task = parser.instantiate_classes(parser.parse_object({"data": settings["data"]})).data
    return task
