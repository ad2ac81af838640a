r"""The recurrences in C, on the CPU in float32: `scan.c`, compiled when the package is installed.

    elman    h_t = phi(z_t + h_{t-1} w^T)            h before the first step = h0
    linear   y_t = phi'(h_t) * (v_t + y_{t-1} a)     y before the first step = 0

Here the tensors are checked, so that C can trust the pointers, sizes and strides it is given.
A wrong dtype, device or layout raises TypeError, a wrong shape ValueError. Nothing is copied.
"""

import torch
from torch import Tensor

try:  # after torch, so that the extension finds torch's OpenMP
    from . import _scan
except ImportError as error:
    _scan = None  # type: ignore[assignment]
    _not_compiled = f"the extension manual_rnn.kernels._scan can't be imported ({error})"

__all__ = ["elman", "linear", "why_not"]

_ELMAN = {"tanh": 0, "relu": 1}
_LINEAR = {"tanh": 2, "relu": 3}
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


def elman(z: Tensor, h0: Tensor, w: Tensor, phi: str, reverse: bool, batch_sizes: Tensor | None) -> Tensor:
    r"""`z (T, B, H)` or packed `(N, H)`, `h0 (B, H)`, `w (H, H)`; a leading `G` on all or none."""
    kind, batch = _ELMAN[phi], (z if batch_sizes is None else h0).size(-2)
    if h0.shape != (*z.shape[: w.dim() - 2], batch, z.size(-1)):
        raise ValueError(f"expected h0 for {batch} rows of {tuple(z.shape)}, got {tuple(h0.shape)}")
    return _scan_like(z, h0, w, kind, reverse, batch_sizes, batch)


def linear(v: Tensor, h: Tensor, a: Tensor, phi: str, reverse: bool, batch_sizes: Tensor | None) -> Tensor:
    r"""`v` and `h (T, B, H)` or packed `(N, H)`, `a (H, H)`; a leading `G` on all or none."""
    if h.shape != v.shape:
        raise ValueError(f"expected h of shape {tuple(v.shape)}, got {tuple(h.shape)}")
    return _scan_like(v, h, a, _LINEAR[phi], reverse, batch_sizes, v.size(-2))


def _scan_like(
    z: Tensor,
    other: Tensor,
    w: Tensor,
    kind: int,
    reverse: bool,
    batch_sizes: Tensor | None,
    batch: int,
) -> Tensor:
    """Run one kind of scan into a new contiguous tensor; `other` is h0 or h."""
    for x in (z, other, w):
        if reason := why_not(x):
            raise TypeError(reason)
    shape, padded = z.shape, batch_sizes is None
    if len(shape) != w.dim() + padded or w.shape != (*shape[: w.dim() - 2], shape[-1], shape[-1]):
        raise ValueError(f"expected w to fit an input {tuple(shape)}, got {tuple(w.shape)}")
    sizes, T = (0, shape[-3]) if batch_sizes is None else _sizes(batch_sizes, shape[-2])
    y = z.new_empty(shape)  # contiguous, as everything that leaves an RNN
    if T > 0:
        _scan.scan(
            _variant, kind, torch.get_num_threads(), reverse, shape, sizes, T, batch,
            z.data_ptr(), z.stride(), y.data_ptr(), y.stride(),
            w.data_ptr(), w.stride(), other.data_ptr(), other.stride(),
        )  # fmt: skip
    return y


def _sizes(batch_sizes: Tensor, rows: int) -> tuple[int, int]:
    """Where the sizes lie and how many they are; C checks their values."""
    if batch_sizes.dtype is not torch.int64 or not batch_sizes.is_cpu:
        raise TypeError(f"expected batch_sizes int64 on the CPU, got {batch_sizes.dtype}")
    if batch_sizes.dim() != 1 or not batch_sizes.is_contiguous() or (rows and not len(batch_sizes)):
        raise ValueError(f"expected contiguous batch_sizes (T,), got {tuple(batch_sizes.shape)}")
    return batch_sizes.data_ptr(), len(batch_sizes)
