r"""Settings as data: of a config, of a run that can be, and of a checkpoint, which may hold nothing else.

Those of a checkpoint may name classes of torch, of Lightning and of this package, with arguments that are
data too; any other class has to be named on the command line.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from enum import Enum
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import Namespace, get_loader
from pytorch_lightning import Trainer

from .__main__ import Option
from .callbacks import CompareGradients
from .datamodule import at_least
from .files import CHECKPOINT, no_file
from .twins import Twins

CONFIGS = Path(__file__).parent / "configs"
MOST_NODES = 100_000
load_yaml = get_loader("yaml")
UNFIT = {
    "LBFGS": "moves each parameter by itself",  # it has one search direction for all
    "SparseAdam": "takes dense gradients",
}
ELSEWHERE = ("ddp_spawn", "ddp_fork", "ddp_notebook")
"""Strategies that train in other processes, and the report with them."""
NOT_RESTORED = ("ckpt_path", "name", "config")
OLDER = {"compare_every", "tolerance"}
PACKAGE, OWN_TASKS = str(__package__), r"^(manual_rnn\.)?training\.tasks\."
TRUSTED = ("torch.", "pytorch_lightning.", "lightning.", "lightning_fabric.", f"{PACKAGE}.")
PARTS: dict[str, type] = {"trainer": Trainer, "model": Twins, "compare": CompareGradients}
"""The settings that are arguments of one class, whichever the run."""
PLAIN, DOTTED = r"[\w\-#()%,/. ]*", r"\w\.[^\W\d]"
DATA = (str, int, float, Path, timedelta, type(None))
CONTAINERS = (Union, UnionType, list, dict, tuple)
NO_DATA = object()


def with_config_files(options: Iterable[Option]) -> list[Option]:
    return [(name, [*map(config_file, values)] if name == "--config" else values) for name, values in options]


def config_file(given: str) -> str:
    """The file of this package where ``given`` is a bare name, like ``parity``; else ``given``.

    Raises ValueError for a config that isn't a mapping in YAML or JSON, FileNotFoundError for none.
    """
    if given.lstrip().startswith("{"):
        return given  # settings as they are
    own = CONFIGS / f"{given}.yaml"
    path = own if own.is_file() and not Path(given).is_file() else Path(given)
    if not path.is_file():
        names = f"A file, or one of {', '.join(sorted(config.stem for config in CONFIGS.glob('*.yaml')))}."
        raise FileNotFoundError(f"expected a config, got {given}: {no_file(path)}\n{names}")
    text = path.read_text(encoding="utf-8")
    try:
        settings = load_settings(text)
    except yaml.YAMLError as problem:
        what = " ".join(str(problem).split())
        raise ValueError(f"expected a config in YAML or JSON, got one with a problem {what}") from None
    if not isinstance(settings, dict) or not settings:
        got = f"'{text.strip()[:60]}'" if text.strip() else "an empty one"
        raise ValueError(f"expected a config with settings, such as 'data: Parity', got {got}")
    return str(path)


def load_settings(text: str) -> Any:
    """jsonargparse's loader, but for YAML whose aliases would make it grow without bound."""
    try:
        if "*" in text and size(yaml.compose(text, yaml.SafeLoader), {}) > MOST_NODES:
            raise yaml.YAMLError("of size: its aliases make more than 100,000 values of it")
        return load_yaml(text)
    except RecursionError:
        raise yaml.YAMLError("of depth: it is nested too deeply") from None


def size(node: Any, known: dict[int, int]) -> int:
    """How many values a YAML node stands for, once its aliases are written out; too many for a circle."""
    if id(node) not in known:
        known[id(node)] = MOST_NODES + 1  # which holds where the node is met within itself
        pairs = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for pair in pairs for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(size(part, known) for part in parts)
    return known[id(node)]


def check_run(trainer: Any, optimizer: str) -> None:
    """Raises ValueError for an optimizer, or options of Lightning's Trainer, that no run can have."""
    name = optimizer.rpartition(".")[2]
    if name in UNFIT:
        raise ValueError(f"expected an optimizer that {UNFIT[name]}, got {name}")
    at_least(1, **{"trainer.accumulate_grad_batches": trainer.accumulate_grad_batches})
    if trainer.barebones:
        raise ValueError("expected a run that logs, for the report; got --trainer.barebones true")
    if str(trainer.strategy).startswith(ELSEWHERE):
        expected = "expected --trainer.strategy to leave the report in this process, as auto and ddp do"
        raise ValueError(f"{expected}; got {trainer.strategy}")


