r"""The short way for a plain call: from the module to C, or on CUDA to cuDNN, with few checks in between.

C looks at every tensor anyway, and answers only where all is as it should be; so does `run_on_cuda`. Whatever
else a call may be (under a transform, a mode, a trace or a CPU's autocast, profiled, of a recurrence of your
own, with dropout at work, of a wrong shape) goes the long way, in `module.py`, which has the checks, the
words and the other kernels.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import kernels
from .kernels.interface import PLAIN_TYPES
from .ops import NATIVE, VENDOR, looked_at, run_module, run_on_cuda
from .torch_internals import any_autocast

__all__ = ["Called", "at_once"]

Run = Callable[..., tuple[Tensor, Tensor] | None]


class Called:
    """The methods that the long way calls, none of which may be replaced: on a class, on an object, or by a
    module of that name. `_run` is what `tracing.py` replaces."""

    def __init__(self, kind: type, *names: str) -> None:
        self.names, self.read = names, attrgetter(*names)
        self.methods = self.read(kind)

    def are_those_of(self, kind: type, own: dict[str, Any]) -> bool:
        """Whether objects of this class, with these attributes of their own, have just these methods."""
        names, modules = self.names, own["_modules"]
        if not own.keys().isdisjoint(names) or (modules and not modules.keys().isdisjoint(names)):
            return False
        return self.read(kind) == self.methods


def at_once(
    rnn: Any, input: Tensor | PackedSequence, hx: Tensor | None, called: Called
) -> tuple[Any, Tensor] | None:
    """What `rnn(input, hx)` returns, or None where the call isn't plain."""
    if torch.compiler.is_compiling():
        return None
    run, own = _run_of(input[0] if isinstance(input, PackedSequence) else input), rnn.__dict__
    if run is None or looked_at() or not called.are_those_of(type(rnn), own):
        return None
    if not isinstance(input, PackedSequence):
        one = type(input) in PLAIN_TYPES and input.dim() == 2
        return _unbatched(run, own, input, hx) if one else run(own, input, hx)
    data, batch_sizes, order, inverse = input
    if hx is not None and order is not None:
        hx = hx.index_select(1, order)
    found = run(own, data, hx, batch_sizes)
    if found is None:
        return None
    output, h_n = found
    rows = PackedSequence(output, batch_sizes, order, inverse)
    return rows, h_n if inverse is None else h_n.index_select(1, inverse)


def _run_of(input: Any) -> Run | None:
    """Who runs such input at once, if it's for them to."""
    asked = kernels.asked()
    if getattr(input, "is_cuda", False):
        return run_on_cuda if asked in (kernels.DEFAULT, VENDOR) else None
    able = asked in (kernels.DEFAULT, NATIVE) and kernels.KERNELS[NATIVE].exchanges()
    return run_module if able and not any_autocast() else None


def _unbatched(
    run: Run, own: dict[str, Any], input: Tensor, hx: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Of one sequence `(T, I)`, as a batch of one."""
    if hx is not None and (type(hx) not in PLAIN_TYPES or hx.dim() != 2):
        return None
    batch = 0 if own["batch_first"] else 1
    found = run(own, input.unsqueeze(batch), hx if hx is None else hx.unsqueeze(1))
    return found and (found[0].squeeze(batch), found[1].squeeze(1))
