r"""The whole network as one call of PyTorch's own: cuDNN's on CUDA, ATen's on a CPU.

It offers `network`, all layers and directions of plain tensors at once, and on CUDA `layer`; what a transform
or a second derivative needs beside it is composed from the recurrences of the `torch` kernel.

On a CPU that is `nn.RNN` to the last bit, autograd included. On CUDA it is PyTorch's operator `_cudnn_rnn`
with its node of autograd, to which `ops/cudnn.py` adds what `nn.RNN` can't do there: gradients in
`eval()`, a second derivative, and weights that share no memory with each other.
"""

from collections.abc import Callable, Sequence
from functools import cache
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..torch_internals import below_autograd, cudnn_rnn, flatten_dense, has_amx
from .interface import LayerWeights, NetworkOptions, check_memory, non_plain_reason
from .nonlinearities import PHI
from .torch_loop import elman, linear_recurrence  # noqa: F401  # offered too, as by every kernel

RUN: dict[str, Any] = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}
STEP: dict[str, Any] = {"tanh": torch.rnn_tanh_cell, "relu": torch.rnn_relu_cell}
NONLINEARITIES, HAS_LEAK = tuple(RUN), False
HAS_CUDNN = not torch.version.hip and torch.backends.cudnn.is_available()
# Time steps at most that PyTorch's own operation runs on a CPU: of a plain call that wants gradients or draws
# dropout, of fewer than so many multiply-adds, B H^2; and under a transform, under autocast, or where the
# gradient of a leaf is wanted. The time of `nn.RNN` by that of the engine, on a Zen 5, one thread, in
# training and in an inner step of meta-learning:
#     (T, B, H) = (1, 1, 64) 0.96 0.73   (1, 32, 128) 1.19 0.81   (1, 64, 256) 1.62 1.03   (3, 4, 16) 1.5 0.98
# of a leaf, (B, I, H) = (1, 3, 16) and (16, 16, 64):
#     steps    first derivative     penalty      Hessian-vector product    Hessian
#       2          1.2, 1.2        0.74, 0.79          0.71, 0.73            0.89
#       6          2.1, 2.0        1.09, 1.15          0.98, 1.02            1.32
#       9          2.5, 2.5        1.27, 1.36          1.04, 1.09            1.47
# and under a transform or autocast, (B, I, H) = (1, 3, 16) and (8, 16, 32):
#     steps       grad          jacrev      Hessian-vector product     autocast
#       2      0.56, 0.52     0.59, 0.56          0.45, 0.44          0.46, 0.84
#       9      1.06, 1.10     0.91, 0.94          0.94, 0.97          0.98, 2.19
#      12      1.30, 1.35     1.03, 1.06          1.15, 1.13          1.19, 2.75
SINGLE, LARGE, SHORT = 1, 2**22, 10
# Multiply-adds of a step, B H^2, from which oneDNN's products with AMX are faster in bfloat16 than those of
# the engine, and the least B. The time of `nn.RNN` by that of the engine, forward and in training, on a Xeon:
#     (B, H) = (16, 256) 1.11 1.30    (8, 512) 0.80 1.17    (16, 512) 0.83 1.04     (8, 2048) 0.34 0.47
#             (64, 128) 1.11 1.11  (128, 128) 0.83 0.73    (32, 256) 0.70 0.79    (4, 1024) 1.00 1.74
WIDE, LEAST_ROWS = 2**21, 8
CASTS = {torch.float32, torch.bfloat16}  # what PyTorch's autocast makes float16 of for cuDNN's networks


def has_recurrence(phi: str, alpha: Tensor | None) -> bool:
    """Whether PyTorch's own network knows this nonlinearity, and has no leak to take."""
    return phi in NONLINEARITIES and alpha is None


def is_faster(dtype: torch.dtype, B: int, H: int) -> bool:
    """Whether PyTorch's own operation runs wide bfloat16 networks on a CPU faster than the engine."""
    return dtype is torch.bfloat16 and B >= LEAST_ROWS and B * H * H >= WIDE and has_amx()