def plain(value: Any) -> Any:
    """Settings as data that YAML and ``weights_only`` can hold.

    An object without such a form, like a default ``torch.device``, is left out: its default will hold again.
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
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):  # of which settings are subclasses, such as PositiveInt
        if isinstance(value, kind):
            return kind(value)
    return str(value) if isinstance(value, Path) else NO_DATA


def settings_of(checkpoint: Mapping[str, Any], named: Iterable[str] = ()) -> dict[str, Any]:
    """The settings of the run that wrote a checkpoint, but for those that said where the run began.

    A class or a text that is one of the words ``named`` on the command line may stand in them.

    Raises ValueError for a checkpoint without settings, such as one of a plain ``Trainer``, and for settings
    that name other classes than those of torch, Lightning and this package.
    """
    try:
        settings = {n: value for n, value in checkpoint["settings"].items() if n not in NOT_RESTORED}
        model = {name: value for name, value in settings["model"].items() if name != "init_from"}
        data = dict(settings["data"])  # a task of this package by its name here: installed it has another
        data["class_path"] = re.sub(OWN_TASKS, f"{PACKAGE}.tasks.", data["class_path"])
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f"expected {CHECKPOINT}, got one without the settings of its run") from None
    settings |= {"model": of_this_version(model), "data": data}
    if model.keys() >= OLDER:
        settings["compare"] = {"every_n_steps": model["compare_every"], "tolerance": model["tolerance"]}
    check_settings(settings, set(named))
    return settings


def of_this_version(model: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the twins, also of those that compared their own gradients and had ReLU as their default."""
    if not model.keys() >= OLDER:
        return dict(model)
    kept = {name: value for name, value in model.items() if name not in OLDER}
    return kept | {"nonlinearity": model.get("nonlinearity") or "relu"}


def check_settings(settings: Mapping[str, Any], named: set[str]) -> None:
    """Raises ValueError for settings that would run code: jsonargparse takes it by a dotted path, by the name
    of a file, or within a text of YAML, where a parameter isn't of text or paths by its type.
    """
    for name, value in settings.items():
        if name not in PARTS:
            check_value(name, value, named)
        elif isinstance(value, Mapping):
            check_arguments(name, PARTS[name], value, named)
        else:
            raise ValueError(f"expected settings of {name} in the checkpoint, got {value!r}")


def check_arguments(name: str, kind: type | None, arguments: Mapping[str, Any], named: set[str]) -> None:
    """Of a class that the checkpoint names, or of one that the command line does, which has no ``kind``."""
    for argument, value in arguments.items():
        if name in PARTS and kind and argument not in signature(kind).parameters:
            raise ValueError(f"expected options of this version in the checkpoint, got {name}.{argument}")
        check_value(f"{name}.{argument}", value, named, kind is None or takes_data(kind, argument))


def check_value(name: str, value: Any, named: set[str], is_data: bool = False) -> None:
    if isinstance(value, Mapping) and "class_path" in value:
        check_class(name, value, named)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            check_value(f"{name}.{key}", part, named, is_data)
    elif isinstance(value, list):
        for part in value:
            check_value(name, part, named, is_data)
    elif isinstance(value, str) and not is_data and value not in named and may_be_code(value):
        raise ValueError(f"expected data as {name} in the checkpoint, got {value}")


def may_be_code(text: str) -> bool:
    """Whether a text may name code, or a file that does: by a dot, by YAML's own signs, or by its name."""
    return bool(not re.fullmatch(PLAIN, text) or re.search(DOTTED, text) or (text and Path(text).is_file()))


def check_class(name: str, spec: Mapping[str, Any], named: set[str]) -> None:
    """Raises ValueError for a class that may not stand in a file, or for an argument of it that is code."""
    path = str(spec["class_path"])
    kind = None if path in named else trusted_class(name, path)
    for key, part in spec.items():
        if key in ("init_args", "dict_kwargs") and isinstance(part, Mapping):
            check_arguments(name, kind, part, named)
        elif key != "class_path":
            check_value(f"{name}.{key}", part, named)


def trusted_class(name: str, path: str) -> type:
    if not path.startswith(TRUSTED):
        raise ValueError(f"expected {path}, which the checkpoint asks for, to be named: --{name} {path}, say")
    try:
        kind = resolve_name(path)
    except (ImportError, AttributeError, ValueError) as problem:
        raise ValueError(f"expected a class in the checkpoint's settings, got {path}: {problem}") from None
    if not isinstance(kind, type) or not f"{kind.__module__}.".startswith(TRUSTED):
        raise ValueError(f"expected a class of torch or Lightning in the checkpoint's settings, got {path}")
    return kind


def takes_data(kind: type, argument: str) -> bool:
    """Whether a parameter of a class, or of the base that has it, is declared to be text or numbers alone."""
    for base in kind.__mro__:
        try:
            hints = get_type_hints(base.__init__)  # type: ignore[misc]
        except (AttributeError, NameError, TypeError):  # names that are imported for type checkers alone
            continue
        if argument in hints:
            return declares_data(hints[argument])
    return False


def declares_data(hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return True
    if get_args(hint):
        return get_origin(hint) in CONTAINERS and all(map(declares_data, get_args(hint)))
    return isinstance(hint, type) and issubclass(hint, DATA)
