r"""What is active around a call: transforms, modes, tracers, forward mode, a profiler, autocast."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .find import MISSING, find, never

TRACERS = ("torch.fx", "torch._subclasses")  # where torch keeps the modes with which it traces

# What `torch.jit.trace` and the ONNX exporter built on it are tracing, or None.
torchscript: Callable[[], Any] = find("torch._C", "_get_tracing_state", never)

# What may be active: a transform of torch.func, modes, a level of forward mode, a profiler, autocast.
functorch_active: Callable[[], bool] = find("torch._C", "_are_functorch_transforms_active", never)
profiling: Callable[[], bool] = find("torch.autograd", "_profiler_enabled", never)
any_autocast: Callable[[], bool] = find("torch._C", "_is_any_autocast_enabled", never)
_mode_count: Callable[[], int] = find("torch._C", "_len_torch_dispatch_stack", never)
_mode_at = find("torch._C", "_get_dispatch_stack_at")
function_mode_count: Callable[[], int] = find("torch._C", "_len_torch_function_stack", never)
_function_mode_at = find("torch._C", "_get_function_stack_at")
_DeviceContext = find("torch.utils._device", "DeviceContext")
# A block in which no mode of `__torch_function__` is active, and no subclass of Tensor handles operations.
below_function_modes: Callable[[], AbstractContextManager[None]] = find("torch._C", "DisableTorchFunction")
find("torch.autograd.forward_ad", "_current_level")


def forward_mode_is_active() -> bool:
    """Whether tensors may carry tangents."""
    return getattr(forward_ad, "_current_level", -1) >= 0


def no_interposition() -> bool:
    """Whether no transform, mode, tracer or level of forward mode is active.

    Modes of `__torch_function__` count too, also those under which `make_fx(pre_dispatch=True)` traces; only
    the default device, which is one, doesn't.
    """
    if MISSING or functorch_active() or _mode_count() or torchscript() or forward_ad._current_level >= 0:
        return False
    return not function_mode_count() or only_default_device()


def only_default_device() -> bool:
    """Whether there is a default device and no other mode of `__torch_function__`. Its handler in Python is
    called for every attribute of a tensor that is read, to no effect, and takes some 2 us."""
    count = function_mode_count()
    own = count > 0 and not MISSING
    return own and all(type(_function_mode_at(place)) is _DeviceContext for place in range(count))


def no_tracing() -> bool:
    """Whether nothing traces. Transforms may be active, and modes as long as none of them is a tracer."""
    return not (MISSING or torchscript() or _mode_traces())


def transforms_active() -> bool:
    """Whether a transform of torch.func or a level of forward mode is active."""
    return functorch_active() or forward_mode_is_active()


def _mode_traces() -> bool:
    if not (_mode_count() or function_mode_count()):
        return False
    active = [*modes(), *map(_function_mode_at, range(function_mode_count()))]
    return any(type(mode).__module__.startswith(TRACERS) for mode in active)


def modes() -> list[Any]:
    """The modes that see every operator."""
    return [] if MISSING else [_mode_at(place) for place in range(_mode_count())]


_dispatch_keys = find("torch._C", "_dispatch_keys")
_raw = find("torch._C", "DispatchKeySet")
if _raw is not None and not hasattr(_raw, "raw_repr"):
    MISSING.append("torch._C.DispatchKeySet.raw_repr")


def dispatch_key_set(x: Tensor) -> Any:
    """What a tensor asks the dispatcher for, to be compared."""
    return _dispatch_keys(x).raw_repr()


# The one event that tells a profiler of shapes.
record_function_fast: Callable[..., Any] = find("torch._C._profiler", "_RecordFunctionFast")

# Whether the processor multiplies tiles of bfloat16; a torch that can't tell has no use for it either.
has_amx: Callable[[], bool] = cache(getattr(torch.cpu, "_is_amx_tile_supported", never))
