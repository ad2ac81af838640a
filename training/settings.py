r"""Settings as data: of a config, of a run that can be, and of a checkpoint, which may hold nothing else.

Those of a checkpoint may name classes of torch.optim, Lightning and this package; any other class has to be
named on the command line.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from enum import Enum
from itertools import islice
from math import inf
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import yaml
from jsonargparse import Namespace, get_loader, set_loader, set_parsing_settings

from .__main__ import Option
from .datamodule import Task, at_least
from .files import CHECKPOINT, read_text
from .messages import BASES

CONFIGS = Path(__file__).parent / "configs"
MOST_NODES = 100_000
load_yaml = get_loader("yaml")
NOT_RESTORED = ("ckpt_path", "name", "config")
PACKAGE, OWN_TASKS = str(__package__), r"^(manual_rnn\.)?training\.tasks\."
LIGHTNING = ("pytorch_lightning", "lightning", "lightning_fabric")
TRUSTED = ("torch.optim", *LIGHTNING, f"{PACKAGE}.tasks", f"{PACKAGE}.callbacks")
DOTTED = r"[^\W\d]\w*(?:\.[^\W\d]\w*)+"
NO_DATA = "an object that is no data"


def in_braces(settings: Any) -> str:
    """Settings as a ``--config`` takes them on the command line; JSON has no infinity."""
    return yaml.safe_dump(settings, default_flow_style=True, default_style='"', allow_unicode=True, width=inf)


def read_config(config: str) -> str:
    """The settings of a config: of a file, of one of this package by its name, like ``parity``, or in braces.

    Raises ValueError for a config without settings or not in UTF-8, FileNotFoundError for none.
    """
    text = config
    if not config.lstrip().startswith("{"):
        own = CONFIGS / f"{config}.yaml"
        path = own if own.is_file() and not Path(config).is_file() else Path(config)
        names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
        text = read_text(path, f"a config ({names}, or a file)")
    try:
        settings = load_settings(text)
    except yaml.YAMLError as problem:
        raise ValueError(f"expected a config in YAML, got {config}: {problem}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"expected a config with settings, such as 'data: Parity', got none in {config}")
    return in_braces(settings)


def last_value(name: str, options: Iterable[Option]) -> Any:
    """The last that options or their configs say of ``name``, of a class its path; None where they don't.

    It isn't parsed: a parser wants all that the class requires, which may be in a checkpoint's settings.
    """
    found: Any = None
    for option, values in options:
        for value in values:
            settings = load_settings(value) if option == "--config" else {option.removeprefix("--"): value}
            found = settings.get(name, found)
    return found.get("class_path") if isinstance(found, dict) else found


def load_settings(text: str) -> Any:
    """jsonargparse's loader, but for YAML whose aliases would make it grow without bound."""
    try:
        if "*" in text and any(islice(nodes(yaml.compose(text, yaml.SafeLoader)), MOST_NODES, None)):
            raise yaml.YAMLError("its aliases make more than 100,000 values of it")
        return load_yaml(text)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


set_loader("yaml", load_settings, (yaml.YAMLError,))


def nodes(root: Any) -> Iterator[yaml.Node]:
    """All nodes of YAML, with its aliases written out; of a circle there is no end."""
    rest = [root]
    while rest:
        yield (node := rest.pop())
        for part in node.value if isinstance(node, yaml.CollectionNode) else ():
            rest.extend(part if isinstance(part, tuple) else (part,))


def check_run(trainer: Any, optimizer: str) -> None:
    """Raises ValueError for what would end without an error of its own, and without a sound report."""
    if optimizer.endswith(".LBFGS"):
        raise ValueError("expected an optimizer that moves each parameter by itself, got LBFGS")
    if str(trainer.strategy).startswith(("ddp_spawn", "ddp_fork", "ddp_notebook")):
        here = "--trainer.strategy to leave the report in this process, as auto and ddp do"
        raise ValueError(f"expected {here}; got {trainer.strategy}")
    at_least(1, accumulate_grad_batches=trainer.accumulate_grad_batches)


def plain(value: Any) -> Any:
    """Settings as data that YAML and ``weights_only`` can hold, of plain types: no PositiveInt, no tuple.

    An object without such a form, like a default ``torch.device``, is left out: its default will hold again.
    """

    def hold(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {n: part for n, part in pairs if NO_DATA not in (part if isinstance(part, list) else [part])}

    return json.loads(json.dumps(value, default=data_of), object_pairs_hook=hold)


def data_of(value: Any) -> Any:
    """What stands for an object that JSON doesn't know."""
    if isinstance(value, Namespace):
        return vars(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else NO_DATA


def attribute(task: Task, name: str) -> Any:
    """One of a checked task, as data: a checkpoint has it among the hyperparameters of the twins."""
    if name == "input_size":  # the first to be asked for
        task.check()
    return plain(getattr(task, name))


def settings_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the run that wrote a checkpoint, but for those that said where the run began.

    Raises ValueError for a checkpoint without settings, such as one of a plain ``Trainer``.
    """
    try:
        settings = {n: value for n, value in checkpoint["settings"].items() if n not in NOT_RESTORED}
        model = {name: value for name, value in settings["model"].items() if name != "init_from"}
        data = dict(settings["data"])  # a task of this package by its name here: installed it has another
        data["class_path"] = re.sub(OWN_TASKS, f"{PACKAGE}.tasks.", data["class_path"])
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f"expected {CHECKPOINT}, got one without the settings of its run") from None
    return settings | {"model": model, "data": data}


def allow_classes(options: Iterable[Option], no_others: bool = False) -> None:
    """Settings may name classes of torch.optim, Lightning and this package, and what the command line names.

    jsonargparse asks this list before each import, wherever it takes a text for code: a path, the name of a
    file, YAML within a string. It asks also for the place where the class is defined, which may be another.

    Args:
        options: of the command line, with the content of configs.
        no_others: whether all else is refused from now on, as it is for the settings of a checkpoint.
    """
    set_parsing_settings(
        import_path_denylist=["*"] if no_others else [],
        import_path_allowlist=[*TRUSTED, *named_by(options)],
        config_read_mode_fsspec_enabled=False,
    )


def named_by(options: Iterable[Option]) -> set[str]:
    """All dotted paths in options and configs, and of the classes the places that define them."""
    given = [(name, value) for name, values in options for value in values]
    named = set(re.findall(DOTTED, " ".join(value for _, value in given)))
    for name, value in given:
        if name.removeprefix("--") in BASES and value in named:
            with suppress(Exception):  # which the parser tells of
                found = resolve_name(value)
                named |= set(re.findall(DOTTED, f"{found.__module__}.{found.__qualname__}"))
    return named
