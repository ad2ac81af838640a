r"""The parser of the command line: a usage error is a line or two that say what there is, and exit code 2."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pkgutil import resolve_name
from typing import NoReturn

from jsonargparse import ArgumentParser

OWN = str(__package__)
PROG = f"python -m {OWN}"


class InFewWords(ArgumentParser):
    """A parser with the project's words for a usage error."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        usage_error(in_few_words(message, getattr(ex, "subcommand_parser", None) or self))


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
    """The option nearest to it."""
    name = option.split("=")[0] if option.startswith("-") else f"--{option}"
    known = list(parser._option_string_actions)
    return f"there is no option {name}{meant(name, known)}\n--help lists all."


def no_option(parser: ArgumentParser, word: str) -> str:
    return f"expected an option, got {word}\n--help lists all."


def no_such_option_of(parser: ArgumentParser, key: str, class_path: str, option: str) -> str:
    there = options_of(class_path)
    name = class_path.rpartition(".")[2]
    if name in ABSTRACT:
        return f"expected --{key} NAME before the options of one, got --{key}.{option} alone"
    expected = f"expected an option of {name}, got --{key}.{option}{meant(option, there)}"
    return f"{expected}\nIt has {', '.join(there)}."


def no_such_class(parser: ArgumentParser, key: str, bases: str, given: str) -> str:
    kinds = [named(name) for name in re.findall(r"<class '([\w.]+)'>", bases) if "NoneType" not in name]
    there = list(dict.fromkeys(subclasses(kinds)))
    expected = f"expected --{key} to be a name or a class by its path, like my_module.MyClass, got {given}"
    return f"{expected}{meant(given, there)}\nThere are {', '.join(there)}."


def unfit_class(parser: ArgumentParser, key: str, base: str, given: str) -> str:
    return f"expected --{key} to be a class derived from {base}, got {given}"


def wrong_value(parser: ArgumentParser, key: str, reasons: str) -> str:
    types = re.findall(r"(?:Expected an?|Not of type) (\S.*?)(?:\. Got value|:|\n|$)", reasons)
    given = re.search(GIVEN, reasons)
    if not types or given is None:
        return f"--{key}: {' '.join(reasons.split())}"
    expected = " or ".join(dict.fromkeys(map(plain, types)))
    return f"expected --{key} to be {expected}, got {given[given.lastindex or 0]}"


def wrong_value_of(parser: ArgumentParser, key: str, class_path: str, option: str, reasons: str) -> str:
    return wrong_value(parser, f"{key}.{option}", reasons)


def wrong_class(parser: ArgumentParser, key: str, class_path: str, reason: str) -> str:
    return f"--{key} {class_path.removeprefix(f'{OWN}.early.')}: {' '.join(reason.split())}"


def no_setting_to_keep(parser: ArgumentParser, value: str) -> str:
    return f"expected settings that a config can hold, got {value}"


def no_settings(given: str) -> str:
    what = f"'{given.strip()}'" if given.strip() else "an empty one"
    return f"expected a config with settings, such as 'data: Parity', got {what}"


def no_yaml(problem: str) -> str:
    return f"expected a config in YAML or JSON, got one with a problem {' '.join(problem.split())}"


ABSTRACT = ("Task", "Optimizer", "LRScheduler")
LIMITED = {
    "PositiveInt": "a whole number above 0",
    "NonNegativeInt": "a whole number from 0 on",
    "NonNegativeFloat": "a number from 0 on",
    "ClosedUnitInterval": "a number from 0 to 1",
}
GIVEN = r"(?:Got|Given) value: (.*)|Not of type \w+: (\S+) does not|(?:base 10|to float): '(.*)'"
KEY, REASON = r'Parser key "([\w.]+)".*?', r"(.*?)(?:\n    - |$)"
CLASS = r"Problem with given class_path '([\w.]+)':\s+"
RULES: list[tuple[str, Callable[..., str]]] = [
    (r"unrecognized arguments: (-\S+)", no_such_option),
    (r"unrecognized arguments: (\S+)", no_option),
    (r"does not accept option '([\w.]+)'", no_such_option),
    (KEY + CLASS + r"Option '(\w+)' is not accepted", no_such_option_of),
    (KEY + CLASS + r'Parser key "(\w+)":\s+' + REASON, wrong_value_of),
    (KEY + CLASS + REASON, wrong_class),
    (r"Option '([\w.]+)' is not accepted", no_such_option),
    (KEY + r"does not correspond to a subclass of (\w+).*Given value: ([^\n]*)", unfit_class),
    (KEY + r"Subtypes: (.*?)\n.*dot import path string: ?([^\s\]]*)", no_such_class),
    (KEY[:-3] + r":\s+(.*)", wrong_value),
    (r"'cannot represent an object', <?(.*?)>?\)\n", no_setting_to_keep),
    (r"Unexpected config: ?(.*)", lambda _, given: no_settings(given)),
    (r"Problems parsing config: (.*)", lambda _, problem: no_yaml(problem)),
]


def meant(given: str, there: Iterable[str]) -> str:
    near = get_close_matches(given, list(there), 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


def plain(kind: str) -> str:
    """A type in words: ``Literal['a', 'b']`` as its values, a class by its name."""
    if kind in LIMITED:
        return LIMITED[kind]
    values = re.fullmatch(r"typing\.Literal\[(.*)\]", kind)
    if values:
        return f"one of {values[1]}"
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind).replace("NoneType", "null")


def options_of(class_path: str) -> list[str]:
    return ArgumentParser().add_class_arguments(named(class_path), skip={"params"}, fail_untyped=False)


def subclasses(bases: Iterable[type]) -> Iterator[str]:
    """The names of all public subclasses known by now; of Lightning's classes, those that are Lightning's."""
    for base in bases:
        kinds: list[type] = base.__subclasses__()
        kinds = [kind for kind in kinds if is_own(base) or not is_own(kind)]
        yield from (kind.__name__ for kind in kinds if kind.__name__[0] != "_")
        yield from subclasses(kinds)


def is_own(kind: type) -> bool:
    return kind.__module__.startswith(OWN)


def named(class_path: str) -> type:
    module, _, name = class_path.rpartition(".")
    found: type = resolve_name(f"{module}:{name}")
    return found
