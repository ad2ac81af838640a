r"""Who looks on, and what they would see: plain numbers, or tensors of another kind.

plain             numbers, and nobody looks on
untraced          numbers, though a mode may look on
looked_at         a mode or a profiler does
wants_gradient    autograd does
"""

from typing import Any

import torch
from torch import Tensor

from ..kernels.interface import PLAIN_TYPES
from ..kernels.native import numbers
from ..torch_internals import keys_of, nobody_looks_on, nobody_traces, profiling

__all__ = ["looked_at", "plain", "untraced", "wants_gradient"]


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is done with these tensors."""
    if torch.is_grad_enabled():
        for x in tensors:
            if x is not None and x.requires_grad:
                return True
    return False


_plain_keys: dict[str, frozenset[Any]] = {}


def plain(*tensors: Tensor | None) -> bool:
    """Whether eager numbers are all there is to these tensors (gradients may still be wanted)."""
    return nobody_looks_on() and (numbers(*tensors) or _own_memory(*tensors))  # the quick answer for most


def untraced(*tensors: Tensor | None) -> bool:
    """Whether they are eager numbers, though a mode may look on."""
    return nobody_traces() and _own_memory(*tensors)


def looked_at() -> bool:
    """Whether a mode or a profiler wants to see what runs."""
    return not nobody_looks_on() or profiling()


def _own_memory(*tensors: Tensor | None) -> bool:
    for x in tensors:
        if x is None:
            continue
        kind = "cpu" if x.is_cpu else x.device.type
        known = _plain_keys.get(kind) or _learn_keys(kind)
        if type(x) not in PLAIN_TYPES or keys_of(x) not in known:
            return False
    return True


def _learn_keys(kind: str) -> frozenset[Any]:
    """The keys of a tensor of numbers on this kind of device: no wrapper of a transform, no pending
    conjugation or negation, nothing sparse, nothing without memory of its own."""
    found = []
    for inference in (False, True):
        with torch.inference_mode(inference):
            found.append(keys_of(torch.empty(0, device=kind)))
    _plain_keys[kind] = frozenset(found)
    return _plain_keys[kind]
