r"""How a recurrence runs: the whole choice of kernel.

`use_kernel(name)` asks for one; what was asked for runs or raises with the reason. Unasked, the first
of `KERNELS` that can take all tensors runs, and the last of them can always.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

from torch import Tensor

__all__ = ["DEFAULT", "KERNELS", "REFERENCE", "asked", "choose", "load", "reasons", "use_kernel"]

DEFAULT = "default"
REFERENCE = "reference"
KERNELS = {  # the fastest first
    "native": ".native",
    "torch": ".torch_loop",
    "vendor": ".vendor",
    REFERENCE: ".reference",
}

_asked = DEFAULT


def asked() -> str:
    """The kernel that was asked for, or "default"."""
    return _asked


@contextmanager
def use_kernel(name: str) -> Iterator[None]:
    r"""Ask for a kernel by name for the calls inside, as `torch.nn.attention.sdpa_kernel` does.

    A backward pass uses the kernel of its forward pass, wherever it is called. It holds for all threads:
    compiled code heeds it only as a global, for Dynamo can't trace a `ContextVar` (torch 2.13) and
    doesn't notice when a `threading.local` changes.

    Args:
        name: "reference", "torch", "native", "vendor", or "default", which chooses the fastest.

    Raises:
        ValueError: for any other name.
        RuntimeError: inside, where the kernel can't run; the message has the reason.
    """
    global _asked
    if name != DEFAULT and name not in KERNELS:
        raise ValueError(f"expected a kernel among {', '.join([DEFAULT, *KERNELS])}, got {name!r}")
    before, _asked = _asked, name
    try:
        yield
    finally:
        _asked = before


@cache
def load(name: str) -> Any:
    """The module of a kernel, imported when it is first needed; `contract.Kernel` says what it offers."""
    return import_module(KERNELS[name], __package__)


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
