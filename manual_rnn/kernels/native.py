r"""The recurrences in C on the CPU in float32: `scan.c`, compiled when the package is installed if a compiler is there.

    elman(z, h0, w, phi, reverse, batch_sizes)    h_t = phi(z_t + h_{t-1} w^T)                h_0 before the first step
    linear(v, h, a, phi, reverse, batch_sizes)    y_t = phi'(h_t) (v_t + y_{t-1} a)           0 before the first step

Shapes: padded z (T, B, H), packed z (N, H); with G weight matrices every tensor gains a leading G. Any strides.
Both raise TypeError for a dtype, device or layout, and ValueError for a shape, that C can't be given.
"""

import torch
from torch import Tensor

try:  # after torch, whose OpenMP it uses
    from . import _scan
except ImportError as error:
    _scan = None  # type: ignore[assignment]
    _why_not_compiled = f"the extension manual_rnn.kernels._scan isn't compiled ({error})"

_ELMAN = {"tanh": 0, "relu": 1}
_LINEAR = {"tanh": 2, "relu": 3}
_variant = min(_scan.variants.values()) if _scan else -1  # the widest vectors this processor has


def why_not(z: Tensor) -> str | None:
    """The reason why `z` can't go through this kernel, or None."""
    if _scan is None:
        return _why_not_compiled
    if not z.is_cpu:
        return f"expected a tensor on the CPU, got one on {z.device}"
    if z.dtype is not torch.float32:
        return f"expected float32, got {z.dtype}"
    if z.layout is not torch.strided or z.is_neg():
        return "expected a dense tensor without a pending negation"
    return None


def elman(z: Tensor, h0: Tensor, w: Tensor, phi: str, reverse: bool, batch_sizes: Tensor | None) -> Tensor:
    r"""h_t = phi(z_t + h_{t-1} w^T), phi "tanh" or "relu"; h has the memory layout of z."""
    group, H = z.shape[: w.dim() - 2], z.shape[-1]
    batch = z.shape[-2] if batch_sizes is None else h0.shape[-2]
    _check("h0", h0, (*group, batch, H))
    return _scan_into(torch.empty_like(z), _ELMAN[phi], z, w, h0, batch, reverse, batch_sizes)


def linear(v: Tensor, h: Tensor, a: Tensor, phi: str, reverse: bool, batch_sizes: Tensor | None) -> Tensor:
    r"""y_t = phi'(h_t) (v_t + y_{t-1} a), phi "tanh" or "relu"; y has the memory layout of v."""
    _check("h", h, v.shape)
    return _scan_into(torch.empty_like(v), _LINEAR[phi], v, a, h, v.shape[-2], reverse, batch_sizes)


def _scan_into(
    y: Tensor,
    kind: int,
    z: Tensor,
    w: Tensor,
    other: Tensor,
    batch: int,
    reverse: bool,
    batch_sizes: Tensor | None,
) -> Tensor:
    """Fill `y`, which looks like `z`; `other` is h0 or h, checked by the caller."""
    shape, padded = z.shape, batch_sizes is None
    _check("z or v", z, shape)
    _check("w or a", w, (*shape[: w.dim() - 2], shape[-1], shape[-1]))
    if len(shape) != w.dim() + padded:
        raise ValueError(f"z or v: expected {w.dim() + padded} dimensions, got {len(shape)}")
    sizes, T = (0, shape[-3]) if padded else _sizes(batch_sizes, shape[-2])
    if T > 0:
        _scan.scan(
            _variant, kind, torch.get_num_threads(), reverse, shape, sizes, T, batch,
            z.data_ptr(), z.stride(), y.data_ptr(), y.stride(),
            w.data_ptr(), w.stride(), other.data_ptr(), other.stride(),
        )  # fmt: skip
    return y


def _check(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    reason = why_not(x)
    if reason:
        raise TypeError(f"{name}: {reason}")
    if x.shape != shape:
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(x.shape)}")


def _sizes(batch_sizes: Tensor, rows: int) -> tuple[int, int]:
    """Where the sizes lie and how many they are. Their values are checked in C."""
    if batch_sizes.dtype is not torch.int64 or not batch_sizes.is_cpu or batch_sizes.dim() != 1:
        raise TypeError(f"batch_sizes: expected int64 (T,) on the CPU, got {batch_sizes.dtype}")
    if not batch_sizes.is_contiguous() or (rows and not len(batch_sizes)):
        raise ValueError(f"batch_sizes: expected contiguous sizes of {rows} rows")
    return batch_sizes.data_ptr(), len(batch_sizes)
