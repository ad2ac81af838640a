r"""A plain network as one operator, whose autograd node is PyTorch's, in C++.

    native    aten::_cudnn_rnn on a CPU, whose kernel there is the engine    `kernels/csrc/aten_operators.c`
              manual_rnn::network under a transform                          `network.py`
    aten      torch.rnn_tanh and rnn_relu on a CPU, of a few steps
    cuDNN     aten::_cudnn_rnn on CUDA                                       `cudnn.py`

The tensors are plain ones, and nothing traces. `_cudnn_rnn` runs where derivatives are autograd's alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import kernels
from ..kernels import aten, native
from ..kernels.interface import PLAIN_TYPES, NetworkOptions, weight_shapes
from ..kernels.nonlinearities import PHI
from ..torch_internals import (
    any_autocast,
    cudnn_rnn,
    is_mapped,
    profiling,
    transforms_active,
)
from . import dispatch
from .cudnn import run_cudnn
from .flop_formulas import register as register_flop_formulas
from .higher_order import batching_rule
from .network import as_batch_first, as_separate_output, network
from .profiler import record_call
from .saved_tensors import forget, node_inputs, read_by_backward

_NO_STATE = {dtype: torch.empty(0, dtype=dtype, device="cpu") for dtype in native.TYPES}
_loaded = vars(torch.utils)


class PlainOptions(NamedTuple):
    """What a plain call is beside its tensors."""

    phi: str
    has_biases: bool
    batch_first: bool  # of padded input
    bidirectional: bool
    layers: int
    input_size: int
    hidden_size: int
    dropout: float  # between layers, as it is at work
    alpha: Tensor | None  # of a leak
    sizes: Sequence[int]  # batch_sizes of packed input, else empty
    steps: int
    batch: int

    def hx_shape(self) -> tuple[int, int, int]:
        return self.layers * (1 + self.bidirectional), self.batch, self.hidden_size

    def takes(self, hx: Tensor | None) -> bool:
        return hx is None or (hx.layout is torch.strided and hx.shape == self.hx_shape())


def run_plain_network(
    x: Tensor, hx: Tensor | None, weights: list[Tensor], options: PlainOptions
) -> tuple[Tensor, Tensor] | None:
    """`output` and `h_n`; None where it isn't as plain as that, or something doesn't fit."""
    if aten.by_cudnn(x):
        return _run_cudnn(x, hx, weights, options)
    kernel = plain_kernel(x, hx, recorded := is_recorded(x, hx, weights), options)
    if kernel == kernels.NATIVE:
        if recorded is None:
            return _run_operator(x, hx, weights, options)
        if options.dropout:
            return _run_with_dropout(x, hx, weights, options)
        return _run_native(x, hx, weights, options, recorded)
    if kernel is None or (recorded is None and is_mapped(x, hx, *weights)):
        return None
    return _run_aten(x, hx, weights, options)


def is_recorded(x: Tensor, hx: Tensor | None, weights: Sequence[Tensor]) -> bool | None:
    """Whether autograd records the call. None where a transform may want a derivative."""
    return None if transforms_active() else dispatch.requires_grad(*weights, x, hx)


def plain_kernel(x: Tensor, hx: Tensor | None, recorded: bool | None, options: PlainOptions) -> str | None:
    """The kernel that runs a plain call on a CPU: the engine; or PyTorch's operation, where it is faster, and
    for the gradients and the dropout of a few steps.

    A few are ten under a transform, or where the gradient of a leaf is wanted, which is often differentiated
    itself. Else they are a single one, unless it is large: PyTorch has its second derivative in less time.
    """
    asked, alpha = kernels.requested_kernel(), options.alpha
    may_be_aten = asked == kernels.DEFAULT and aten.has_recurrence(options.phi, alpha)
    if not x.is_cpu or x.dtype not in native.TYPES:
        return kernels.ATEN if may_be_aten and x.is_cpu and x.is_complex() else None
    if any_autocast() and torch.is_autocast_enabled("cpu"):
        return kernels.ATEN if may_be_aten and 0 < options.steps <= aten.SHORT else None
    if not native.has_aten_node or asked not in (kernels.DEFAULT, kernels.NATIVE):
        return None
    if may_be_aten:
        if (
            (recorded is not False or options.dropout)
            and 0 < options.steps <= aten.SHORT
            and _are_few(x, hx, recorded, options)
        ):
            return kernels.ATEN
        if aten.is_faster(x.dtype, options.batch, options.hidden_size):
            return kernels.ATEN
    is_row = alpha is None or (type(alpha) in PLAIN_TYPES and alpha.is_cpu and not alpha.requires_grad)
    return kernels.NATIVE if is_row else None


def _are_few(x: Tensor, hx: Tensor | None, recorded: bool | None, options: PlainOptions) -> bool:
    """Whether the gradient of a leaf is wanted; or it is a single small step."""
    if recorded is None or _views_leaf(x) or (hx is not None and _views_leaf(hx)):
        return True
    large = options.batch * options.hidden_size**2 >= aten.LARGE
    return options.steps == aten.SINGLE and not large


def _views_leaf(x: Tensor) -> bool:
    """Whether it is a leaf that wants a gradient, or a view of one; not a state that was learned for one
    sequence and expanded to a batch."""
    base = x if x.is_leaf else x._base
    return x.requires_grad and base is not None and base.is_leaf and base.numel() >= x.numel()


def _run_native(
    x: Tensor, hx: Tensor | None, weights: list[Tensor], options: PlainOptions, recorded: bool
) -> tuple[Tensor, Tensor] | None:
    phi, has_biases, batch_first, bidirectional, layers, _, H, _, alpha, sizes, steps, _ = options
    size = 4 if has_biases else 2
    if False in [w.is_cpu for w in weights] or not (hx is None or hx.is_cpu):
        return None
    given, frozen, read = hx, 0, [True]
    try:
        if recorded:
            batching_rule()
            if "flop_counter" in _loaded:  # whose counters may watch the backward pass alone
                register_flop_formulas()
            wanted = [w.requires_grad or len(weights) > native.MOST_BITS for w in weights]
            frozen = native.frozen_bits(wanted) if False in wanted else 0
            need = x.requires_grad, hx is not None and hx.requires_grad, *wanted
            read = read_by_backward(need, steps == 1, size * (1 + bidirectional), size)
            x, hx, weights = node_inputs(x, hx, weights, read, batch_first)
            alpha = alpha if alpha is None else alpha.detach()
        hx = _NO_STATE[x.dtype] if hx is None else hx
        how = PHI[phi].code, H, frozen, layers, batch_first, 0.0, recorded, bidirectional, sizes, None
        _, h_n, output, _, _ = cudnn_rnn(x, weights, size, None, hx, alpha, *how)
    except (RuntimeError, TypeError) as error:
        if isinstance(error, RuntimeError) and _fit(x, given, weights, options):
            raise
        return None  # the checks have the words
    if profiling():
        record_call(x.transpose(0, 1) if batch_first else x, hx, weights, layers, sizes, h_n)
    if not recorded:
        return output, h_n
    if not read[0]:
        forget(x)
    return as_separate_output(output), as_separate_output(h_n)


def _run_operator(
    x: Tensor, hx: Tensor | None, weights: list[Tensor], options: PlainOptions
) -> tuple[Tensor, Tensor] | None:
    """Under a transform the operator, for which the dispatcher has the transform's rule."""
    phi, has_biases, batch_first, bidirectional, _, _, _, dropout, _, sizes, _, _ = options
    if dropout or sizes or not _fit(x, hx, weights, options):
        return None  # the checks have the words
    how = NetworkOptions(None, phi, bidirectional, has_biases, kernels.requested_kernel())
    output, h_n = network(x.transpose(0, 1) if batch_first else x, hx, weights, how)
    return as_batch_first(output) if batch_first else output, h_n


