r"""The whole network as one call of PyTorch's own: cuDNN's on CUDA, ATen's on a CPU.

It offers `network` alone, all layers and directions of plain tensors at once; what a transform or a second
derivative needs beside it is composed from the recurrences of the `torch` kernel.

On a CPU that is `nn.RNN` to the last bit, autograd included. On CUDA it is one node of autograd around
`_cudnn_rnn` and `_cudnn_rnn_backward`, with what `nn.RNN` can't do there: gradients in `eval()`, a second
backward, a second derivative, and weights that share no memory with each other.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .contract import why_foreign
from .torch_loop import elman, linear_recurrence

__all__ = ["cudnn_backward", "cudnn_forward", "elman", "linear_recurrence", "network", "why_not"]

RUN: dict[str, Any] = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}
CUDNN_MODE = {"relu": 0, "tanh": 1}
CUDNN_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def why_not(*tensors: Tensor | None) -> str | None:
    """The reason why this kernel can't take these tensors, or None."""
    for x in tensors:
        if x is None:
            continue
        if reason := why_foreign(x):
            return reason
        if x.is_cuda and (reason := _why_not_on_cuda(x)):
            return reason
        if not (x.is_cuda or x.is_cpu):
            return f"expected tensors on a CPU or on CUDA, got {x.device}"
    return None


def _why_not_on_cuda(x: Tensor) -> str | None:
    if not hasattr(torch.ops.aten, "_cudnn_rnn"):
        return f"expected cuDNN's network among PyTorch's operators, torch {torch.__version__} has none"
    if torch.version.hip or not torch.backends.cudnn.is_available():
        return "expected cuDNN, this torch has none"
    if not (torch.backends.cudnn.is_acceptable(x) and x.dtype in CUDNN_DTYPES):
        return f"expected cuDNN to take {x.dtype} on {x.device}"
    return None


def network(
    x: Tensor,
    hx: Tensor,
    weights: Sequence[Sequence[Tensor | None]],
    batch_sizes: Tensor | None,
    phi: str,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    r"""`x (T, B, I)` or packed `(N, I)`, `hx (L * D, B, H)`, weights for each layer and direction, on a CPU.

    Returns the states of the last layer and `h_n (L * D, B, H)`.
    """
    flat = [w for group in weights for w in group if w is not None]
    bias, layers = weights[0][2] is not None, len(weights) // (1 + bidirectional)
    how = (flat, bias, layers, 0.0, False, bidirectional)
    if batch_sizes is None:
        return RUN[phi](x, hx, *how, False)
    return RUN[phi](x, batch_sizes, hx, *how)


def cudnn_forward(
    x: Tensor,
    hx: Tensor,
    flat: Sequence[Tensor],
    bias: bool,
    sizes: list[int],
    phi: str,
    bidirectional: bool,
    train: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, `h_n`, and with `train` what backward wants of it: cuDNN's reserve, and its buffer."""
    buffer, how = _one_buffer(flat, bias), _how(hx, phi, bidirectional, train)
    found = torch.ops.aten._cudnn_rnn(x, flat, 4 if bias else 2, buffer, hx, None, *how, sizes, None)
    return found[0], found[1], found[3], buffer


def cudnn_backward(
    x: Tensor,
    hx: Tensor,
    flat: Sequence[Tensor],
    bias: bool,
    sizes: list[int],
    phi: str,
    bidirectional: bool,
    output: Tensor,
    c: Tensor | None,
    c_last: Tensor | None,
    reserve: Tensor,
    buffer: Tensor,
    need: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """Gradients of `x`, of `hx` and of the weights, as far as `need` asks for them. `reserve` is used up."""
    need_x, need_hx, need_weights = need
    dx, dhx, _, dweights = torch.ops.aten._cudnn_rnn_backward(
        x, list(flat), 4 if bias else 2, buffer, hx, None, output, c, c_last, None,
        *_how(hx, phi, bidirectional, True), sizes, None, reserve, [need_x, need_hx, False, need_weights],
    )  # fmt: skip
    return dx, dhx, list(dweights)


def _how(hx: Tensor, phi: str, bidirectional: bool, train: bool) -> tuple[Any, ...]:
    layers = hx.size(0) // (1 + bidirectional)
    return CUDNN_MODE[phi], hx.size(2), 0, layers, False, 0.0, train, bidirectional


def _one_buffer(flat: Sequence[Tensor], bias: bool) -> Tensor:
    """cuDNN's own order: the matrices of each layer and direction, then all biases, or zeros for them."""
    rows, step = [w.reshape(-1) for w in flat], 4 if bias else 2
    matrices = [w for i in range(0, len(rows), step) for w in rows[i : i + 2]]
    if bias:
        return torch.cat(matrices + [w for i in range(0, len(rows), 4) for w in rows[i + 2 : i + 4]])
    return torch.cat([*matrices, rows[0].new_zeros(len(rows) * flat[1].size(0))])
