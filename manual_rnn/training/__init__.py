r"""In a checkout the laboratory is the folder ``training`` beside this package; a wheel has it in this place.

So an editable install, a path that type checkers follow, has ``manual_rnn.training`` as a wheel has.
"""

from pathlib import Path
from typing import Any

__all__ = ["train"]
__path__ = [str(Path(__file__).parents[2] / "training")]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .api import train  # type: ignore[import-not-found]

    return train
