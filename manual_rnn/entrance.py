r"""The short way for a plain call: from the module to C with no check in between.

C looks at every tensor anyway, and answers only where all is as it should be. Whatever else a call may be
(under a transform, a mode, a trace or autocast, profiled, of a recurrence of your own, with dropout at work,
of a wrong shape) goes the long way, in `module.py`, which has the checks, the words and the other kernels.
"""

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import kernels
from .parameters import PHI_OF_MODE
from .private import any_autocast
from .recurrence import NATIVE, looked_at, run_whole

__all__ = ["Called", "at_once"]

ASKED = frozenset({kernels.DEFAULT, NATIVE})
MOST = 2**31  # more than any weight has columns; C counts further


class Called:
    """The methods that the long way calls, none of which may be replaced: on a class, on an object, or by a
    module of that name."""

    def __init__(self, kind: type, *names: str) -> None:
        self.names, self.read = names, attrgetter(*names)
        self.methods = self.read(kind)

    def are_those_of(self, kind: type, own: dict[str, Any]) -> bool:
        """Whether objects of this class, with these attributes of their own, have just these methods."""
        names = self.names
        untouched = own.keys().isdisjoint(names) and own["_modules"].keys().isdisjoint(names)
        return untouched and self.read(kind) == self.methods


def at_once(
    rnn: Any, input: Tensor | PackedSequence, hx: Tensor | None, called: Called
) -> tuple[Any, Tensor] | None:
    """What `rnn(input, hx)` returns, or None where the call isn't plain."""
    if (
        torch.compiler.is_compiling()
        or kernels.asked() not in ASKED
        or not kernels.KERNELS[NATIVE].exchanges()
        or looked_at()
        or any_autocast()
    ):
        return None
    own = rnn.__dict__
    if not called.are_those_of(type(rnn), own):
        return None
    options = _options(own)
    if options is None:
        return None
    phi, weights, *shape = options
    if weights[0].dtype is torch.bfloat16 and kernels.BFLOAT16:  # where C isn't always the fastest
        return None
    if not isinstance(input, PackedSequence):
        return run_whole(input, hx, weights, None, phi, *shape)
    data, batch_sizes, order, inverse = input
    if hx is not None and order is not None:
        hx = hx.index_select(1, order)
    found = run_whole(data, hx, weights, batch_sizes, phi, *shape)
    if found is None:
        return None
    output, h_n = found
    packed = PackedSequence(output, batch_sizes, order, inverse)
    return packed, h_n if inverse is None else h_n.index_select(1, inverse)


def _options(own: dict[str, Any]) -> tuple[Any, ...] | None:
    """Nonlinearity, weights, batch_first, bidirectional, bias, H and I, where all are as the constructor left
    them."""
    mode, bias, batch_first, bidirectional = (
        own["mode"],
        own["bias"],
        own["batch_first"],
        own["bidirectional"],
    )
    H, L, parameters, names = own["hidden_size"], own["num_layers"], own["_parameters"], own["_all_weights"]
    if (
        (own["training"] and own["dropout"] and L != 1)
        or type(own["dropout"]) is not float
        or own["proj_size"]
        or "_assigned" in own
        or not (type(bias) is type(batch_first) is type(bidirectional) is type(own["training"]) is bool)
        or not type(H) is type(own["input_size"]) is type(L) is int
        or not (0 < H < MOST and 0 < own["input_size"] < MOST)
        or mode not in PHI_OF_MODE
        or len(names) != L * (1 + bidirectional)
    ):
        return None
    try:
        weights = tuple([parameters[name] for group in names for name in group])
    except KeyError:  # one that's computed
        return None
    if len(weights) != len(names) * (4 if bias else 2):
        return None
    return PHI_OF_MODE[mode], weights, batch_first, bidirectional, bias, H, own["input_size"]
