r"""How a recurrence runs: the whole choice of kernel.

`use_kernel(name)` asks for one; what was asked for runs or raises with the reason. Unasked, the first
of `KERNELS` that can take all tensors runs, and the last of them can always.
"""

from typing import Any

from torch import Tensor

from . import native, reference, torch_loop, vendor  # as statements, which torch.package follows
from .request import DEFAULT, KernelName, asked, use_kernel

__all__ = [
    "DEFAULT",
    "KERNELS",
    "REFERENCE",
    "KernelName",
    "asked",
    "choose",
    "load",
    "reasons",
    "use_kernel",
]

REFERENCE = "reference"
KERNELS: dict[str, Any] = {  # the fastest first
    "native": native,
    "torch": torch_loop,
    "vendor": vendor,
    REFERENCE: reference,
}


def load(name: str) -> Any:
    """The module of a kernel; `contract.Kernel` says what it offers."""
    return KERNELS[name]


def choose(name: str, *tensors: Tensor | None) -> Any:
    """The kernel that computes with these tensors: the one asked for, or the fastest that can.

    Raises:
        RuntimeError: if the one asked for can't, with its reason.
    """
    if name != DEFAULT:
        reason = load(name).why_not(*tensors)
        if reason is not None:
            raise RuntimeError(f"kernel {name!r} can't run here: {reason}")
        return load(name)
    for candidate in KERNELS:
        kernel = load(candidate)
        if kernel.why_not(*tensors) is None:
            return kernel
    raise AssertionError("unreachable: the reference takes any tensor")


def reasons(*tensors: Tensor | None) -> dict[str, str | None]:
    """For each kernel the reason why it can't take these tensors, or None: what `choose` goes by."""
    return {name: load(name).why_not(*tensors) for name in KERNELS}
