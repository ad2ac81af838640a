r"""Options as words, configs by name, and what no run can have."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

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


Option = tuple[str, list[str]]
"""Its name with the dashes, and its values."""


def grouped(words: Sequence[str]) -> list[Option]:
    """Each option of a command line with its values; words before the first option are one, too."""
    groups: list[Option] = []
    for word in words:
        if re.match("--?[A-Za-z]", word) or not groups:
            name, equals, value = word.partition("=")
            groups.append(("--config" if name == "-c" else name, [value] * bool(equals)))
        else:
            groups[-1][1].append(word)
    return groups


def as_words(groups: Iterable[Option]) -> list[str]:
    """Options with their values as the words of a command line."""
    words = ([f"{name}={values[0]}"] if len(values) == 1 else [name, *values] for name, values in groups)
    return [word for group in words for word in group]


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
