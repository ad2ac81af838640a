r"""How a recurrence runs: the whole choice of kernel.

`use_kernel(name)` asks for one; what was asked for runs or raises with the reason. Unasked, the first
of `KERNELS` that can take all tensors runs, and the last of them can always.
"""

from typing import Any

import torch
from torch import Tensor

from ..torch_internals import multiplies_in_tiles
from . import aten, native, reference, torch_loop, triton_launch  # as statements, which torch.package follows
from .interface import check_memory
from .selection import DEFAULT, KernelName, asked, use_kernel

__all__ = [
    "DEFAULT",
    "KERNELS",
    "REFERENCE",
    "KernelName",
    "asked",
    "check_memory",
    "choose",
    "choose_for_layer",
    "padding_pays",
    "reasons",
    "use_kernel",
    "vendor_may_pay",
    "vendor_pays",
    "vendor_pays_in_bfloat16",
]

REFERENCE = "reference"
KERNELS: dict[str, Any] = {  # by name what `contract.Kernel` describes, the fastest first
    "native": native,
    "triton": triton_launch,
    "torch": torch_loop,
    "vendor": aten,
    REFERENCE: reference,
}


def choose(name: str, *tensors: Tensor | None, batch_sizes: Tensor | None = None) -> Any:
    """The kernel that computes with these tensors: the one asked for, or the fastest that can.

    Raises:
        RuntimeError: if the one asked for can't, with its reason; if a tensor's storage ends before it does.
    """
    reason = None
    for kernel in KERNELS.values() if name == DEFAULT else (KERNELS[name],):
        reason = kernel.why_not(*tensors)
        if reason is None:
            check_memory(tensors if batch_sizes is None else (*tensors, batch_sizes))
            return kernel
    raise RuntimeError(f"kernel {name!r} can't run here: {reason}")


def choose_for_layer(name: str, *tensors: Tensor | None, batch_sizes: Tensor | None = None) -> Any:
    """The same for a whole layer: on CUDA cuDNN runs it, where it can, whoever runs the recurrences."""
    x = tensors[0]
    if name == DEFAULT and x is not None and aten.by_cudnn(x) and aten.why_not(*tensors) is None:
        return aten
    return choose(name, *tensors, batch_sizes=batch_sizes)


def reasons(*tensors: Tensor | None) -> dict[str, str | None]:
    """For each kernel the reason why it can't take these tensors, or None: what `choose` goes by."""
    return {name: kernel.why_not(*tensors) for name, kernel in KERNELS.items()}


def vendor_pays(x: Tensor, hx: Tensor, batch_sizes: Tensor | None, gradients: bool) -> bool:
    """Whether one call of the vendor's for the whole network is faster than the other kernels layer by layer.

    On CUDA always. On a CPU a few steps of a wide state are: C packs the weights at every call, H * H of
    them, and an autograd node in Python costs what a few of ATen's do. Measured over T 1 to 8, B 1 to 16,
    H 64 to 2048 on an AMD EPYC (Zen 4), one thread. Other dtypes than C's float32 go to the vendor too, but
    for training over more than a few steps, where the `torch` kernel is 1.05 to 1.35 times as fast.
    """
    if x.is_cuda:
        return True
    T, B, H = (x if batch_sizes is None else batch_sizes).size(0), hx.size(1), hx.size(2)
    if x.dtype is not torch.float32 or not native.compiled():
        return T < 10 or not gradients
    if gradients:
        return T == 1 or (T == 2 and (B < 16 or H >= 2048)) or (B == 1 and T <= 4 and H >= 512 * (T - 2))
    return (B == 1 and H >= 256 * T) or (T == 1 and H >= 2048)


PADS_PACKED = False  # no GPU has timed it yet: `python -m manual_rnn.benchmark --device cuda` does


def padding_pays(x: Tensor, hx: Tensor, batch_sizes: Tensor, phi: str) -> bool:
    """Whether the vendor is to run a packed batch as padded ones: cuDNN has a fast way for narrow states,
    which it never takes for packed input.

    Not where padding is most of the batch. Nor for relu: its states may overflow past the end of a sequence,
    and then the zero that comes back from there, times an infinity, is none.
    """
    places = batch_sizes.size(0) * hx.size(1)
    return PADS_PACKED and x.is_cuda and phi == "tanh" and hx.size(2) <= 256 and places <= 4 * x.size(0)


IN_TILES = multiplies_in_tiles()
WIDE = 1024


def vendor_may_pay(dtype: torch.dtype | None, H: object) -> bool:
    """Whether there are calls of that type and width which `vendor_pays_in_bfloat16` has to judge."""
    return dtype is torch.bfloat16 and (IN_TILES or not isinstance(H, int) or H >= WIDE)


def vendor_pays_in_bfloat16(B: int, H: int, gradients: bool) -> bool:
    """Whether the vendor is faster than C.

    Where the processor multiplies tiles of bfloat16 numbers, which C doesn't, for wide states of many rows:
    an estimate, as there was no such processor to measure on. Else only in training with the widest states
    of many rows, where C is at 0.97; up to there it's 1.0 to 21 times as fast. Measured over B 1 to 256, H
    128 to 2048, on an AMD EPYC (Zen 4), one thread.
    """
    if not IN_TILES:
        return gradients and B >= 128 and H >= WIDE
    return H * H * B >= 1700**2 if gradients else H**3 * B >= 750**3
