r"""Settings as data, and those out of a checkpoint, which must be nothing else.

They may name classes of torch, of Lightning and of this package, with arguments that are data too; any other
class has to be named on the command line.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from enum import Enum
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import Namespace
from pytorch_lightning import Trainer

from .callbacks import CompareGradients
from .files import CHECKPOINT
from .twins import Twins

NOT_RESTORED = ("ckpt_path", "name", "config")
OLDER = {"compare_every", "tolerance"}
PACKAGE = str(__package__)
TRUSTED = ("torch.", "pytorch_lightning.", "lightning.", "lightning_fabric.", f"{PACKAGE}.")
PARTS: dict[str, type] = {"trainer": Trainer, "model": Twins, "compare": CompareGradients}
"""The settings that are arguments of one class, whichever the run."""
PLAIN, DOTTED = r"[\w\-#()%,/. ]*", r"\w\.[^\W\d]"
DATA = (str, int, float, Path, timedelta, type(None))
CONTAINERS = (Union, UnionType, list, dict, tuple)
NO_DATA = object()


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
        data = {**settings["data"], "class_path": of_this_package(settings["data"]["class_path"])}
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f"expected {CHECKPOINT}, got one without the settings of its run") from None
    settings = {**settings, "model": of_this_version(model), "data": data}
    if model.keys() >= OLDER:
        settings["compare"] = {"every_n_steps": model["compare_every"], "tolerance": model["tolerance"]}
    check_settings(settings, set(named))
    return settings


def of_this_version(model: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the twins, also of those that compared their own gradients and had ReLU as their default."""
    if not model.keys() >= OLDER:
        return dict(model)
    kept = {name: value for name, value in model.items() if name not in OLDER}
    return {**kept, "nonlinearity": model.get("nonlinearity") or "relu"}


def of_this_package(class_path: str) -> str:
    """A task of this package by the name that the package has here: installed it is another one."""
    return re.sub(r"^(manual_rnn\.)?training\.tasks\.", f"{PACKAGE}.tasks.", class_path)


def check_settings(settings: Mapping[str, Any], named: set[str]) -> None:
    """Raises ValueError for settings that would run code, or read another file of settings.

    jsonargparse takes a class or a function by its dotted path, a class by a file that names one, and any of
    these within a text of YAML. A parameter that takes text or a path by its type isn't read so.
    """
    for name, value in items(settings):
        if name not in PARTS:
            check_value(name, value, named)
        elif isinstance(value, Mapping):
            check_arguments(name, PARTS[name], value, named)
        else:
            raise ValueError(f"expected settings of {name} in the checkpoint, got {value!r}")


def check_arguments(name: str, kind: type | None, arguments: Mapping[str, Any], named: set[str]) -> None:
    """Of a class that the checkpoint names, or of one that the command line names, which has no ``kind``."""
    for argument, value in items(arguments):
        if name in PARTS and kind and argument not in signature(kind).parameters:
            raise ValueError(f"expected options of this version in the checkpoint, got {name}.{argument}")
        check_value(f"{name}.{argument}", value, named, kind is None or takes_data(kind, argument))


def check_value(name: str, value: Any, named: set[str], is_data: bool = False) -> None:
    if isinstance(value, Mapping) and "class_path" in value:
        check_class(name, value, named)
    elif isinstance(value, Mapping):
        for key, part in value.items() if is_data else items(value):
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
    for key, part in items(spec):
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


def items(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Raises ValueError for a key of other characters: jsonargparse takes ``a.b`` and ``a+`` apart."""
    for name, value in settings.items():
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"expected the name of an option in the checkpoint, got {name}")
        yield name, value


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
