r"""Classes in outline: their documentation and their parameters, read from the source without running it.

jsonargparse makes a parser of an outline as of the class itself, and so judges a command line, or prints its
help, without the seconds in which torch and Lightning are imported.
"""

import ast
import builtins
import datetime
import inspect
import pathlib
import typing
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from inspect import Parameter
from pathlib import Path
from typing import Any

import jsonargparse.typing


class Known(dict[str, Any]):
    """What a type or a default may name without an import; every other name is ``Any``."""

    def __missing__(self, name: str) -> Any:
        return Any


UNKNOWN = object()
PLAIN = Known()
for module in (builtins, typing, datetime, pathlib, jsonargparse.typing):
    PLAIN.update(vars(module))


def package_file(package: str, *parts: str) -> Path:
    """A file of an installed package, which isn't imported."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)
    return Path(spec.origin).parent.joinpath(*parts)


def aliases(path: Path) -> dict[str, Any]:
    """The types that a file names by ``Name = Literal[...]``."""
    nodes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign)]
    return {
        ast.unparse(node.targets[0]): value(node.value, PLAIN, Any)
        for node in nodes
        if ast.unparse(node.value).startswith("Literal[")
    }


def outlines(path: Path, module: str, bases: Mapping[str, type], names: Mapping[str, Any]) -> dict[str, type]:
    """Of a file the public classes that are derived from one of ``bases``, or from each other, by name."""
    found: dict[str, type] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name[0] != "_":
            known = {**bases, **found}
            base = next((known[n] for n in map(last_name, node.bases) if n in known), None)
            if base is not None:
                found[node.name] = outline(node, base, module, names)
    return found


def last_name(node: ast.expr) -> str:
    """``C`` of ``a.b.C``."""
    return ast.unparse(node).rpartition(".")[2]


def only(path: Path, name: str, module: str, names: Mapping[str, Any]) -> type:
    """The class of that name in a file."""
    body = ast.parse(path.read_text()).body
    node = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == name)
    return outline(node, object, module, names)


def outline(node: ast.ClassDef, base: type, module: str, names: Mapping[str, Any]) -> type:
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    inherited = parameters_of(base)
    own = inherited
    if init is not None:
        own = {parameter.name: parameter for parameter in parameters_in(init.args, names)}
        own |= {k: p for k, p in inherited.items() if init.args.kwarg and k not in own}
    members = {"__init__": initializer(list(own.values())), "__module__": module}
    documented = ast.get_docstring(node) or (init and ast.get_docstring(init))
    return type(node.name, (base,), members | {"__doc__": documented or base.__doc__})


def parameters_of(kind: type) -> dict[str, Parameter]:
    return {} if kind is object else dict(inspect.signature(kind).parameters)


def parameters_in(args: ast.arguments, names: Mapping[str, Any]) -> Iterator[Parameter]:
    """Those of a method, after self."""
    without = [None] * (len(args.args) - len(args.defaults))
    pairs = [*zip(args.args, [*without, *args.defaults], strict=True)][1:]
    for arg, default in [*pairs, *zip(args.kwonlyargs, args.kw_defaults, strict=True)]:
        yield parameter(arg, default, names)


def parameter(arg: ast.arg, default: ast.expr | None, names: Mapping[str, Any]) -> Parameter:
    """One whose default takes an import may be anything, and is None where none is given."""
    given = Parameter.empty if default is None else value(default, vars(builtins), UNKNOWN)
    kind = Any if arg.annotation is None else value(arg.annotation, names, Any)
    if given is UNKNOWN:
        given, kind = None, Any
    return Parameter(arg.arg, Parameter.KEYWORD_ONLY, default=given, annotation=kind)


def initializer(parameters: list[Parameter]) -> Callable[..., None]:
    def __init__(self: Any, **options: Any) -> None:  # noqa: N807
        """A class is never made of its outline."""

    own = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
    __init__.__signature__ = inspect.Signature([own, *parameters])  # type: ignore[attr-defined]
    return __init__


def value(node: ast.expr, names: Mapping[str, Any], unknown: Any) -> Any:
    """Of a type or a default in a signature; ``unknown`` where it takes an import."""
    try:
        return eval(compile(ast.Expression(node), "<signature>", "eval"), {}, names)
    except (AttributeError, NameError, TypeError):
        return unknown
