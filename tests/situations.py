r"""Situations that a call of a network may be in, from which the fuzz tests draw.

EDITS      what is done to a result in place
CALLS      what becomes of a network before it is called
AROUND     what a call stands in
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.func import functional_call
from torch.nn.utils.parametrize import register_parametrization
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from manual_rnn import ManualRNN

__all__ = ["AROUND", "CALLS", "EDITS", "Beneath", "Loud", "Through"]

EDITS: dict[str, Any] = {
    "none": lambda o: None,
    "mul_": lambda o: o.mul_(2),
    "relu_": torch.relu_,
    "data": lambda o: o.data.mul_(0.5),
    "slice": lambda o: o[0].zero_(),
    "detach_": lambda o: o.detach() if o._is_view() else o.detach_(),  # of a view it always raises
}


def forward_as_it_is(rnn: Any) -> Any:
    return rnn


def cast_before(rnn: Any) -> Any:
    dtype = rnn.weight_hh_l0.dtype
    rnn.register_forward_pre_hook(lambda _, given: tuple(x if x is None else x.to(dtype) for x in given))
    return lambda given, hx: rnn(given.to(torch.float64), hx if hx is None else hx.to(torch.float64))


def cast_after(rnn: Any) -> Any:
    rnn.register_forward_hook(lambda _, given, found: tuple(map(in_float64, found)))
    return rnn


def in_float64(x: Any) -> Any:
    if isinstance(x, PackedSequence):
        return x._replace(data=in_float64(x.data))
    return x.to(torch.float64, copy=True)


def doubled_gradients(rnn: Any) -> Any:
    for p in rnn.parameters():
        if p.requires_grad:
            p.register_hook(lambda g: 2 * g)
            p.register_post_accumulate_grad_hook(one_more)
    return rnn


def one_more(p: Tensor) -> None:
    assert p.grad is not None
    p.grad.add_(1)


def hooked_backward(rnn: Any) -> Any:
    rnn.register_full_backward_pre_hook(lambda _, out: tuple(g if g is None else 2 * g for g in out))
    rnn.register_full_backward_hook(lambda _, into, out: tuple(g if g is None else g + 1 for g in into))
    return lambda given, hx: tuple(map(copied, rnn(given, hx)))


def copied(x: Any) -> Any:
    """Results under such hooks are views, which nobody may edit in place."""
    return x._replace(data=x.data.clone()) if isinstance(x, PackedSequence) else x.clone()


class Rounded(nn.Module):
    """A weight as bfloat16 has it."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (weight.to(torch.bfloat16) - weight).detach()


def computed_weight(rnn: Any) -> Any:
    """`nn.RNN` runs a weight that was there before, not the computed one."""
    if isinstance(rnn, ManualRNN):
        register_parametrization(rnn, "weight_hh_l0", Rounded())
        return rnn
    return lambda given, hx: functional_call(rnn, {"weight_hh_l0": Rounded()(rnn.weight_hh_l0)}, (given, hx))


def recomputed(rnn: Any) -> Any:
    return lambda given, hx: checkpoint(rnn, given, hx, use_reentrant=False)


CALLS: dict[str, Any] = {  # what becomes of a network before it is called
    "as it is": forward_as_it_is,
    "cast before": cast_before,
    "cast after": cast_after,
    "doubled gradients": doubled_gradients,
    "hooked backward": hooked_backward,
    "computed weight": computed_weight,
    "recomputed": recomputed,
}


class Loud(Tensor):
    """Handles operations by itself, as a Tensor does."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(function, types, args, kwargs or {})


class Through(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Beneath(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def saved_in(other: torch.dtype) -> AbstractContextManager[Any]:
    return saved_tensors_hooks(lambda x: (x.dtype, x.to(other, copy=True)), lambda kept: kept[1].to(kept[0]))


def in_a_pool(x: Tensor) -> Tensor:
    """A part of wider rows, which begins within its storage."""
    return x.new_zeros(3, *x.shape[:-1], x.shape[-1] + 2)[1, ..., 1:-1].copy_(x)


AROUND: dict[str, Any] = {  # what a call stands in
    "nothing": nullcontext,
    "saved in float64": lambda: saved_in(torch.float64),
    "saved as numpy": lambda: saved_tensors_hooks(lambda x: x.detach().numpy().copy(), torch.from_numpy),
    "saved in a pool": lambda: saved_tensors_hooks(in_a_pool, lambda x: x),
    "saved on the CPU": save_on_cpu,
    "function mode": Through,
    "dispatch mode": Beneath,
    "device cpu": lambda: torch.device("cpu"),
    "device meta": lambda: torch.device("meta"),
}
