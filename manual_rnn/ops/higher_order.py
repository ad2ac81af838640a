r"""The derivatives that PyTorch's node of `_cudnn_rnn` hasn't, composed of the two recurrences.

    composed_network_backward    of the engine's node, gradients that are themselves to be differentiated, by
                                 autograd or in forward mode, and those from a cotangent of a leak's states,
                                 which a second derivative brings
    with_derivatives             of cuDNN's node, the former, as a hook
    batching_rule                of both, gradients for many cotangents at once: `is_grads_batched`, `vmap`

The engine's node (`kernels/csrc/aten_operators.c`) saves the states of every layer as its first result. Of
cuDNN's they are computed once more.
"""

from collections.abc import Sequence
from functools import cache
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..kernels import DEFAULT, REFERENCE, native
from ..kernels.interface import NetworkOptions, Saved, weight_shapes
from ..kernels.nonlinearities import PHI_OF_CODE
from ..torch_internals import (
    CUDNN_DERIVATIVE,
    CUDNN_SCHEMAS,
    CudnnDerivative,
    cudnn_saved_tensors,
    register_cudnn_backward_vmap,
)
from . import composed
from .network_vjp import network_vjp

NAME = "manual_rnn::composed_network_backward"

# Up to so many steps each runs as PyTorch's operations, whose nodes cost less than ours. A gradient penalty
# by the weights at (B, I, H) = (4, 8, 32) takes 825 us so and 878 by ours at 5 steps, 1,003 and 908 at 11
# steps, on a Xeon, one thread; `nn.RNN` takes 893 and 1,505.
FEW = 8


def composed_network_backward(*args: Any) -> list[Tensor]:
    """The arguments of `aten::_cudnn_rnn_backward`, with the alpha of a leak as `cx`, the frozen weights as
    `proj_size`, and the cotangents of the states and of the output as those of the first and the third
    result; of its own results those that are asked for, as one list, which is empty where there is no
    cotangent."""
    given: Any = CudnnDerivative(*args)
    if not _has_cotangent(given):
        return []
    steps = len(given.batch_sizes) or given.input.size(_time_axis(given))
    recorded = torch.is_grad_enabled()
    kernel = REFERENCE if recorded and steps <= FEW else DEFAULT
    options = _options(given, given.bidirectional, kernel)._replace(alpha=given.cx)
    h0 = None if given.hx.dim() == 1 else given.hx
    saved = Saved(_in_time(given, given.input), h0, _matrices(given.weight), given.output.unbind(0))
    c = None if given.grad_cy is None else _in_time(given, given.grad_cy)
    inner = () if given.grad_output is None else given.grad_output.unbind(0)
    run = composed.network_vjp if recorded else network_vjp
    dx, *others = run(native.need_of(given), saved, (c, given.grad_hy, *inner), options)
    found = None if dx is None else _in_time(given, dx), *others
    return [gradient for gradient in found if gradient is not None]


def with_derivatives(
    kernel: kernels.KernelName, grads: Sequence[Tensor | None], cotangents: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...] | None:
    """A hook on cuDNN's node: its gradients by the composed network, if they are to be differentiated
    themselves."""
    if not torch.is_grad_enabled():
        return None
    saved = cudnn_saved_tensors()
    of_x, *of_weights, of_hx, _ = (grad is not None for grad in grads)
    dx, dhx, *dweights = _of_cudnn(saved, (of_x, of_hx, *of_weights), cotangents[:2], kernel)
    return dx, *dweights, dhx, None


@cache
def batching_rule() -> None:
    """Give the derivative of ATen's operator one, unless it has."""
    register_cudnn_backward_vmap(_of_many)


