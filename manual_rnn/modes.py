r"""Is PyTorch doing anything more than computing numbers?

A transform, a tracer, a dispatch mode, a dual number or a tensor subclass has to see an op. Where none
is in force, a recurrence may hand its tensors straight to a kernel, which saves most of the time of a
small call: on the machine of the README an op costs 20 us, this question 1 us.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

__all__ = ["plain"]

PLAIN_TYPES = {Tensor, Parameter}


# The batching under `torch.autograd.grad(..., is_grads_batched=True)`, which no other query reports.
_is_batched_backward = torch._C._functorch.is_legacy_batchedtensor


def plain(*tensors: Tensor) -> bool:
    """Whether eager numbers are all there is to these tensors (gradients may still be wanted)."""
    for x in tensors:
        if type(x) not in PLAIN_TYPES or _is_batched_backward(x):
            return False
    return not (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state()
        or forward_ad._current_level >= 0
    )
