r"""The recurrences and the whole network in C, on the CPU: `csrc/`, compiled when the package is installed.

    elman                h_t = phi(z_t + h_{t-1} w^T)            h before the first step = h0
    linear_recurrence    y_t = phi'(h_t) * (v_t + y_{t-1} a)     y before the first step = 0
    network              layer after layer, in each direction, and its gradients

They are the operators' kernels for the dispatch key CPU: to load the library is to register them, and what
calls one goes through the dispatcher. In float32 and float64, and in bfloat16 and float16, whose sums are
float32's. No z and no gradient of it is ever whole in memory. A wrong shape, batch size or alignment raises
before anything runs.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..torch_internals import below_autograd, offers_cudnn_node
from .interface import PLAIN_TYPES, NetworkOptions, Saved, non_plain_reason


class Schema(NamedTuple):
    """Of an operator; `optional` are arguments behind all others."""

    arguments: str
    result: str
    optional: str = ""


LEAK = ", Tensor? alpha=None"
SCHEMAS = {  # as the library of C defines them
    "elman": Schema(
        "Tensor z, Tensor h0, Tensor w, Tensor? batch_sizes, str nonlinearity, bool reverse", "Tensor"
    ),
    "linear_recurrence": Schema(
        "Tensor v, Tensor h, Tensor a, Tensor? batch_sizes, str nonlinearity, bool reverse", "Tensor"
    ),
    "network": Schema(
        "Tensor input, Tensor? hx, Tensor[] weights, Tensor? batch_sizes, str nonlinearity, "
        "bool bidirectional, bool has_biases, bool save_states",
        "(Tensor, Tensor, Tensor[])",
        LEAK,
    ),
    "network_vjp": Schema(
        "bool[] need, Tensor input, Tensor? hx, Tensor[] matrices, Tensor[] states, Tensor? grad_output, "
        "Tensor? grad_h_n, Tensor? batch_sizes, str nonlinearity, bool bidirectional",
        "Tensor[]",
        LEAK,
    ),
}
TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # as they are numbered in C
MOST_BITS = 63  # of a size, which has no sign
LIBRARY = Path(__file__).with_name("engine.so")


def _load() -> tuple[Any, str | None]:
    """The library, and the reason why it isn't there or why torch took none of its kernels."""
    if "__torch_package__" in globals():  # the library installed here may be of another version
        return None, "a torch.package holds no compiled code"
    if not LIBRARY.exists():
        return None, "no C compiler served it when manual_rnn was installed"
    try:
        torch.ops.load_library(LIBRARY)
        library: Any = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return None, f"its library can't be loaded ({error})"
    library.manual_rnn_unavailable.restype = ctypes.c_char_p
    library.manual_rnn_peak.restype = ctypes.c_double
    library.manual_rnn_peak.argtypes = ctypes.c_int, ctypes.c_long
    reason = library.manual_rnn_unavailable()
    return library, None if reason is None else reason.decode()


_library, unavailable = _load()


def _take_aten_node() -> bool:
    """Make the engine ATen's kernel of cuDNN's network on a CPU, where the operators are as this package
    knows them and have no kernel there."""
    if unavailable is not None or not offers_cudnn_node():
        return False
    _library.manual_rnn_register_aten.restype = ctypes.c_char_p
    return _library.manual_rnn_register_aten() is None


has_aten_node = _take_aten_node()


def unsupported_reason(*tensors: Tensor | None) -> str | None:
    """The reason why this kernel can't take these tensors, or None."""
    if unavailable is not None:
        return unavailable
    given = [x for x in tensors if x is not None]
    dtype = given[0].dtype
    for x in given:
        if type(x) not in PLAIN_TYPES and (reason := non_plain_reason(x)):
            return reason
        if x.dtype not in TYPES or not x.is_cpu or x.layout is not torch.strided:
            return (
                non_plain_reason(x)
                or f"expected floating-point numbers on the CPU, got {x.dtype} on {x.device}"
            )
        if x.dtype is not dtype:
            dtypes = {str(x.dtype) for x in given}
            return f"expected tensors of one dtype, got {' and '.join(sorted(dtypes))}"
    return None


def frozen_bits(wanted: Sequence[bool]) -> int:
    """Which weights want no gradient, as ATen's operator is told by its argument `proj_size`: weight `i` by
    bit `i`."""
    return sum((not want) << at for at, want in enumerate(wanted))


def need_of(given: Any) -> tuple[bool, ...]:
    """Of which of the input, `hx` and each weight the node of ATen's operator wants the gradient, by the
    arguments of its backward operator."""
    need_x, need_hx, _, any_weight = given.output_mask
    wanted = [any_weight and not given.proj_size >> at & 1 for at in range(len(given.weight))]
    return need_x, need_hx and given.hx.dim() > 1, *wanted


def runs(kernel: str, x: Tensor) -> bool:
    """Whether an operator that this kernel was asked for, or the default, runs C: a profiler sees none of its
    products."""
    return kernel == "native" or (kernel == "default" and unavailable is None and x.is_cpu)


def elman(z: Tensor, h0: Tensor, w: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool) -> Tensor:
    r"""`z (T, B, H)` or packed `(N, H)`, `h0 (B, H)`, `w (H, H)`; a leading `G` on all or none."""
    return _run(torch.ops.manual_rnn.elman.default, z, h0, w, batch_sizes, phi, reverse)


def linear_recurrence(
    v: Tensor, h: Tensor, a: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool
) -> Tensor:
    r"""`v` and `h (T, B, H)` or packed `(N, H)`, `a (H, H)`; a leading `G` on all or none."""
    return _run(torch.ops.manual_rnn.linear_recurrence.default, v, h, a, batch_sizes, phi, reverse)


def network(
    x: Tensor, hx: Tensor | None, weights: Sequence[Tensor], options: NetworkOptions, save_states: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    r"""`x (T, B, I)` or packed `(N, I)`, `hx (L * D, B, H)` or None for zeros; a leading `G` on all or none.

    Returns the last layer's states, `h_n`, and with `save_states` those of every layer, else none.
    """
    how = *options[:4], save_states, options.alpha
    return _run(torch.ops.manual_rnn.network.default, x, hx, list(weights), *how)


def network_vjp(
    need: Sequence[bool],
    saved: Saved,
    cotangents: tuple[Tensor | None, Tensor | None],
    options: NetworkOptions,
) -> list[Tensor]:
    """The gradients that `need` asks for, of `x`, `hx` and each weight, from the cotangents of the output and
    `h_n`."""
    x, hx, matrices, states = saved
    tensors = x, hx, list(matrices), list(states), *cotangents
    how = *options[:3], options.alpha
    return _run(torch.ops.manual_rnn.network_vjp.default, list(need), *tensors, *how)


def _run(operator: Any, *args: Any) -> Any:
    """The operator's kernel itself: a kernel knows nothing of autograd."""
    with below_autograd():
        return operator(*args)


def peak_fma(count: float, dtype: torch.dtype) -> float:
    """Make about so many multiply-adds, of registers alone, as numbers of `dtype` are; returns how many it
    made."""
    kind, peak = TYPES.index(dtype), _library.manual_rnn_peak
    return peak(kind, max(1, round(count / peak(kind, 1))))
