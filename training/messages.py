r"""One error is a line or two: the reason, the nearest option, the names there are; exit code 2.

jsonargparse explains an error in a tree of all types that it tried. Its words for an option that isn't there,
a class and a value are read here; of any other message the last reason is told. pyproject.toml has an upper
bound of its version.
"""

import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from sysconfig import get_paths
from typing import NoReturn

from jsonargparse import ArgumentParser
from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import Profiler
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .__main__ import prog
from .datamodule import Task
from .tasks import TASKS

REFUSED, INTERRUPTED, ENDED = 2, 130, 143
"""Exit codes: of a usage error, after Ctrl-C, after SIGTERM."""
BASES: dict[str, type] = {
    "data": Task,
    "optimizer": Optimizer,
    "lr_scheduler": LRScheduler,
    "trainer.callbacks": Callback,
    "trainer.logger": Logger,
    "trainer.profiler": Profiler,
}
"""The options that name a class, and what that is derived from."""
NUMBERS = {
    "int": "a whole number",
    "float": "a number",
    "PositiveInt": "a whole number above 0",
    "NonNegativeInt": "a whole number from 0 on",
    "NonNegativeFloat": "a number from 0 on",
    "ClosedUnitInterval": "a number from 0 to 1",
    "Threads": "a whole number from 1 to 1024",
}
NO_OPTION = r"unrecognized arguments: (\S+)|Option '([\w.]+)'|Group '([\w.]+)' does not accept option '(\w+)'"
EXPECTED = r"(?:Expected an?|Not of type) (?!path but|dot import)(\S.*?)(?:\. Got value|:|\n|$)"
GIVEN = r"(?:Got|Given) value: (.*)|Not of type \w+: (\S+) does not|(?:base 10|to float): '(.*)'"

DENIED = r"Importing '([\w.]+)' is not allowed"


class InFewWords(ArgumentParser):
    """A parser with the project's words for a usage error."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        usage_error(in_few_words(message, self))


def usage_error(message: str) -> NoReturn:
    sys.stderr.write(f"{prog()}: {message.strip()}\n")
    sys.exit(REFUSED)


def in_few_words(message: str, parser: ArgumentParser) -> str:
    """The parser's message without the types that it tried, and with the names that there are."""
    *outer, inner = re.split(r'Parser key "', message)
    key = ""
    for part in (part.partition('"')[0] for part in [*outer[1:], inner] if outer):
        key = key if key.endswith(f".{part}") else f"{key}.{part}".lstrip(".")  # of parsers within parsers
    if denied := re.search(DENIED, message):
        expected = f"expected {denied[1]}, which the checkpoint's settings name, on the command line too"
        return f"{expected}: --{key} {denied[1]}, say"
    path = re.search(r"given class_path '([\w.]+)':\s+(.*)", message)
    if word := re.match(r"unrecognized arguments: ([^-]\S*)", message):
        return f"expected an option, got {word[1]}\n--help lists all."
    if option := re.search(NO_OPTION, message):
        return no_such_option(key, ".".join(filter(None, option.groups())), path and path[1], parser)
    given = re.search(GIVEN, inner)
    value = given[given.lastindex or 0] if given else ""
    value = "" if value.startswith("Namespace") else value  # a class whose arguments are wrong
    if key in BASES and value:
        return no_such_class(key, value)
    types = re.findall(EXPECTED, inner[: given.end()] if given else "")
    if types and value:
        return f"expected --{key} to be {' or '.join(dict.fromkeys(map(in_plain_words, types)))}, got {value}"
    reason = path[2] if path else [line.strip(" -") for line in message.splitlines() if line.strip()][-1]
    return f"--{key} {path[1] if path else ''}".rstrip() + f": {reason}" if key else reason


