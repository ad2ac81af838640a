r"""How a module is built, beside what `nn.RNNBase` does: checks of its arguments, and the initial values
of parameters."""

import functools
import numbers
import warnings
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Init = TypeVar("Init", bound=Callable[..., None])


def refuses_projection(init: Init) -> Init:
    """A projected Elman network doesn't exist, whichever way it is asked for."""

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if len(args) > 8 and isinstance(args[8], int):
            raise TypeError(
                f"expected a torch.device or a string as ninth positional argument, got {args[8]!r}; nn.RNN "
                "would take it for proj_size, which an RNN can't have; for a device write device=..."
            )
        init(self, *args, **kwargs)

    return checked  # type: ignore[return-value]


def check_nonlinearity(nonlinearity: Any, known: Collection[str]) -> None:
    """One of the known names, or a function; a class is none yet."""
    if isinstance(nonlinearity, type):
        name = nonlinearity.__name__
        raise ValueError(
            f"Unknown nonlinearity: expected 'tanh', 'relu', a function or an instance of a module, got the "
            f"class {name}; write {name}()"
        )
    if not callable(nonlinearity) and nonlinearity not in list(known):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")


def check_dropout(dropout: Any, num_layers: int) -> None:
    """A probability, and a warning where no layer would ever use it."""
    valid = isinstance(dropout, numbers.Number) and not isinstance(dropout, bool)
    if not (valid and 0 <= dropout <= 1):
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an "
            "element being zeroed"
        )
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout "
            f"expects num_layers greater than 1, but got dropout={dropout} and "
            f"num_layers={num_layers}",
            stacklevel=4,  # past __init__ and what wraps it, to the line that builds the network
        )


def drawn_parameters(rnn: Any) -> list[Tensor]:
    """All but those of a nonlinearity and of a leak, which `nn.RNN` hasn't."""
    beyond = {"nonlinearity", "alpha"} if rnn._manual_rnn_leaky else {"nonlinearity"}
    named = rnn.named_parameters(remove_duplicate=False)
    kept = {id(w) for name, w in named if name.removeprefix("parametrizations.").split(".")[0] in beyond}
    return [w for w in rnn.parameters() if id(w) not in kept]


def _identity_(weight_hh: Tensor, *biases: Tensor) -> None:
    nn.init.eye_(weight_hh)
    for bias in biases:
        nn.init.zeros_(bias)


def _orthogonal_(weight_hh: Tensor, *_: Tensor) -> None:
    """In float32 at least: the QR behind it knows no half precision."""
    dtype = torch.promote_types(weight_hh.dtype, torch.float32)
    with torch.no_grad():
        weight_hh.copy_(nn.init.orthogonal_(torch.empty_like(weight_hh, dtype=dtype)))


RECURRENT: dict[str, Callable[..., None]] = {"identity": _identity_, "orthogonal": _orthogonal_}


def check_recurrent(rnn: Any, recurrent: Any) -> None:
    """None or a known way to initialise, and recurrent weights to which it can be done."""
    if recurrent is None:
        return
    if recurrent not in list(RECURRENT):
        names = " or ".join(map(repr, RECURRENT))
        raise ValueError(f"recurrent: expected None, {names}, got {recurrent!r}")
    for names in rnn._all_weights:
        for name in names[1:]:
            if name not in rnn._parameters:
                raise RuntimeError(
                    f"recurrent={recurrent!r}: expected {name} to be a parameter, and it is computed "
                    "from others; initialise before parametrizing or pruning"
                )
