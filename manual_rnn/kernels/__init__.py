r"""How a recurrence runs: the whole choice of kernel.

`use_kernel(name)` asks for one; what was asked for runs or raises with the reason. Unasked, the
first of `FASTEST_FIRST` that can take the tensors runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import Tensor

from . import native, torch_loop

__all__ = ["DEFAULT", "FASTEST_FIRST", "REFERENCE", "asked", "choose", "layer", "reasons", "use_kernel"]

DEFAULT = "default"
REFERENCE = "reference"
FASTEST_FIRST: dict[str, ModuleType] = {"native": native, "torch": torch_loop}

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
        name: "reference", "torch", "native", or "default", which chooses the fastest.

    Raises:
        ValueError: for any other name.
        RuntimeError: inside, where the kernel can't run; the message has the reason.
    """
    global _asked
    names = [DEFAULT, REFERENCE, *FASTEST_FIRST]
    if name not in names:
        raise ValueError(f"expected a kernel among {', '.join(names)}, got {name!r}")
    before, _asked = _asked, name
    try:
        yield
    finally:
        _asked = before


def reasons(z: Tensor) -> dict[str, str | None]:
    """For each fused kernel, the reason why it wouldn't be chosen for `z`, or None."""
    return {name: kernel.why_not(z) for name, kernel in FASTEST_FIRST.items()}


def layer(x: Tensor, h0: Tensor, weights: Any, batch_sizes: Any, phi: str, reverse: bool, name: str) -> Any:
    """A layer's states where a kernel computes them from its input and that pays, else None."""
    if name in (DEFAULT, "native"):
        return native.layer(x, h0, weights, phi, reverse, batch_sizes)
    return None


def choose(name: str, z: Tensor) -> ModuleType:
    """The module that runs a recurrence on tensors like `z`."""
    candidates = FASTEST_FIRST if name == DEFAULT else {name: FASTEST_FIRST[name]}
    refused = []
    for candidate, kernel in candidates.items():
        reason = kernel.why_not(z)
        if reason is None:
            return kernel
        refused.append(f"kernel {candidate!r} can't run here: {reason}")
    raise RuntimeError("; ".join(refused))
