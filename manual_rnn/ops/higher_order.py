r"""The derivatives that cuDNN's network hasn't, composed of those of its layers.

    with_derivatives    gradients that are themselves to be differentiated
    batching_rule       gradients for many cotangents at once, `is_grads_batched`

Both start from what PyTorch's node has kept for its own backward pass.
"""

from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..kernels import aten
from ..torch_internals import CUDNN_DERIVATIVE, give_cudnn_a_batching_rule, kept_by_cudnn
from .by_layers import Options, by_layers, noting
from .layer import grouped, run_layers

__all__ = ["batching_rule", "with_derivatives"]

PHI_OF_CUDNN = {number: phi for phi, number in aten.CUDNN_MODE.items()}


def with_derivatives(
    kernel: kernels.KernelName, grads: Sequence[Tensor | None], cotangents: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...] | None:
    """A hook on cuDNN's node: its gradients by the layers, if they are to be differentiated themselves.

    Those of views, since one input may have been computed from another, whose gradient it isn't to pass on.
    """
    if not torch.is_grad_enabled():
        return None
    kept = kept_by_cudnn()
    inputs = [t.view_as(t) for t in (kept.input, *kept.weight, kept.hx)]
    with kernels.use_kernel(kernel), torch.autocast("cuda", enabled=False):
        output, h_n = run_layers(*_layers(kept, inputs))
    outputs = output.transpose(0, int(kept.batch_first)), h_n
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=False) if c is not None]
    wanted = [t for t, grad in zip(inputs, grads, strict=False) if grad is not None]
    given = [c for _, c in pairs]
    exact = torch.autograd.grad([o for o, _ in pairs], wanted, given, create_graph=True, allow_unused=True)
    found = iter(exact)
    return tuple(grad if grad is None else next(found) for grad in grads)


def _layers(kept: Any, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Any], str, Tensor | None, int]:
    """What `run_layers` takes. Autocast hands cuDNN its weights as columns of numbers."""
    x, *flat, hx = inputs
    layers, bias = kept.num_layers, kept.weight_stride0 == 4
    shapes = aten.shapes(layers, hx.size(0) // layers, x.size(-1), hx.size(-1), bias)
    groups = grouped([w.reshape(shape) for w, shape in zip(flat, shapes, strict=True)], bias)
    sizes = torch.tensor(kept.batch_sizes, device="cpu") if kept.batch_sizes else None
    return x.transpose(0, int(kept.batch_first)), hx, groups, PHI_OF_CUDNN[kept.mode], sizes, layers


@cache
def batching_rule() -> Any:
    """Give cuDNN's derivative one, unless it has; what comes back keeps it."""
    return give_cudnn_a_batching_rule(_of_many)


def _of_many(*args: Any) -> tuple[Any, ...]:
    """cuDNN's derivative, of cotangents any of which may be many: from states that are computed once more."""
    schema = getattr(torch.ops.aten, CUDNN_DERIVATIVE).default._schema
    given = SimpleNamespace(**dict(zip([a.name for a in schema.arguments], args, strict=True)))
    x, hx, groups, phi, sizes, layers = _layers(given, (given.input, *given.weight, given.hx))
    first, flat = int(given.batch_first), [w for group in groups for w in group if w is not None]
    c = None if given.grad_output is None else given.grad_output.transpose(0, first)
    of_x, of_hx, _, of_weights = given.output_mask
    how = Options(sizes, phi, given.bidirectional, given.weight_stride0 == 4, hx.size(-1), x.size(-1))
    need = of_x, of_hx, *[of_weights] * len(flat)
    with torch.autocast("cuda", enabled=False):
        last, _, before = noting(x, hx, groups, phi, sizes, layers)
        given_h_n, unread = given.grad_hy, [None] * layers
        dx, dhx, *dw = by_layers(how, need, [*before, last], x, hx, flat, c, given_h_n, unread)
    own = [d.reshape(w.shape) for d, w in zip(dw, given.weight, strict=True) if d is not None]
    return dx if dx is None else dx.transpose(0, first), dhx, None, own
