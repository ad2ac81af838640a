r"""`torch.nn.RNN` itself, replaced: for libraries that build networks, or look them up, by the class."""

from typing import Any

import torch
from torch import nn

from .convert import check_target
from .module import ManualRNN
from .parameters import NN_RNN

PLACES: tuple[Any, ...] = (torch.nn, torch.nn.modules, torch.nn.modules.rnn)  # where torch offers the class


class patch_rnn:  # noqa: N801  # used like a function, as torch.no_grad is
    r"""Put `ManualRNN` in the place of `torch.nn.RNN`, until `undo` or the end of a `with` block.

    Call it before the import of the library that is to use it: a library that has run `from torch.nn import
    RNN`, subclassed it, or put it into a table keeps the class that it found. What a library builds later,
    and looks up under `torch.nn.RNN`, is a `ManualRNN`.

        import manual_rnn
        manual_rnn.patch_rnn()
        import the_library

    A network that was built before stays an `nn.RNN`, which `isinstance(..., torch.nn.RNN)` doesn't know any
    more and pickle refuses until the patch is undone; `swap_rnn` turns it into a `ManualRNN`. The way back is
    `swap_rnn(model, to=patch_rnn.original)`.

    `torch.compile` asks for `torch.nn.RNN` by name, and breaks the graph at each. So it does at a `ManualRNN`
    under this patch, unless it is told `torch._dynamo.config.allow_rnn = True`.

    Args:
        to: `ManualRNN`, or a subclass that inherits its constructor.

    Raises:
        TypeError: for any other class.

    Attributes:
        original: PyTorch's own class.

    Example:
        >>> with patch_rnn():
        ...     torch.nn.RNN(3, 4)
        ManualRNN(3, 4)
        >>> torch.nn.RNN(3, 4)
        RNN(3, 4)
    """

    original = NN_RNN

    def __init__(self, to: type[nn.Module] = ManualRNN) -> None:
        check_target(to, ManualRNN)
        self._before = [place.RNN for place in PLACES]
        for place in PLACES:
            place.RNN = to

    def undo(self) -> None:
        """Put back what was there before this patch. A second call does nothing."""
        for place, before in zip(PLACES, self._before, strict=False):
            place.RNN = before
        self._before = []

    def __enter__(self) -> "patch_rnn":
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()
