r"""One error is a line or two: the reason, the nearest option, the names there are; exit code 2.

jsonargparse explains an error in a tree of all types that it tried. Its words for a class or an option that
isn't there are read here; of any other error the innermost cause is told. pyproject.toml has an upper bound
of its version.
"""

import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from inspect import getfile
from pathlib import Path
from pkgutil import resolve_name
from sysconfig import get_paths
from typing import NoReturn

from jsonargparse import ArgumentParser
from pytorch_lightning import Callback
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import Profiler
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from manual_rnn import ManualRNN

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
NO_OPTION = r"unrecognized arguments: (\S+)|Option '([\w.]+)'|Group '([\w.]+)' does not accept option '(\w+)'"
CLASS = r"dot import path string: (\S+)|Given value type: <class 'str'>\s+Given value: (.*)$"
EXPECTED = r"(?m)- Expected an? (?!path |dot )(?:<class ')?(.*?)(?:'>)?$"
DENIED = r"Importing '([\w.]+)' is not allowed"
OURS = (str(Path(file).parent) for file in (getfile(ManualRNN), __file__))
NOT_THE_USERS = "|".join([r"\b(site|dist)-packages\b", *map(re.escape, (get_paths()["stdlib"], *OURS))])
"""What is in the path of a file that isn't the user's own."""

SPEAKING = (ValueError, OSError, ImportError, RuntimeError, MisconfigurationException)
"""Kinds of exceptions whose words say what can't be had."""


class InFewWords(LightningArgumentParser):
    """A parser with the project's words for a usage error."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        usage_error(in_few_words(message, ex, self))


def usage_error(message: str) -> NoReturn:
    sys.stderr.write(f"{prog()}: {message.strip()}\n")
    sys.exit(REFUSED)


def in_few_words(message: str, problem: Exception | None, parser: ArgumentParser) -> str:
    """The innermost cause of a parser's message, with the option and the names that there are."""
    key = ".".join(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', message)))  # of parsers within parsers
    if denied := re.search(DENIED, message):
        expected = f"expected {denied[1]}, which the checkpoint's settings name, on the command line too"
        return f"{expected}: --{key} {denied[1]}, say"
    if option := re.search(NO_OPTION, message):
        return no_such_option(key, ".".join(filter(None, option.groups())), message, parser)
    if key in BASES and (given := re.search(CLASS, message)):
        return no_such_class(key, given[1] or given[2])
    if not key or problem is None:
        return " ".join(message.split())
    reason = told(problem)
    first, _, got = reason.partition(". Got value: ")
    if got and f"- {first}\n" in message:  # of several types
        types = dict.fromkeys(re.findall(EXPECTED, message.partition("Given value:")[0]))
        return f"expected --{key} to be {' or '.join(types)}, got {got}"
    return f"--{key}: {reason}"


def no_such_option(key: str, option: str, message: str, parser: ArgumentParser) -> str:
    """Names the option nearest to the one given, and all options of a class."""
    if class_path := re.search(r"given class_path '([\w.]+)'", message):
        name = class_path[1].rpartition(".")[2]
        if name in {base.__name__ for base in BASES.values()}:
            return f"expected --{key} NAME before the options of one, got --{key}.{option} alone"
        there = ArgumentParser().add_class_arguments(
            resolve_name(class_path[1]), skip={"params", "optimizer"}, fail_untyped=False
        )
        expected = f"expected an option of {name}, got --{key}.{option}{meant(option, there)}"
        return f"{expected}\nIt has {', '.join(there) or 'none'}."
    near = meant(option.partition("=")[0].lstrip("-"), parser.get_defaults().keys(), "--")
    return f"there is no option {option}{near}\n--help lists all."


def no_such_class(key: str, given: str) -> str:
    """The reason why a class can't be had: its module's own error, another base, or no such name."""
    if "." in given and all(part.isidentifier() for part in given.split(".")):  # as a parser has asked for it
        try:
            found = resolve_name(given)
        except Exception as problem:  # whatever the module at that path raises
            return f"--{key} {given}: {told(problem)}"
        if not (isinstance(found, type) and issubclass(found, BASES[key])):
            return f"expected --{key} to be a class derived from {BASES[key].__name__}, got {given}"
    there = list(dict.fromkeys(TASKS if key == "data" else subclasses(BASES[key])))
    expected = f"expected --{key} to be a name or a class by its path, like my_module.MyClass, got {given}"
    return f"{expected}{meant(given, there)}\nThere are {', '.join(there)}."


def told(problem: BaseException, anywhere: bool = False) -> str:
    """The innermost cause of an exception in a line, and where in the user's own file it was raised.

    With ``anywhere`` the place of one whose words alone say little is told in any file.
    """
    while problem.__cause__ is not None:
        problem = problem.__cause__
    frames = traceback.extract_tb(problem.__traceback__)
    users = [f for f in frames if Path(f.filename).is_file() and not re.search(NOT_THE_USERS, f.filename)]
    speaks_for_itself = isinstance(problem, SPEAKING)
    name = "" if speaks_for_itself else f"{type(problem).__name__}: "
    shown = users or (frames if anywhere and not speaks_for_itself else [])
    place = f" ({shown[-1].filename}, line {shown[-1].lineno})" if shown else ""
    return f"{name}{' '.join(str(problem).split())}{place}"


def meant(given: str, there: Iterable[str], prefix: str = "") -> str:
    near = get_close_matches(given, list(there), 1, 0.5)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def subclasses(base: type) -> Iterator[str]:
    """The names of all public subclasses of Lightning's or torch's own that are loaded."""
    kinds: list[type] = base.__subclasses__()
    for kind in kinds:
        if kind.__name__[0] != "_" and not kind.__module__.startswith(str(__package__)):
            yield kind.__name__
        yield from subclasses(kind)
