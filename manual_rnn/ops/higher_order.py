r"""The derivatives that cuDNN's network hasn't, composed of the two recurrences.

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
from ..kernels.interface import NetworkOptions, Saved, weight_shapes
from ..kernels.nonlinearities import PHI_OF_CODE
from ..torch_internals import CUDNN_DERIVATIVE, cudnn_saved_tensors, register_cudnn_backward_vmap
from . import aten_node, composed


def with_derivatives(
    kernel: kernels.KernelName, grads: Sequence[Tensor | None], cotangents: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...] | None:
    """A hook on cuDNN's node: its gradients by the composed network, if they are to be differentiated
    themselves.

    Those of views, since one input may have been computed from another, whose gradient it isn't to pass on.
    """
    if not torch.is_grad_enabled():
        return None
    saved = cudnn_saved_tensors()
    inputs = [t.view_as(t) for t in (saved.input, *saved.weight, saved.hx)]
    with torch.autocast("cuda", enabled=False):
        output, h_n, _ = composed.network(*_arguments(saved, inputs, kernel))
    outputs = output.transpose(0, int(saved.batch_first)), h_n
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=False) if c is not None]
    wanted = [t for t, grad in zip(inputs, grads, strict=False) if grad is not None]
    given = [c for _, c in pairs]
    exact = torch.autograd.grad([o for o, _ in pairs], wanted, given, create_graph=True, allow_unused=True)
    found = iter(exact)
    return tuple(grad if grad is None else next(found) for grad in grads)


def _arguments(
    saved: Any, inputs: Sequence[Tensor], kernel: str
) -> tuple[Tensor, Tensor, list[Tensor], NetworkOptions]:
    """What `composed.network` takes. Autocast hands cuDNN its weights as columns of numbers."""
    x, *flat, hx = inputs
    layers, has_biases = saved.num_layers, saved.weight_stride0 == 4
    D = hx.size(0) // layers
    shapes = weight_shapes(layers, D, x.size(-1), hx.size(-1), has_biases)
    weights = [w.reshape(shape) for w, shape in zip(flat, shapes, strict=True)]
    sizes = torch.tensor(saved.batch_sizes, device="cpu") if saved.batch_sizes else None
    options = NetworkOptions(sizes, PHI_OF_CODE[saved.mode], D == 2, has_biases, kernel)
    return x.transpose(0, int(saved.batch_first)), hx, weights, options


@cache
def batching_rule() -> None:
    """Give the derivative of ATen's operator one, unless it has."""
    register_cudnn_backward_vmap(_of_many)


def _of_many(*args: Any) -> tuple[Any, ...]:
    """The derivative of cotangents any of which may be many: of the engine's node from the states that it
    saved, of cuDNN's from states that are computed once more."""
    if args[6].dim() > args[0].dim():  # states of all layers
        return aten_node.of_many(*args)
    schema = getattr(torch.ops.aten, CUDNN_DERIVATIVE).default._schema
    given = SimpleNamespace(**dict(zip([a.name for a in schema.arguments], args, strict=True)))
    x, hx, weights, options = _arguments(given, (given.input, *given.weight, given.hx), kernels.DEFAULT)
    first = int(given.batch_first)
    c = None if given.grad_output is None else given.grad_output.transpose(0, first)
    of_x, of_hx, _, of_weights = given.output_mask
    need = of_x, of_hx, *[of_weights] * len(weights)
    with torch.autocast("cuda", enabled=False):
        _, _, states = composed.network(x, hx, weights, options)
        saved = Saved(x, hx, [w for w in weights if w.dim() == 2], states)
        found = composed.network_vjp(need, saved, (c, given.grad_hy), options)
    dx, dhx, *dw = found
    own = [d.reshape(w.shape) for d, w in zip(dw, given.weight, strict=True) if d is not None]
    return dx if dx is None else dx.transpose(0, first), dhx, None, own
