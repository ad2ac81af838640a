r"""cuDNN's network on CUDA.

    first derivative    PyTorch's own, in C++: what `nn.RNN` runs
    any other           `higher_order.py`

`run_on_cuda` is the short way to it, from a module's attributes.
"""

from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..kernels import aten
from ..kernels.interface import PLAIN_TYPES
from ..kernels.nonlinearities import PHI_OF_MODE
from . import sight
from .higher_order import batching_rule, with_derivatives

__all__ = ["VENDOR", "run_cudnn", "run_on_cuda"]

VENDOR = "vendor"
FLAGS = {bool}


def run_cudnn(
    x: Tensor,
    hx: Tensor,
    flat: Sequence[Tensor],
    bias: bool,
    sizes: list[int],
    phi: str,
    bidirectional: bool,
    batch_first: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""`x (T, B, I)`, with `batch_first` `(B, T, I)`, or packed `(N, I)` with its `sizes`; returns `output`
    alike and `h_n`."""
    recorded = sight.wants_gradient(x, hx, *flat)
    output, h_n = aten.cudnn(x, hx, flat, bias, sizes, phi, bidirectional, batch_first, recorded)
    if not recorded:
        return output, h_n
    batching_rule()
    kernel = "torch" if kernels.asked() == VENDOR else kernels.DEFAULT  # of what isn't cuDNN's
    output.grad_fn.register_hook(partial(with_derivatives, kernel))  # type: ignore[union-attr]
    return output, h_n


_read = itemgetter(  # of a module's attributes
    "mode", "bias", "batch_first", "bidirectional", "num_layers", "input_size", "hidden_size", "training",
    "dropout", "proj_size", "_parameters", "_all_weights",
)  # fmt: skip


def run_on_cuda(
    attributes: dict[str, Any], x: Tensor, hx: Tensor | None, batch_sizes: Tensor | None = None
) -> tuple[Tensor, Tensor] | None:
    """A module's call, of its `vars`; None where anything isn't as the constructor leaves it or as `nn.RNN`
    expects it, for which the checks have the words."""
    found = _plain(attributes)
    sizes = [] if batch_sizes is None else _sizes(batch_sizes, x)
    if found is None or sizes is None:
        return None
    mode, bias, first, bidirectional, layers, I, H, flat = found  # noqa: E741
    D, first = 1 + bidirectional, first and not sizes
    if not _fit(x, 2 if sizes else 3, I, flat, aten.shapes(layers, D, I, H, bias)):
        return None
    shape = layers * D, sizes[0] if sizes else x.size(0 if first else 1), H
    if hx is None:
        hx = x.new_zeros(shape)
    if type(hx) not in PLAIN_TYPES or hx.shape != shape:
        return None
    if batch_sizes is not None and kernels.padding_pays(x, hx, batch_sizes, PHI_OF_MODE[mode]):
        return None
    return run_cudnn(x, hx, flat, bias, sizes, PHI_OF_MODE[mode], bidirectional, first)


def _plain(attributes: dict[str, Any]) -> tuple[Any, ...] | None:
    """The options of a module that drops and projects nothing, and its weights."""
    try:
        *options, training, dropout, projection, parameters, names = _read(attributes)
        flat = [parameters[name] for group in names for name in group]
    except KeyError:
        return None
    mode, *flags, layers, _, _ = options
    dropped = training and dropout and layers > 1
    if dropped or projection or "_assigned" in attributes or mode not in PHI_OF_MODE:
        return None
    return (*options, flat) if {*map(type, flags), type(training)} == FLAGS else None


def _sizes(batch_sizes: Tensor, x: Tensor) -> list[int] | None:
    """How many rows each step has, if that is what they say."""
    if type(batch_sizes) not in PLAIN_TYPES or batch_sizes.dtype != torch.int64 or not batch_sizes.is_cpu:
        return None
    found = batch_sizes.tolist()
    fine = found and found[-1] > 0 and sum(found) == x.size(0) and found == sorted(found, reverse=True)
    return found if fine else None


def _fit(
    x: Tensor,
    rank: int,
    features: int,
    flat: Sequence[Tensor],
    shapes: Sequence[tuple[int, ...]],
) -> bool:
    """Whether cuDNN takes this input, and it and the weights are as they should be."""
    if not {type(x), *map(type, flat)} <= PLAIN_TYPES or aten.why_not(x) is not None:
        return False
    if x.dim() != rank or x.size(-1) != features or [w.shape for w in flat] != shapes:
        return False
    dtype, place = flat[0].dtype, x.get_device()
    alike = all(w.dtype is dtype and w.get_device() == place for w in flat)
    return alike and (x.dtype is dtype or torch.is_autocast_enabled("cuda"))
