r"""What the autograd node of ATen's operator hasn't: gradients that are themselves to be differentiated.

The node (`kernels/csrc/aten_operators.c`) saves the states of every layer as its first result. Under
`create_graph` its backward comes here, and so does the cotangent of those states, which a second derivative
brings.
"""

from collections.abc import Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from ..kernels import DEFAULT, REFERENCE, native
from ..kernels.interface import NetworkOptions, Saved
from ..kernels.nonlinearities import PHI_OF_CODE
from ..torch_internals import CUDNN_SCHEMAS
from . import composed
from .network_vjp import network_vjp

NAME = "manual_rnn::composed_network_backward"

# Up to so many steps each runs as PyTorch's operations, whose nodes cost less than ours. The time of `nn.RNN`
# by ours of an inner step of meta-learning, (B, I, H) = (4, 8, 16) and (16, 16, 64), with FEW = 8, 20 and 64,
# on a Zen 5, one thread:
#
#      9 steps    1.21, 1.22    1.62, 1.48    1.58, 1.55
#     32          3.4,  2.2     3.1,  2.3     2.4,  2.2
FEW = 20


def composed_network_backward(
    input: Tensor,
    weight: Sequence[Tensor],
    weight_stride0: int,
    weight_buf: Tensor,
    hx: Tensor,
    cx: Tensor | None,
    states: Tensor,
    c_states: Tensor | None,
    c_last: Tensor | None,
    c: Tensor | None,
    mode: int,
    hidden_size: int,
    proj_size: int,
    num_layers: int,
    batch_first: bool,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_sizes: Sequence[int],
    dropout_state: Tensor | None,
    reserve: Tensor,
    output_mask: Sequence[bool],
) -> list[Tensor]:
    """The arguments of `aten::_cudnn_rnn_backward`, with the alpha of a leak as `cx` and the frozen weights
    as `proj_size`; of its results those that are asked for, as one list."""
    first, sizes = int(batch_first and not batch_sizes), None
    if batch_sizes:
        sizes = torch.tensor(batch_sizes, device="cpu")
    x = input
    if first:
        x, c = x.transpose(0, 1), None if c is None else c.transpose(0, 1)
    steps = len(batch_sizes) or x.size(0)
    few = torch.is_grad_enabled() and steps <= FEW
    kernel = REFERENCE if few else DEFAULT
    options = NetworkOptions(sizes, PHI_OF_CODE[mode], bidirectional, weight_stride0 == 4, kernel, cx)
    h0 = None if hx.dim() == 1 else hx
    of_weights = native.wanted_weights(output_mask[3], proj_size, len(weight))
    need = output_mask[0], output_mask[1] and h0 is not None, *of_weights
    saved = Saved(x, h0, [w for w in weight if w.dim() == 2], states.unbind(0))
    run = composed.network_vjp if few else network_vjp
    inner = () if c_states is None else c_states.unbind(0)
    dx, dhx, *dweights = run(need, saved, (c, c_last, *inner), options)
    dx = dx.transpose(0, 1) if first and dx is not None else dx
    return [gradient for gradient in (dx, dhx, *dweights) if gradient is not None]


def of_many(*args: Any) -> tuple[Any, ...]:
    """The node's backward for many cotangents at once, `is_grads_batched`, for which torch has no rule."""
    mask, no_state = args[-1], args[4].dim() == 1
    found = iter(composed_network_backward(*args))
    dx, dhx = (next(found) if wanted else None for wanted in (mask[0], mask[1] and not no_state))
    weights, frozen = args[1], args[12]
    wanted = native.wanted_weights(mask[3], frozen, len(weights))
    of_weights = [next(found) if want else w for want, w in zip(wanted, weights, strict=True)]
    return dx, dhx, None, of_weights if mask[3] else []


def fake_backward(input: Tensor, weight: Sequence[Tensor], *args: Any) -> list[Tensor]:
    """The shapes of the node's own backward, for tracing."""
    hx, frozen, mask = args[2], args[10], args[19]
    wanted = native.wanted_weights(mask[3], frozen, len(weight))
    found = [input] * mask[0] + [hx] * (mask[1] and hx.dim() > 1) + list(compress(weight, wanted))
    return [x.new_empty(x.shape) for x in found]


def define() -> None:
    """Define the operator, once in a process, and the fake of the other."""
    if not hasattr(torch.ops.manual_rnn, "composed_network_backward"):
        arguments = CUDNN_SCHEMAS["_cudnn_rnn_backward"].partition("(")[2].partition(")")[0]
        torch.library.define(NAME, f"({arguments}) -> Tensor[]")
        torch.library.impl(NAME, "CompositeImplicitAutograd", composed_network_backward)
        if native.has_aten_node:
            torch.library.register_fake("manual_rnn::network_backward", fake_backward)


define()