def no_such_option(key: str, option: str, class_path: str | None, parser: ArgumentParser) -> str:
    """Names the option nearest to the one given, or all options of a class."""
    if class_path is not None:
        there = options_of(class_path)
        name = class_path.rpartition(".")[2]
        if name in {base.__name__ for base in BASES.values()}:
            return f"expected --{key} NAME before the options of one, got --{key}.{option} alone"
        expected = f"expected an option of {name}, got --{key}.{option}{meant(option, there)}"
        return f"{expected}\nIt has {', '.join(there)}."
    name = option.partition("=")[0].lstrip("-")
    return f"there is no option --{name}{meant(name, parser.get_defaults().keys(), '--')}\n--help lists all."


def no_such_class(key: str, given: str) -> str:
    """The reason why a class can't be had: its module's own error, another base, or no such name."""
    expected = f"expected --{key} to be a name or a class by its path, like my_module.MyClass, got {given}"
    if given.endswith(".py") or "/" in given:
        return f"{expected}, a file; --{key} {Path(given).stem}.MyClass names a class in it"
    if "." in given and all(part.isidentifier() for part in given.split(".")):  # as a parser has asked for it
        try:
            found = resolve_name(given)
        except Exception as problem:  # whatever the module at that path raises
            return f"--{key} {given}: {told(problem)}"
        if not (isinstance(found, type) and issubclass(found, BASES[key])):
            return f"expected --{key} to be a class derived from {BASES[key].__name__}, got {given}"
    there = list(dict.fromkeys(TASKS if key == "data" else subclasses(BASES[key])))
    return f"{expected}{meant(given, there)}\nThere are {', '.join(there)}."


def told(problem: BaseException) -> str:
    """An exception in a line: its words, and the place in the user's own file where it was raised."""
    cause = problem.__cause__
    tried = re.findall(r"^  - (?!Expected an? <)(.*)", str(problem), re.MULTILINE)
    given = re.search(r"class_path='([\w.]+)'", str(problem))
    if cause is not None and places(cause):
        problem = cause
    elif tried and given:  # of the types that an option can have, the one that was meant
        return f"{given[1].rpartition('.')[2]}: {tried[0]}"
    elif isinstance(cause, ValueError | ImportError):
        problem = cause
    if isinstance(problem, SyntaxError):
        return f"{problem.msg} ({problem.filename}, line {problem.lineno})"
    where = f" ({places(problem)[-1]})" if places(problem) else ""
    speaks_for_itself = isinstance(problem, ValueError | OSError | ImportError | MisconfigurationException)
    name = "" if speaks_for_itself else f"{type(problem).__name__}: "
    words = str(problem).strip()
    return f"{name}{words if words.count(chr(10)) < 2 else ' '.join(words.split())}{where}"


def places(problem: BaseException) -> list[str]:
    """Where in the user's own files an exception passed through, the innermost last."""
    others = (str(Path(__file__).parent), *(get_paths()[kind] for kind in ("stdlib", "purelib", "platlib")))
    frames = [(f.filename, f.lineno) for f in traceback.extract_tb(problem.__traceback__)]
    users = [(file, line) for file, line in frames if Path(file).is_file() and not file.startswith(others)]
    return [f"{file}, line {line}" for file, line in users]


def in_plain_words(kind: str) -> str:
    """A type in words: ``Literal['a', 'b']`` as its values, a class by its name."""
    if values := re.fullmatch(r"typing\.Literal\[(.*)\]", kind):
        return f"one of {values[1]}"
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind).replace("NoneType", "null")
    return NUMBERS.get(name, name)


def meant(given: str, there: Iterable[str], prefix: str = "") -> str:
    near = get_close_matches(given, list(there), 1, 0.5)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def options_of(class_path: str) -> list[str]:
    """The parameters of a class, those of its bases included."""
    kind: type = resolve_name(class_path)
    skipped = ("self", "params", "optimizer", "args", "kwargs")
    own = [vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base)]
    names = [name for init in own for name in signature(init).parameters]
    return [name for name in dict.fromkeys(names) if name not in skipped]


def subclasses(base: type) -> Iterator[str]:
    """The names of all public subclasses of Lightning's or torch's own that are loaded."""
    kinds: list[type] = base.__subclasses__()
    for kind in kinds:
        if kind.__name__[0] != "_" and not kind.__module__.startswith(str(__package__)):
            yield kind.__name__
        yield from subclasses(kind)
