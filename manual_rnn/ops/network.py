r"""The whole network as one job, where a kernel offers it and that pays; else layer after layer.

In C, `whole.py`; on CUDA cuDNN's, `cudnn.py`; on a CPU ATen's, which is `nn.RNN` itself.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..kernels import aten, native
from ..kernels.time_order import Places
from . import sight
from .cudnn import VENDOR, run_cudnn
from .layer import Phi, Weights, run_layers
from .whole import run_whole

__all__ = ["NATIVE", "VENDOR", "chosen", "run_network"]

NATIVE = "native"


def chosen(x: Tensor, hx: Tensor, weights: Sequence[Weights], batch_sizes: Tensor | None) -> str | None:
    """The kernel that runs the whole network as one job, if one does.

    Raises:
        RuntimeError: if the vendor was asked for and can't, with the reason.
    """
    asked, compiling = kernels.asked(), torch.compiler.is_compiling()
    tensors = [x, hx, *(w for group in weights for w in group)]
    if asked == VENDOR:
        return _vendor(tensors, compiling)
    if asked not in (kernels.DEFAULT, NATIVE) or compiling or x.size(0) == 0 or not _numbers(tensors):
        return None
    gradients = torch.is_grad_enabled()
    wide = x.dtype is torch.bfloat16 and kernels.vendor_pays_in_bfloat16(hx.size(1), hx.size(2), gradients)
    if native.exchanges() and native.why_not(*tensors) is None and (asked == NATIVE or not wide):
        return NATIVE
    if asked == NATIVE or aten.why_not(x) is not None:  # the others are like it
        return None
    return VENDOR if wide or kernels.vendor_pays(x, hx, batch_sizes, gradients) else None


def _numbers(tensors: list[Tensor]) -> bool:
    """Whether all are eager numbers, though a mode may look on: it sees the operators of a call, for which
    autograd keeps what it keeps without one."""
    return sight.plain(*tensors) or sight.untraced(*tensors)


def _vendor(tensors: list[Tensor], compiling: bool) -> str | None:
    x = tensors[0]
    if not compiling and x.size(0) == 0:
        return None
    reason = aten.why_not(*tensors)
    if reason is None and aten.by_cudnn(x) and (compiling or not sight.plain(*tensors)):
        reason = "on CUDA it is one sealed call, and a transform, a trace or a mode looks on"
    if reason is not None:
        raise RuntimeError(f"kernel {VENDOR!r} can't run here: {reason}")
    return VENDOR


def run_network(
    kernel: str,
    x: Tensor,
    hx: Tensor,
    weights: Sequence[Weights],
    phi: Any,
    batch_sizes: Tensor | None,
    bidirectional: bool,
    from_zero: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""`x (T, B, I)` or packed `(N, I)`, `hx (L * D, B, H)`, which `from_zero` is zeros that nobody else has;
    returns the last layer's states and `h_n`.
    """
    if kernel == VENDOR and batch_sizes is not None and kernels.padding_pays(x, hx, batch_sizes, phi):
        ways = (False, True)[: 1 + bidirectional]
        places = [Places.of(batch_sizes, x.size(0), reverse, x.device) for reverse in ways]
        run = partial(_padded_layer, places)
        return run_layers(x, hx, weights, phi, batch_sizes, len(weights) // len(places), run)
    if kernel == VENDOR and not aten.by_cudnn(x):
        return aten.network(x, hx, weights, batch_sizes, phi, bidirectional)
    flat, bias = tuple(w for group in weights for w in group if w is not None), weights[0][2] is not None
    if kernel == NATIVE:
        how = batch_sizes, phi, bidirectional, bias, hx.size(2), 0, sight.looked_at()
        found = run_whole(x, None if from_zero else hx, flat, *how)
        return found or run_layers(x, hx, weights, phi, batch_sizes, len(weights) // (1 + bidirectional))
    sizes = [] if batch_sizes is None else batch_sizes.tolist()
    return run_cudnn(x, hx, flat, bias, sizes, phi, bidirectional)


def _padded_layer(
    places: list[Places],
    input: Tensor,
    hx: Tensor,
    weights: Sequence[Weights],
    phi: Phi,
    batch_sizes: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """A layer of a packed batch by the vendor, each direction as a padded batch that runs forward in time."""
    states, last = [], []
    for at, h0, group in zip(places, hx.split(1), weights, strict=True):
        padded = input.index_select(0, at.padded).unflatten(0, (-1, hx.size(1)))
        found = run_network(VENDOR, padded, h0, [group], phi, None, False)[0].flatten(0, 1)
        states.append(found.index_select(0, at.packed))
        last.append(found.index_select(0, at.last))
    return torch.cat(states, -1), torch.stack(last)