def by_cudnn(x: Tensor) -> bool:
    """Whether cuDNN would run it, and not ATen."""
    return x.is_cuda


def runs_cudnn(x: Tensor) -> bool:
    """Whether cuDNN takes it here and now."""
    return by_cudnn(x) and _unsupported_on_cuda(x) is None


def unsupported_reason(*tensors: Tensor | None) -> str | None:
    """The reason why this kernel can't take these tensors, or None."""
    for x in tensors:
        if x is None:
            continue
        if reason := non_plain_reason(x):
            return reason
        if by_cudnn(x) and (reason := _unsupported_on_cuda(x)):
            return reason
        if not (by_cudnn(x) or x.is_cpu):
            return f"expected tensors on a CPU or on CUDA, got {x.device}"
    return None


def _unsupported_on_cuda(x: Tensor) -> str | None:
    if not HAS_CUDNN:
        return "expected cuDNN, this torch has none"
    if cudnn_rnn is None:
        return f"expected cuDNN's network among PyTorch's operators, torch {torch.__version__} has none"
    return None if torch.cudnn_is_acceptable(x) else f"expected cuDNN to take {x.dtype} on {x.device}"


def autocasts_to_half(x: Tensor) -> bool:
    """Whether this input makes PyTorch's autocast run `nn.RNN` in float16, whatever type it's set to."""
    return by_cudnn(x) and HAS_CUDNN and x.dtype is not torch.bfloat16 and torch.backends.cudnn.enabled


def nn_rnn(
    x: Tensor, hx: Tensor, weights: Sequence[Tensor], options: NetworkOptions
) -> tuple[Tensor, Tensor]:
    r"""`torch.rnn_tanh` or `rnn_relu`, what `nn.RNN` runs, with PyTorch's own derivative.

    `x (T, B, I)` or packed `(N, I)`, `hx (L * D, B, H)`. Returns the states of the last layer and `h_n`.
    """
    layers = len(weights) // (options.D * (4 if options.has_biases else 2))
    how = list(weights), options.has_biases, layers, 0.0, False, options.bidirectional
    if options.batch_sizes is None:
        return RUN[options.nonlinearity](x, hx, *how, False)
    return RUN[options.nonlinearity](x, options.batch_sizes, hx, *how)


