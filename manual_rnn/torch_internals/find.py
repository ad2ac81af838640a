r"""How a private name of torch is looked up, and which were missing."""

from importlib import import_module
from typing import Any

MISSING: list[str] = []


def find(module: str, name: str, otherwise: Any = None) -> Any:
    """A name in a module of torch; where it is missing, `otherwise`, once that is noted."""
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError):
        MISSING.append(f"{module}.{name}")
        return otherwise


def never(*_: Any) -> bool:
    return False