def _run_with_dropout(
    x: Tensor, hx: Tensor | None, weights: list[Tensor], options: PlainOptions
) -> tuple[Tensor, Tensor] | None:
    """Layer after layer, with dropout between them on memory in the order of time: the masks of `nn.RNN`."""
    if not options.takes(hx):
        return None  # the checks have the words
    D, layers, size = 1 + options.bidirectional, options.layers, len(weights) // options.layers
    output, last = x.transpose(0, 1) if options.batch_first else x, []
    for at in range(layers):
        layer = weights[at * size : (at + 1) * size]
        of_layer = options._replace(batch_first=False, layers=1, input_size=output.size(-1))
        h0 = hx if hx is None else hx.narrow(0, at * D, D)
        found = _run_native(output, h0, layer, of_layer, dispatch.requires_grad(output, h0, *layer))
        if found is None:
            return None
        output = torch.dropout(found[0], options.dropout, True) if at + 1 < layers else found[0]
        last.append(found[1])
    return as_batch_first(output) if options.batch_first else output, torch.cat(last)


def _run_aten(
    x: Tensor, hx: Tensor | None, weights: list[Tensor], options: PlainOptions
) -> tuple[Tensor, Tensor] | None:
    """By PyTorch's own operation, which checks all but the shape of a bias."""
    phi, has_biases, batch_first, bidirectional, layers, I, H, dropout, _, sizes, steps, _ = options  # noqa: E741
    if [w.shape for w in weights] != weight_shapes(layers, 1 + bidirectional, I, H, has_biases):
        return None  # the checks have the words
    shape = options.hx_shape()
    if hx is not None and hx.shape != shape:
        return None
    try:
        if steps == 1 and not (any_autocast() or (dropout and transforms_active())):
            rows = x if sizes else (x.transpose(0, 1) if batch_first else x).squeeze(0)
            last, h_n = aten.single_step(rows, hx, weights, phi, 1 + bidirectional, has_biases, dropout)
            output = torch.cat([last]) if sizes else torch.stack([last])
            return as_batch_first(output) if batch_first else output, h_n
        hx = torch.zeros(shape, dtype=x.dtype, device=x.device) if hx is None else hx
        how = weights, has_biases, layers, dropout, dropout != 0, bidirectional
        if sizes:
            return aten.RUN[phi](x, torch.tensor(sizes, device="cpu"), hx, *how)
        if batch_first and transforms_active():
            output, h_n = aten.RUN[phi](x.transpose(0, 1), hx, *how, False)
            return as_batch_first(output), h_n
        return aten.RUN[phi](x, hx, *how, batch_first)
    except RuntimeError:
        if _fit(x, hx, weights, options):
            raise
        return None  # as above


