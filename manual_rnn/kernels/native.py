r"""The recurrences and the whole network in C, on the CPU: `csrc/`, compiled when the package is installed.

    elman                h_t = phi(z_t + h_{t-1} w^T)            h before the first step = h0
    linear_recurrence    y_t = phi'(h_t) * (v_t + y_{t-1} a)     y before the first step = 0
    layer                elman of z_t = x_t w_ih^T + bias_ih + bias_hh
    network              layer after layer, in each direction, and its gradients

In float32 and float64, and in bfloat16 and float16, which are reckoned with in float32, but that bfloat16
numbers are multiplied as they are where the processor does so, twice as fast. No z and no gradient
of it is ever whole in memory.

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

from ..torch_internals import data_address, has_storage, is_shared
from .interface import PLAIN_TYPES, why_foreign
from .nonlinearities import PHI

_scan: Any = None
if "__torch_package__" in globals():  # the extension installed here may be of another version
    _not_compiled = "a torch.package holds no compiled code"
else:
    try:  # after torch, so that the extension finds torch's OpenMP
        _scan = import_module("._scan", __package__)
    except ImportError as error:
        _not_compiled = f"no C compiler served it when manual_rnn was installed ({error})"

__all__ = [
    "call",
    "compiled",
    "elman",
    "exchanges",
    "layer",
    "linear_recurrence",
    "multiply_adds",
    "network",
    "network_vjp",
    "numbers",
    "why_not",
]

LINEAR = len(PHI)  # in C the linear recurrences are numbered after the others
_variant = min(_scan.variants.values()) if _scan else -1  # the widest vectors of this processor
TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # as they are numbered in C
_strided = torch.strided


def _exchange() -> bool:
    """Whether C can read this torch's tensors."""
    if _scan is None or None in (data_address, has_storage, is_shared):
        return False
    try:
        capsule: Any = Tensor.__dlpack_c_exchange_api__  # type: ignore[attr-defined]
        _scan.exchange(
            capsule, Tensor, Parameter, Tensor.new_empty, Tensor.is_neg, has_storage, Tensor.untyped_storage,
            Tensor.storage_offset, data_address, Tensor.stride, is_shared, TYPES,
        )  # fmt: skip
    except (AttributeError, TypeError, ValueError):
        return False
    return True


_exchanges = _exchange()


def exchanges() -> bool:
    """Whether C reads torch's tensors, without which it offers no network."""
    return _exchanges


def numbers(*tensors: Tensor | None) -> bool:
    """Whether each is None or exactly a Tensor or Parameter of numbers in memory, of one of C's types, on the
    CPU: no wrapper of a transform, no pending negation. False where there's no quick telling, as of an empty
    one."""
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
    dtypes = {x.dtype for x in tensors if x is not None}
    for x in tensors:
        if x is None:
            continue
        if type(x) not in PLAIN_TYPES or x.layout is not _strided or x.dtype not in TYPES or not x.is_cpu:
            if reason := why_foreign(x):
                return reason
            if x.dtype not in TYPES or not x.is_cpu:
                return f"expected floating-point numbers on the CPU, got {x.dtype} on {x.device}"
        if len(dtypes) > 1:
            return f"expected tensors of one dtype, got {' and '.join(sorted(map(str, dtypes)))}"
        if x.is_neg():
            return "expected a tensor without a pending negation"
        if x.data_ptr() % x.itemsize:
            return f"expected data aligned to {x.itemsize} bytes"
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

    Returns the states and the last of each sequence; None where C can't read the tensors themselves.
    """
    if not _exchanges:
        return None
    how = _variant, PHI[phi].code, torch.get_num_threads(), False, reverse
    weights = (w_ih, w_hh) if bias_ih is None else (w_ih, w_hh, bias_ih, bias_hh)
    bias = bias_ih is not None
    found = _scan.network(*how, h0.size(1), 0, bias, False, batch_sizes, x, h0.unsqueeze(0), weights)
    return None if found is NotImplemented else (found[0], found[1].squeeze_(0))


def network(
    x: Tensor,
    hx: Tensor | None,
    weights: tuple[Tensor, ...],
    batch_sizes: Tensor | None,
    phi: str,
    bidirectional: bool,
    bias: bool,
    hidden_size: int,
    input_size: int,
    keep: bool,
) -> Any:
    r"""`x (T, B, I)` or packed `(N, I)`; `hx (L * D, B, H)` or None for zeros; weights of layer after layer
    and direction after direction. `input_size` may be 0 for any.

    Returns the last layer's states `(T, B, D * H)` and `h_n`; with `keep`, and where a tensor requires grad,
    the states of the layers before, else None. NotImplemented where a tensor isn't exactly as it should be,
    which the caller's checks then name.
    """
    how = _variant, PHI[phi].code, torch.get_num_threads(), bidirectional, False
    return _scan.network(*how, hidden_size, input_size, bias, keep, batch_sizes, x, hx, weights)


def call(
    attributes: dict[str, Any], batch_sizes: Tensor | None, x: Tensor, hx: Tensor | None, keep: bool
) -> Any:
    """What `network` returns for a module with these attributes, `vars(module)`, and its weights; the options
    are read in C. With `batch_first`, `x` is `(B, T, I)`; the results are time-major all the same.
    NotImplemented, too, where an attribute isn't as the constructor leaves it."""
    return _scan.call(_variant, torch.get_num_threads(), keep, attributes, batch_sizes, x, hx)


