r"""The recurrences and the layer in C, on the CPU in float32: `c/`, compiled when the package is installed.

    elman                h_t = phi(z_t + h_{t-1} w^T)            h before the first step = h0
    linear_recurrence    y_t = phi'(h_t) * (v_t + y_{t-1} a)     y before the first step = 0
    layer                elman of z_t = x_t w_ih^T + bias_ih + bias_hh, with no z in memory

A wrong shape, batch size or alignment raises ValueError in C, before anything runs. Nothing is copied.

Tensors go to C as they are where torch offers DLPack's exchange of C functions (2.11 to 2.15 do), since what
Python asks a tensor takes longer than a small recurrence. Else, and for subclasses, as addresses, strides and
shapes.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .contract import PLAIN_TYPES, why_foreign
from .phi import PHI
from .walk import Walk

_scan: Any = None
if "__torch_package__" in globals():  # the extension installed here may be of another version
    _not_compiled = "a torch.package holds no compiled code"
else:
    try:  # after torch, so that the extension finds torch's OpenMP
        _scan = import_module("._scan", __package__)
    except ImportError as error:
        _not_compiled = f"no C compiler served it when manual_rnn was installed ({error})"

__all__ = ["compiled", "elman", "layer", "linear_recurrence", "numbers", "why_not"]

# Weights read anew at every step, rather than once for all steps, pay as long as they stay in the first
# cache, or in the second where a step has rows to share them. Measured with one and two threads: 1.2 times as
# fast at (T, B, I, H) = (50, 1, 32, 64), 0.7 at (50, 1, 128, 128), 1.1 at (100, 32, 128, 128), 1.0 at
# (100, 64, 256, 256).
FEW_WEIGHTS, MANY_WEIGHTS, MANY_ROWS = 8192, 65536, 8
LINEAR = len(PHI)  # in C the linear recurrences are numbered after the others
_variant = min(_scan.variants.values()) if _scan else -1  # the widest vectors of this processor
_float32, _strided = torch.float32, torch.strided


def _exchange() -> bool:
    """Whether C can read this torch's tensors."""
    if _scan is None:
        return False
    try:
        capsule: Any = Tensor.__dlpack_c_exchange_api__  # type: ignore[attr-defined]
        _scan.exchange(capsule, Tensor, Parameter, Tensor.new_empty, Tensor.is_neg, torch._C._has_storage)
    except (AttributeError, TypeError, ValueError):
        return False
    return True


_exchanges = _exchange()


def numbers(*tensors: Tensor | None) -> bool:
    """Whether each is None or exactly a Tensor or Parameter of float32 numbers in memory, on the CPU: no
    wrapper of a transform, no pending negation. False where there's no quick telling, as of an empty one."""
    return _exchanges and _scan.numbers(*tensors)


def compiled() -> bool:
    """Whether the C is there."""
    return _scan is not None


def why_not(*tensors: Tensor | None) -> str | None:
    """The reason why this kernel can't take these tensors, or None."""
    if _scan is None:
        return _not_compiled
    if _exchanges and _scan.numbers(*tensors):
        return None
    for x in tensors:
        if x is None:
            continue
        if x.dtype is not _float32 or not x.is_cpu or type(x) not in PLAIN_TYPES or x.layout is not _strided:
            if reason := why_foreign(x):
                return reason
            if x.dtype is not _float32 or not x.is_cpu:
                return f"expected float32 on the CPU, got {x.dtype} on {x.device}"
        if x.is_neg():
            return "expected a tensor without a pending negation"
        if x.data_ptr() % 4:
            return "expected data aligned to 4 bytes"
    return None


def elman(z: Tensor, h0: Tensor, w: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool) -> Tensor:
    r"""`z (T, B, H)` or packed `(N, H)`, `h0 (B, H)`, `w (H, H)`; a leading `G` on all or none."""
    return _scan_like(z, h0, w, batch_sizes, PHI[phi].code, reverse)


def linear_recurrence(
    v: Tensor, h: Tensor, a: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool
) -> Tensor:
    r"""`v` and `h (T, B, H)` or packed `(N, H)`, `a (H, H)`; a leading `G` on all or none."""
    return _scan_like(v, h, a, batch_sizes, LINEAR + PHI[phi].code, reverse)


def layer(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    batch_sizes: Tensor | None,
    phi: str,
    reverse: bool,
) -> tuple[Tensor, Tensor] | None:
    r"""`x (T, B, I)` or packed `(N, I)`, `h0 (B, H)`, `w_ih (H, I)`, `w_hh (H, H)`, biases `(H,)` or None.

    Returns the states and the last of each sequence; None where a matrix product over all steps comes first
    at less cost.
    """
    if w_ih.numel() + w_hh.numel() > (FEW_WEIGHTS if h0.size(0) < MANY_ROWS else MANY_WEIGHTS):
        return None
    if _exchanges:
        how = _variant, PHI[phi].code, torch.get_num_threads(), reverse
        found = _scan.layer(*how, batch_sizes, x, h0, w_ih, w_hh, bias_ih, bias_hh)
        if found is not NotImplemented:
            return found
    biases: tuple[Any, ...] = (None,) * 6
    if bias_ih is not None and bias_hh is not None:
        biases = (
            bias_ih.data_ptr(), bias_ih.stride(), bias_ih.shape,
            bias_hh.data_ptr(), bias_hh.stride(), bias_hh.shape,
        )  # fmt: skip
    sizes, T = (0, 0) if batch_sizes is None else _sizes(batch_sizes)
    states = x.new_empty(x.shape[:-1] + w_hh.shape[:1])
    at, strides = states.data_ptr(), states.stride()
    _scan.scan(
        _variant, PHI[phi].code, torch.get_num_threads(), reverse, batch_sizes is not None, sizes, T,
        at, strides, states.shape, h0.data_ptr(), h0.stride(), h0.shape,
        w_hh.data_ptr(), w_hh.stride(), w_hh.shape, at, strides,
        x.data_ptr(), x.stride(), x.shape, w_ih.data_ptr(), w_ih.stride(), w_ih.shape, *biases,
    )  # fmt: skip
    return states, Walk(0, reverse, batch_sizes).last(states, h0.size(0)).clone()


def _scan_like(
    z: Tensor, other: Tensor, w: Tensor, batch_sizes: Tensor | None, code: int, reverse: bool
) -> Tensor:
    """Run one kind of scan into a new contiguous tensor; `other` is h0 or h."""
    if _exchanges:
        y = _scan.recurrence(_variant, code, torch.get_num_threads(), reverse, batch_sizes, z, other, w)
        if y is not NotImplemented:
            return y
    sizes, T = (0, 0) if batch_sizes is None else _sizes(batch_sizes)
    y = z.new_empty(z.shape)  # contiguous, as everything that leaves an nn.RNN: dropout masks follow memory
    _scan.scan(
        _variant, code, torch.get_num_threads(), reverse, batch_sizes is not None, sizes, T,
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
