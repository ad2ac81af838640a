r"""Options as words and as settings: configs by name, what no run can have, settings as plain data."""

import re
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, get_loader

from .datamodule import at_least
from .files import no_file

CONFIGS = Path(__file__).parent / "configs"
MOST_NODES = 100_000
UNFIT = {
    "LBFGS": "moves each parameter by itself",  # it has one search direction for all
    "SparseAdam": "takes dense gradients",
}
ELSEWHERE = ("ddp_spawn", "ddp_fork", "ddp_notebook")
"""Strategies that train in other processes, and the report with them."""
load_yaml = get_loader("yaml")
NO_DATA = object()
Flat = dict[str, Any]


def grouped(words: Sequence[str]) -> list[list[str]]:
    """Each option of a command line with the words after it; those before the first are a group too."""
    groups: list[list[str]] = []
    for word in words:
        if re.match("--?[A-Za-z]", word) or not groups:
            groups.append([])
        groups[-1].append(word)
    return groups


def name_of(group: list[str]) -> str:
    """``--name`` of ``--name=value``, or of ``--name value``."""
    name = group[0].partition("=")[0]
    return "--config" if name == "-c" else name


def values_of(group: list[str]) -> list[str]:
    _, equals, value = group[0].partition("=")
    return [value] * bool(equals) + group[1:]


def options_named(names: list[str], options: Sequence[str]) -> list[str]:
    """The options of these names, each with its value."""
    return [word for group in grouped(options) if name_of(group) in names for word in group]


def with_config_files(options: Sequence[str]) -> list[str]:
    """The options, with the file of this package where ``--config`` has a bare name, like ``parity``.

    Raises:
        ValueError: for a config that isn't a mapping in YAML or JSON.
        FileNotFoundError: where there is no such config.
    """
    words: list[str] = []
    for group in grouped(options):
        if name_of(group) == "--config" and len(values_of(group)) == 1:
            group = ["--config", config_file(values_of(group)[0])]
        words += group
    return words


def config_file(given: str) -> str:
    if given.lstrip().startswith("{"):
        return given  # settings as they are
    own = CONFIGS / f"{given}.yaml"
    path = own if own.is_file() and not Path(given).is_file() else Path(given)
    if not path.is_file():
        names = ", ".join(sorted(config.stem for config in CONFIGS.glob("*.yaml")))
        raise FileNotFoundError(
            f"expected a config, got {given}: {no_file(path)}\nA file, or one of {names}."
        )
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
        raise ValueError(
            "expected --trainer.strategy to leave the report in this process, as auto and ddp do; got "
            f"{trainer.strategy}"
        )


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
