r"""A laboratory that trains ManualRNN beside nn.RNN: ``train``, and ``python -m training`` from a shell."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    """``train`` is imported when it is asked for: Lightning takes seconds to load."""
    if name != "train":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .api import train

    return train