def single_step(
    rows: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    phi: str,
    D: int,
    has_biases: bool,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    r"""The same as of `nn_rnn` of one step, `rows (B, I)`, with fewer nodes: a training step of (B, I, H) =
    (1, 32, 64) takes 97 us with it and 106 without, on a Xeon. `dropout` is that between layers.

    Returns the last layer's state, which no edit in place may reach, and `h_n`.
    """
    step, size = STEP[phi], 4 if has_biases else 2
    alone = len(weights) == size
    starts: Sequence[Tensor]
    if hx is None:
        starts = [torch.zeros(rows.size(0), weights[1].size(0), dtype=rows.dtype, device=rows.device)]
    else:
        starts = [hx.squeeze(0)] if alone else hx.unbind(0)
    if alone:  # a loop would cost 3 us
        h = step(rows, starts[0], *weights)
        return h, torch.stack([h])
    last: list[Tensor] = []
    for at in range(0, len(weights), size):
        last.append(step(rows, starts[len(last) % len(starts)], *weights[at : at + size]))
        if len(last) % D == 0:
            rows = last[-1] if D == 1 else torch.cat(last[-D:], -1)
            if dropout and at + size < len(weights):
                rows = torch.dropout(rows, dropout, True)
    return rows, torch.stack(last)


def layer(
    x: Tensor, h0: Tensor, weights: LayerWeights, reverse: bool, options: NetworkOptions
) -> tuple[Tensor, Tensor]:
    r"""A layer in one direction on CUDA: `x (T, B, I)` or packed `(N, I)`, `h0 (B, H)`.

    Returns the states and the last of each sequence. cuDNN knows a second direction only beside a first, so a
    packed batch that is reversed runs as both, of which the first is dropped.
    """
    flat = [w for w in weights if w is not None]
    both = reverse and options.batch_sizes is not None
    rows = x.flip(0) if reverse and not both else x
    hx = torch.stack([h0] * (1 + both))
    with torch.autocast("cuda", enabled=False):  # the tensors have the type that was asked for
        how = options._replace(bidirectional=both), False, False
        states, last = cudnn(rows, hx, flat * (1 + both), *how)
    if both:
        return states.chunk(2, -1)[1].contiguous(), last[1]
    return states.flip(0) if reverse else states, last.squeeze_(0)


def cudnn(
    x: Tensor,
    hx: Tensor,
    flat: Sequence[Tensor],
    options: NetworkOptions,
    batch_first: bool,
    train: bool,
) -> tuple[Tensor, Tensor]:
    r"""Output and `h_n` of `x (T, B, I)`, with `batch_first` `(B, T, I)`, or packed `(N, I)`.

    They have PyTorch's own derivative, if `train` says that one is wanted. Weights must be of the right
    shapes: cuDNN reads them from one buffer. Where autocast has to cast them, PyTorch makes that buffer.
    """
    check_memory([x, hx, *flat])
    layers, step = hx.size(0) // options.D, 4 if options.has_biases else 2
    sizes = [] if options.batch_sizes is None else options.batch_sizes.tolist()
    cast = flat[0].dtype in CASTS and torch.is_autocast_enabled("cuda")
    buffer = None if cast else _one_buffer(flat, step)
    how = PHI[options.nonlinearity].code, hx.size(2), 0, layers, batch_first, 0.0, train
    found = cudnn_rnn(x, flat, step, buffer, hx.contiguous(), None, *how, options.bidirectional, sizes, None)
    return found[0], found[1]


def _one_buffer(flat: Sequence[Tensor], step: int) -> Tensor:
    """cuDNN's own order: the matrices of each layer and direction, then all biases, or zeros for them."""
    with below_autograd():
        if step == 2:
            return flatten_dense([*flat, flat[0].new_zeros(len(flat) * flat[1].size(0))])
        ordered = _matrices_first(len(flat))(flat)
        block = _block(ordered)
        return flatten_dense(ordered) if block is None else block


def _block(ordered: Sequence[Tensor]) -> Tensor | None:
    """Their own memory, if they lie in it one after the other."""
    first = ordered[0].detach()
    begin = end = first.data_ptr()
    for w in ordered:
        if w.data_ptr() != end or not w.is_contiguous():
            return None
        end += w.nbytes
    room = first.untyped_storage().nbytes() - first.storage_offset() * first.itemsize
    return first.as_strided(((end - begin) // first.itemsize,), (1,)) if end - begin <= room else None


def flatten(flat: Sequence[Tensor | None]) -> None:
    """Lay the Parameters of a network on CUDA, with biases, in memory as cuDNN reads them, for all calls.

    Whatever isn't just such Parameters stays as it is.
    """
    given = [w for w in flat if type(w) is Parameter and by_cudnn(w)]
    kinds = {(w.dtype, w.device) for w in given}
    if len(given) < len(flat) or len(given) % 4 or len(kinds) > 1 or len(set(map(id, given))) < len(given):
        return
    ordered = _matrices_first(len(given))(given)
    if _block(ordered) is None:
        with torch.no_grad():
            parts = flatten_dense(ordered).split([w.numel() for w in ordered])
        for w, part in zip(ordered, parts, strict=True):
            w.data = part.view(w.shape)


@cache
def _matrices_first(count: int) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    """Puts so many weights, four to a layer and direction, in cuDNN's order."""
    return itemgetter(*sorted(range(count), key=lambda at: at % 4 // 2))


def fit(x: Tensor, weights: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether the weights have these shapes and, with the input, one device and one dtype, autocast aside."""
    if [w.shape for w in weights] != shapes:
        return False
    kinds = {(w.dtype, w.is_cpu, w.get_device()) for w in weights}
    dtype, *place = kinds.pop()
    alike = not kinds and place == [x.is_cpu, x.get_device()]
    return alike and (x.dtype is dtype or torch.is_autocast_enabled(x.device.type))