def _of_many(*args: Any) -> tuple[Any, ...]:
    """The derivative of cotangents any of which may be many."""
    given: Any = CudnnDerivative(*args)
    of_x, of_hx, _, of_weights = given.output_mask
    if given.output.dim() > given.input.dim():  # states of all layers, of the engine's node
        found, (need_x, need_hx, *wanted) = iter(composed_network_backward(*args)), native.need_of(given)
        dx, dhx = (next(found) if needed else None for needed in (need_x, need_hx))
        dweights = [next(found) if needed else w for needed, w in zip(wanted, given.weight, strict=True)]
        return dx, dhx, None, dweights if of_weights else []
    need = of_x, of_hx, *[of_weights] * len(given.weight)
    dx, dhx, *dweights = _of_cudnn(given, need, (given.grad_output, given.grad_hy), DEFAULT)
    return dx, dhx, None, [d for d in dweights if d is not None]


def _of_cudnn(
    given: Any, need: Sequence[bool], cotangents: Sequence[Tensor | None], kernel: str
) -> list[Tensor | None]:
    """Gradients of `x`, `hx` and each weight where `need` has True, as functions of all that is given.
    Autocast hands cuDNN its weights as columns of numbers."""
    c, c_last = cotangents
    hx, x = given.hx, _in_time(given, given.input)
    D = hx.size(0) // given.num_layers
    options = _options(given, D == 2, kernel)
    shapes = weight_shapes(given.num_layers, D, x.size(-1), hx.size(-1), options.has_biases)
    weights = [w.reshape(shape) for w, shape in zip(given.weight, shapes, strict=True)]
    with torch.autocast("cuda", enabled=False):
        _, _, states = composed.network(x, hx, weights, options)
        saved = Saved(x, hx, _matrices(weights), states)
        c = None if c is None else _in_time(given, c)
        dx, dhx, *dweights = composed.network_vjp(need, saved, (c, c_last), options)
    as_given = [d if d is None else d.reshape(w.shape) for d, w in zip(dweights, given.weight, strict=True)]
    return [None if dx is None else _in_time(given, dx), dhx, *as_given]


def _has_cotangent(given: Any) -> bool:
    return any(c is not None for c in (given.grad_output, given.grad_hy, given.grad_cy))


def _time_axis(given: Any) -> int:
    """Of padded input and output; packed rows are in the order of time."""
    return int(given.batch_first and not given.batch_sizes)


def _in_time(given: Any, x: Tensor) -> Tensor:
    """The time axis and that of the batch, if it is before it, changed places."""
    return x.transpose(0, 1) if _time_axis(given) else x


def _options(given: Any, bidirectional: bool, kernel: str) -> NetworkOptions:
    sizes = torch.tensor(given.batch_sizes, device="cpu") if given.batch_sizes else None
    return NetworkOptions(sizes, PHI_OF_CODE[given.mode], bidirectional, given.weight_stride0 == 4, kernel)


def _matrices(weights: Sequence[Tensor]) -> list[Tensor]:
    return [w for w in weights if w.dim() == 2]


def fake_backward(*args: Any) -> list[Tensor]:
    """The shapes and strides of what the engine's node computes by itself, for tracing."""
    given: Any = CudnnDerivative(*args)
    need = native.need_of(given) if _has_cotangent(given) else ()
    x = _in_time(given, given.input)
    gradients = [t.new_empty(t.shape) for t in compress((x, given.hx, *given.weight), need)]
    return [_in_time(given, gradients[0]), *gradients[1:]] if need and need[0] else gradients


def define() -> None:
    """Define the operator that the engine's node calls, once in a process, and the fake of the other."""
    if not hasattr(torch.ops.manual_rnn, "composed_network_backward"):
        arguments = CUDNN_SCHEMAS[CUDNN_DERIVATIVE].partition("(")[2].partition(")")[0]
        torch.library.define(NAME, f"({arguments}) -> Tensor[]")
        torch.library.impl(NAME, "CompositeImplicitAutograd", composed_network_backward)
        if native.has_aten_node:
            torch.library.register_fake("manual_rnn::network_backward", fake_backward)


define()
