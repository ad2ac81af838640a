r"""Which kernel runs: the whole policy.

`use_kernel(name)` asks for one; what was asked for runs or raises with the reason. Unasked, the first of
`KERNELS` that can take all tensors runs, and the last of them can always.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import aten, native, reference, torch_loop, triton_launch  # as statements, which torch.package follows
from .interface import LayerWeights, NetworkOptions, check_memory
from .nonlinearities import PHI
from .selection import DEFAULT, KernelName, requested_kernel, use_kernel

ATEN, NATIVE, REFERENCE = "aten", "native", "reference"
KERNELS: dict[str, Any] = {  # by name what `interface.Kernel` describes, the fastest first
    NATIVE: native,
    "triton": triton_launch,
    "torch": torch_loop,
    ATEN: aten,
    REFERENCE: reference,
}


def unsupported_reason(
    kernel: Any, phi: str | None, *tensors: Tensor | None, leaky: bool = False
) -> str | None:
    """The reason why a kernel can't compute this nonlinearity, None for any, of these tensors; or None."""
    known = getattr(kernel, "NONLINEARITIES", PHI)
    if phi is not None and phi not in known:
        return f"it knows {' and '.join(known)}, got {phi}"
    if leaky and not getattr(kernel, "HAS_LEAK", True):
        return "it knows no leak"
    return kernel.unsupported_reason(*tensors)


def choose(
    name: str,
    *tensors: Tensor | None,
    batch_sizes: Tensor | None = None,
    phi: str | None = None,
    leaky: bool = False,
) -> Any:
    """The kernel that computes `phi` of these tensors: the one asked for, or the fastest that can.

    Raises:
        RuntimeError: if the one asked for can't, with its reason; if a tensor's storage ends before it does.
    """
    reason = None
    for kernel in KERNELS.values() if name == DEFAULT else (KERNELS[name],):
        reason = unsupported_reason(kernel, phi, *tensors, leaky=leaky)
        if reason is None:
            check_memory(tensors if batch_sizes is None else (*tensors, batch_sizes))
            return kernel
    raise RuntimeError(f"kernel {name!r} can't run here: {reason}")


def layer_of(
    name: str, phi: str, x: Tensor, weight: Tensor, leaky: bool = False
) -> Callable[[Tensor, Tensor, LayerWeights, bool, NetworkOptions], tuple[Tensor, Tensor]] | None:
    """What runs a layer in one direction where no kernel has the whole network: on CUDA cuDNN, where it can;
    None, as for an ensemble, for the recurrence of the kernel chosen."""
    able = (
        name in (DEFAULT, ATEN)
        and weight.dim() == 2
        and aten.by_cudnn(x)
        and unsupported_reason(aten, phi, x, leaky=leaky) is None
    )
    return aten.layer if able else None


def reasons(*tensors: Tensor | None, phi: str | None = None, leaky: bool = False) -> dict[str, str | None]:
    """For each kernel the reason why it can't take these tensors, or None: what `choose` goes by."""
    return {name: unsupported_reason(kernel, phi, *tensors, leaky=leaky) for name, kernel in KERNELS.items()}