def network_vjp(
    need: tuple[bool, ...],
    x: Tensor | None,
    hx: Tensor | None,
    weights: tuple[Tensor | None, ...],
    states: tuple[Tensor, ...],
    c: Tensor | None,
    c_last: Tensor | None,
    batch_sizes: Tensor | None,
    phi: str,
    bidirectional: bool,
    bias: bool,
    hidden_size: int,
    input_size: int,
) -> Any:
    r"""Gradients of `x`, time-major, of `hx` and of each weight that `need` asks for, from those of the
    output and of `h_n`, and the states of every layer; NotImplemented as above. Tensors that no gradient
    needs may be None.
    """
    how = _variant, PHI[phi].code, torch.get_num_threads(), bidirectional, False
    return _scan.network_vjp(
        *how, hidden_size, input_size, bias, need, batch_sizes, x, hx, weights, states, c, c_last
    )


def multiply_adds(count: float, dtype: torch.dtype) -> float:
    """Make about so many, of registers alone, as numbers of `dtype` are; returns how many it made."""
    kind = TYPES.index(dtype)
    return _scan.peak(_variant, kind, max(1, round(count / _scan.peak(_variant, kind, 1))))


def _scan_like(
    z: Tensor, other: Tensor, w: Tensor, batch_sizes: Tensor | None, code: int, reverse: bool
) -> Tensor:
    """Run one kind of scan into a new contiguous tensor; `other` is h0 or h."""
    if _exchanges:
        y = _scan.recurrence(_variant, code, torch.get_num_threads(), reverse, batch_sizes, z, other, w)
        if y is not NotImplemented:
            return y
    sizes, T = (0, 0) if batch_sizes is None else _sizes(batch_sizes)
    held = [
        x.untyped_storage() for x in (z, other, w)
    ]  # another thread may give a tensor another one meanwhile
    y = z.new_empty(z.shape)  # contiguous, as everything that leaves an nn.RNN: dropout masks follow memory
    _scan.scan(
        _variant, code, torch.get_num_threads(), reverse, TYPES.index(z.dtype),
        batch_sizes is not None, sizes, T,
        z.data_ptr(), z.stride(), z.shape, other.data_ptr(), other.stride(), other.shape,
        w.data_ptr(), w.stride(), w.shape, y.data_ptr(), y.stride(),
    )  # fmt: skip
    del held
    return y


def _sizes(batch_sizes: Tensor) -> tuple[int, int]:
    """Where the sizes lie and how many they are; C checks their values."""
    if batch_sizes.dtype is not torch.int64 or not batch_sizes.is_cpu:
        raise TypeError(f"expected batch_sizes int64 on the CPU, got {batch_sizes.dtype}")
    if batch_sizes.dim() != 1 or not batch_sizes.is_contiguous():
        raise ValueError(f"expected contiguous batch_sizes (T,), got {tuple(batch_sizes.shape)}")
    return batch_sizes.data_ptr(), len(batch_sizes)
