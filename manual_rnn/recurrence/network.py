r"""The whole network as one job, where a kernel offers it and that pays; else layer after layer.

first derivative    the kernel's own
any other           that of the layers, composed anew from what was kept: a second backward, and where
                    backward is itself to be differentiated
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..kernels import native
from ..kernels.walk import Places
from . import dispatch, sight
from .layer import Phi, Weights, grouped, run_layers
from .whole import run_whole

__all__ = ["NATIVE", "VENDOR", "chosen", "run_network"]

NATIVE, VENDOR = "native", "vendor"


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
    if asked == NATIVE or kernels.KERNELS[VENDOR].why_not(x) is not None:  # the others are like it
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
    reason = kernels.KERNELS[VENDOR].why_not(*tensors)
    if reason is None and x.is_cuda and (compiling or not sight.plain(*tensors)):
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
    if kernel == VENDOR and not x.is_cuda:
        return kernels.KERNELS[VENDOR].network(x, hx, weights, batch_sizes, phi, bidirectional)
    flat, bias = tuple(w for group in weights for w in group if w is not None), weights[0][2] is not None
    if kernel == NATIVE:
        how = batch_sizes, phi, bidirectional, bias, hx.size(2), 0, sight.looked_at()
        found = run_whole(x, None if from_zero else hx, flat, *how)
        return found or run_layers(x, hx, weights, phi, batch_sizes, len(weights) // (1 + bidirectional))
    if sight.wants_gradient(x, hx, *flat):
        output, h_n = Network.apply((bias, batch_sizes, phi, bidirectional), x, hx, *flat)
        return dispatch.unhooked(output), dispatch.unhooked(h_n)
    sizes = [] if batch_sizes is None else batch_sizes.tolist()
    return kernels.KERNELS[VENDOR].cudnn_forward(x, hx, flat, bias, sizes, phi, bidirectional, False)[:2]


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


class Network(dispatch.Function):
    """cuDNN's network as one node."""

    @staticmethod
    def forward(ctx: Any, options: tuple, x: Tensor, hx: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        bias, batch_sizes, phi, bidirectional = options
        ctx.sizes = [] if batch_sizes is None else batch_sizes.tolist()
        vendor = kernels.KERNELS[VENDOR]
        output, h_n, reserve, buffer = vendor.cudnn_forward(
            x, hx, flat, bias, ctx.sizes, phi, bidirectional, True
        )
        ctx.options, ctx.fresh = options, True
        ctx.kernel = "torch" if kernels.asked() == VENDOR else kernels.DEFAULT  # of what isn't cuDNN's
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dispatch.copy_on_write(output), x, hx, reserve, buffer, *flat)
        return output, h_n

    @staticmethod
    def backward(ctx: Any, c: Tensor | None, c_last: Tensor | None) -> tuple[Any, ...]:
        output, x, hx, reserve, buffer, *flat = ctx.saved_tensors
        _, need_x, need_hx, *need_flat = ctx.needs_input_grad
        if c is None and c_last is None:
            return (None,) * (3 + len(flat))
        if torch.is_grad_enabled() or not ctx.fresh:
            return (None, *_composed(ctx, c, c_last, x, hx, flat))
        bias, _, phi, bidirectional = ctx.options
        ctx.fresh = False  # cuDNN uses its reserve up
        dx, dhx, dflat = kernels.KERNELS[VENDOR].cudnn_backward(
            x, hx, flat, bias, ctx.sizes, phi, bidirectional, output, c, c_last, reserve, buffer,
            (need_x, need_hx, any(need_flat)),
        )  # fmt: skip
        dweights = [d if need else None for d, need in zip(dflat, need_flat, strict=True)] if dflat else []
        return None, dx if need_x else None, dhx if need_hx else None, *(dweights or [None] * len(flat))


def _composed(
    ctx: Any, c: Tensor | None, c_last: Tensor | None, x: Tensor, hx: Tensor, flat: Sequence[Tensor]
) -> list[Tensor | None]:
    """The same gradients from the layers, which have derivatives of their own."""
    again = torch.is_grad_enabled()
    inputs, need = [x, hx, *flat], ctx.needs_input_grad[1:]
    if not again:
        inputs = [t.detach().requires_grad_(n) for t, n in zip(inputs, need, strict=True)]
    with torch.enable_grad():
        outputs = _by_layers(ctx.options, ctx.kernel, *inputs)
    pairs = [(o, g) for o, g in zip(outputs, (c, c_last), strict=True) if g is not None]
    grads = torch.autograd.grad(
        [o for o, _ in pairs],
        [t for t, n in zip(inputs, need, strict=True) if n],
        [g for _, g in pairs],
        create_graph=again,
        allow_unused=True,
    )
    found = iter(grads)
    return [next(found) if n else None for n in need]


def _by_layers(
    options: tuple, kernel: kernels.KernelName, output: Tensor, hx: Tensor, *flat: Tensor
) -> tuple[Tensor, Tensor]:
    bias, batch_sizes, phi, bidirectional = options
    groups = grouped(flat, bias)
    with kernels.use_kernel(kernel):
        return run_layers(output, hx, groups, phi, batch_sizes, len(groups) // (1 + bidirectional))