def _fit(x: Tensor, hx: Tensor | None, weights: list[Tensor], options: PlainOptions) -> bool:
    """Whether all tensors fit each other, so that an error would have another cause."""
    _, has_biases, _, bidirectional, layers, I, H, _, alpha, _, steps, _ = options  # noqa: E741
    if alpha is not None or not steps or {w.layout for w in weights} != {torch.strided}:
        return False
    if not aten.fit(x, weights, weight_shapes(layers, 1 + bidirectional, I, H, has_biases)):
        return False
    alike = hx is None or (hx.device == x.device and (hx.dtype == x.dtype or any_autocast()))
    return alike and options.takes(hx)


def _run_cudnn(
    x: Tensor, hx: Tensor | None, weights: list[Tensor], options: PlainOptions
) -> tuple[Tensor, Tensor] | None:
    asked = kernels.requested_kernel()
    phi, has_biases, batch_first, bidirectional, _, _, _, dropout, alpha, sizes, _, _ = options
    if dropout or transforms_active() or asked not in (kernels.DEFAULT, kernels.ATEN):
        return None
    able = aten.has_recurrence(phi, alpha) and aten.unsupported_reason(x) is None
    if not (able and _fit(x, hx, weights, options)):
        return None
    hx = x.new_zeros(options.hx_shape()) if hx is None else hx
    batch_sizes = torch.tensor(sizes, device="cpu") if sizes else None
    how = NetworkOptions(batch_sizes, phi, bidirectional, has_biases, asked)
    return run_cudnn(x, hx, weights, how, batch_first)
