r"""The parser of the command line: a usage error is a line or two that say what there is, and exit code 2."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pkgutil import resolve_name
from typing import NoReturn

from jsonargparse import ArgumentParser
from pytorch_lightning.cli import LightningArgumentParser

from .tasks import TASKS

OWN = str(__package__)
PROG = f"python -m {OWN}"


class InFewWords(ArgumentParser):
    """A parser with the project's words for a usage error."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        usage_error(in_few_words(message, getattr(ex, "subcommand_parser", None) or self))


class Parser(InFewWords, LightningArgumentParser):
    """Lightning's, likewise."""


def usage_error(message: str) -> NoReturn:
    sys.stderr.write(f"{PROG}: {message.strip()}\n")
    sys.exit(2)


def in_few_words(message: str, parser: ArgumentParser) -> str:
    """The message of the parser without the types it tried, and with what there is."""
    for pattern, words in RULES:
        found = re.search(pattern, message, re.DOTALL)
        if found:
            return words(parser, *found.groups())
    return message


def no_such_option(parser: ArgumentParser, option: str) -> str:
    """The options nearest to it; of a class, all of them."""
    name = "--" + option.removeprefix("--").split("=")[0]
    known = list(parser._option_string_actions)
    return f"there is no option {name}{meant(name, known)}\n--help lists all."


def no_such_option_of(parser: ArgumentParser, key: str, class_path: str, option: str) -> str:
    there = options_of(class_path)
    name = class_path.rpartition(".")[2]
    expected = f"expected an option of {name}, got --{key}.{option}{meant(option, there)}"
    return f"{expected}\nIt has {', '.join(there)}."


def no_such_class(parser: ArgumentParser, key: str, bases: str, given: str) -> str:
    kinds = [named(name) for name in re.findall(r"<class '([\w.]+)'>", bases) if "NoneType" not in name]
    there = list(TASKS) if key == "data" else sorted(set(subclasses(kinds)))
    expected = f"expected --{key} to be a name or a class by its path, like my_module.MyClass, got {given}"
    return f"{expected}{meant(given, there)}\nThere are {', '.join(there)}."


def wrong_value(parser: ArgumentParser, key: str, reasons: str) -> str:
    types = re.findall(r"Expected an? (\S.*?)(?:\. Got value|\n|$)", reasons)
    given = re.search(r"Got value: (.*)|Given value: (.*)", reasons)
    if not types or given is None:
        return f"--{key}: {' '.join(reasons.split())}"
    expected = " or ".join(dict.fromkeys(map(plain, types)))
    return f"expected --{key} to be {expected}, got {given[1] or given[2]}"


def wrong_value_of(parser: ArgumentParser, key: str, class_path: str, option: str, reasons: str) -> str:
    return wrong_value(parser, f"{key}.{option}", reasons)


def wrong_class(parser: ArgumentParser, key: str, class_path: str, reason: str) -> str:
    return f"--{key} {class_path}: {' '.join(reason.split())}"


def no_settings(parser: ArgumentParser, given: str) -> str:
    what = f"'{given.strip()}'" if given.strip() else "an empty one"
    return f"expected a config with settings, such as 'data: Parity', got {what}"


def no_yaml(parser: ArgumentParser, problem: str) -> str:
    return f"expected a config in YAML or JSON, got one with a problem {' '.join(problem.split())}"


KEY, REASON = r'Parser key "([\w.]+)".*?', r"(.*?)(?:\n    - |$)"
CLASS = r"Problem with given class_path '([\w.]+)':\s+"
RULES: list[tuple[str, Callable[..., str]]] = [
    (r"unrecognized arguments: (\S+)", no_such_option),
    (r"does not accept option '([\w.]+)'", no_such_option),
    (KEY + CLASS + r"Option '(\w+)' is not accepted", no_such_option_of),
    (KEY + CLASS + r'Parser key "(\w+)":\s+' + REASON, wrong_value_of),
    (KEY + CLASS + REASON, wrong_class),
    (KEY + r"Subtypes: (.*?)\n.*dot import path string: (\S+)", no_such_class),
    (KEY[:-3] + r":\s+(.*)", wrong_value),
    (r"Unexpected config: ?(.*)", no_settings),
    (r"Problems parsing config: (.*)", no_yaml),
]


def meant(given: str, there: Iterable[str]) -> str:
    near = get_close_matches(given, list(there), 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


def plain(kind: str) -> str:
    """A type in words: ``Literal['a', 'b']`` as its values, a class by its name."""
    values = re.fullmatch(r"typing\.Literal\[(.*)\]", kind)
    if values:
        return f"one of {values[1]}"
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind).replace("NoneType", "null")


def options_of(class_path: str) -> list[str]:
    return ArgumentParser().add_class_arguments(named(class_path), skip={"params"}, fail_untyped=False)


def subclasses(bases: Iterable[type]) -> Iterator[str]:
    """The names of all public subclasses known by now, without those of this package."""
    for base in bases:
        kinds: list[type] = base.__subclasses__()
        yield from (k.__name__ for k in kinds if k.__name__[0] != "_" and not k.__module__.startswith(OWN))
        yield from subclasses(kinds)


def named(class_path: str) -> type:
    module, _, name = class_path.rpartition(".")
    found: type = resolve_name(f"{module}:{name}")
    return found
