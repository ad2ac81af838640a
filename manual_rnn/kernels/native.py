r"""The recurrences in C, on the CPU in float32: the folder `c`, compiled when the package is installed.

    elman    h_t = phi(z_t + h_{t-1} w^T)            h before the first step = h0
    linear   y_t = phi'(h_t) * (v_t + y_{t-1} a)     y before the first step = 0

A wrong dtype, device or layout raises TypeError here; a wrong shape, batch size or alignment
raises ValueError in C, before anything runs. Nothing is copied.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

try:  # after torch, so that the extension finds torch's OpenMP
    _scan: Any = import_module("._scan", __package__)
except ImportError as error:
    _scan = None
    _not_compiled = f"no C compiler served it when manual_rnn was installed ({error})"

__all__ = ["elman", "layer", "linear", "why_not"]

_float32, _strided = torch.float32, torch.strided
_ELMAN = {"tanh": 0, "relu": 1}
_LINEAR = {"tanh": 2, "relu": 3}
# Weights read anew at every step, rather than once for all steps, pay as long as they stay in the first
# cache, or in the second where a step has rows to share them. Measured with one and two threads: 1.2 times as
# fast at (T, B, I, H) = (50, 1, 32, 64), 0.7 at (50, 1, 128, 128), 1.1 at (100, 32, 128, 128), 1.0 at
# (100, 64, 256, 256).
FEW_WEIGHTS, MANY_WEIGHTS, MANY_ROWS = 8192, 65536, 8
_variant = min(_scan.variants.values()) if _scan else -1  # the widest vectors of this processor


def why_not(z: Tensor) -> str | None:
    """The reason why this kernel can't take `z`, or None."""
    if _scan is None:
        return _not_compiled
    if z.dtype is not torch.float32 or not z.is_cpu:
        return f"expected float32 on the CPU, got {z.dtype} on {z.device}"
    if z.layout is not torch.strided or z.is_neg():
        return "expected a strided tensor without a pending negation"
    return None


def _takes(*tensors: Any) -> bool:
    """`why_not` of all of them, soon."""
    for x in tensors:
        if x.dtype is not _float32 or not x.is_cpu or x.layout is not _strided or x.is_neg():
            return False
    return _scan is not None


def elman(z: Tensor, h0: Tensor, w: Tensor, phi: str, reverse: bool, batch_sizes: Tensor | None) -> Tensor:
    r"""`z (T, B, H)` or packed `(N, H)`, `h0 (B, H)`, `w (H, H)`; a leading `G` on all or none."""
    return _scan_like(z, h0, w, _ELMAN[phi], reverse, batch_sizes)


def linear(v: Tensor, h: Tensor, a: Tensor, phi: str, reverse: bool, batch_sizes: Tensor | None) -> Tensor:
    r"""`v` and `h (T, B, H)` or packed `(N, H)`, `a (H, H)`; a leading `G` on all or none."""
    return _scan_like(v, h, a, _LINEAR[phi], reverse, batch_sizes)


def layer(
    x: Tensor,
    h0: Tensor,
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    phi: str,
    reverse: bool,
    batch_sizes: Tensor | None,
) -> Tensor | None:
    r"""`elman` of $z = x W_{ih}^T + b_{ih} + b_{hh}$ in one call, with no `z` in memory.

    `x (T, B, I)` or packed `(N, I)`, `h0 (B, H)`; `weights` are $W_{ih}$ `(H, I)`, $W_{hh}$ `(H, H)` and both
    biases `(H,)`, or neither. None where a matrix product over all steps comes first at less cost, or where
    this kernel can't take a tensor.
    """
    w_ih, w, b, b2 = weights
    if w_ih.numel() + w.numel() > (FEW_WEIGHTS if h0.size(0) < MANY_ROWS else MANY_WEIGHTS):
        return None
    if not (_takes(x, h0, w_ih, w) if b is None else _takes(x, h0, *weights)):
        return None
    biases: tuple[Any, ...] = (None,) * 6
    if b is not None and b2 is not None:
        biases = (b.data_ptr(), b.stride(), b.shape, b2.data_ptr(), b2.stride(), b2.shape)
    sizes, T = (0, 0) if batch_sizes is None else _sizes(batch_sizes)
    h = x.new_empty(x.shape[:-1] + w.shape[:1])
    at, strides = h.data_ptr(), h.stride()
    _scan.scan(
        _variant, _ELMAN[phi], torch.get_num_threads(), reverse, batch_sizes is not None, sizes, T,
        at, strides, h.shape, h0.data_ptr(), h0.stride(), h0.shape,
        w.data_ptr(), w.stride(), w.shape, at, strides,
        x.data_ptr(), x.stride(), x.shape, w_ih.data_ptr(), w_ih.stride(), w_ih.shape, *biases,
    )  # fmt: skip
    return h


def _scan_like(
    z: Tensor, other: Tensor, w: Tensor, kind: int, reverse: bool, batch_sizes: Tensor | None
) -> Tensor:
    """Run one kind of scan into a new contiguous tensor; `other` is h0 or h."""
    if reason := why_not(z) or why_not(other) or why_not(w):
        raise TypeError(reason)
    sizes, T = (0, 0) if batch_sizes is None else _sizes(batch_sizes)
    y = z.new_empty(z.shape)  # contiguous, as everything that leaves an nn.RNN: dropout masks follow memory
    _scan.scan(
        _variant, kind, torch.get_num_threads(), reverse, batch_sizes is not None, sizes, T,
        z.data_ptr(), z.stride(), z.shape, other.data_ptr(), other.stride(), other.shape,
        w.data_ptr(), w.stride(), w.shape, y.data_ptr(), y.stride(),
    )  # fmt: skip
    return y


def _sizes(batch_sizes: Tensor) -> tuple[int, int]:
    """Where the sizes lie and how many they are; C checks their values."""
    if batch_sizes.dtype is not torch.int64 or not batch_sizes.is_cpu:
        raise TypeError(f"expected batch_sizes int64 on the CPU, got {batch_sizes.dtype}")
    if batch_sizes.dim() != 1 or not batch_sizes.is_contiguous():
        raise ValueError(f"expected contiguous batch_sizes (T,), got {tuple(batch_sizes.shape)}")
    return batch_sizes.data_ptr(), len(batch_sizes)
