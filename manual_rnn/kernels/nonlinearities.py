r"""One row a nonlinearity: everything that any part of the house wants to know of it.

    h = phi(a)        the slope phi'(a), written through the state h, and at a kink as PyTorch has it

    tanh          1 - h*h                      relu          h > 0
    sigmoid       h (1 - h)                    leaky_relu    1 where h > 0, else 0.01
    softplus      1 - exp(-h)                  hardtanh      |h| < 1
    identity      1

A new nonlinearity is a new row; the C has a line for it in `csrc/types.h` and two cases in `csrc/tile.inc.h`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..torch_internals import has_global_hooks, torchscript


class Phi(NamedTuple):
    """A nonlinearity.

    Attributes:
        mode: what `nn.RNN.mode` calls it, or would.
        code: its number as a mode of ATen's operator, and in C; 2 and 3 are LSTM and GRU there.
        functions: those of PyTorch that mean it.
        module: the module that means it, with the settings that it has to have.
        apply: $h = \\phi(a)$.
        apply_: the same in place.
        times_slope_: $m \\leftarrow \\phi'(h) m$ of `(m, h)`, in place; an off unit stops even an infinity.
        times_slope: the same into a new tensor.
        slope_derivative: the derivative of the slope by $h$, or None where it is 0 everywhere.
        onnx: its name as an activation of an ONNX node, with what the node has to be told of it, alpha and
            beta; or None if ONNX has none.
    """

    mode: str
    code: int
    functions: tuple[Callable[..., Tensor], ...]
    module: nn.Module
    apply: Callable[[Tensor], Tensor]
    apply_: Callable[[Tensor], Tensor]
    times_slope_: Callable[[Tensor, Tensor], Tensor]
    times_slope: Callable[[Tensor, Tensor], Tensor]
    slope_derivative: Callable[[Tensor], Tensor] | None
    onnx: tuple[Any, ...] | None


LEAK = 0.01  # the slope of PyTorch's leaky ReLU where it is off
LINEAR = 20.000000002061153  # softplus(20), above which PyTorch has softplus(a) = a


def _tanh_slope(h: Tensor) -> Tensor:
    return torch.addcmul(h.new_ones(()), h, h, value=-1)


def _softplus_slope(h: Tensor) -> Tensor:
    return torch.where(h > LINEAR, 1.0, -torch.expm1(-h))


PHI: dict[str, Phi] = {
    "tanh": Phi(
        mode="RNN_TANH",
        code=1,
        functions=(torch.tanh, F.tanh),
        module=nn.Tanh(),
        apply=torch.tanh,
        apply_=Tensor.tanh_,
        times_slope_=lambda m, h: m.mul_(_tanh_slope(h)),
        times_slope=torch.ops.aten.tanh_backward.default,
        slope_derivative=lambda h: -2 * h,
        onnx=("Tanh",),
    ),
    "relu": Phi(
        mode="RNN_RELU",
        code=0,
        functions=(torch.relu, F.relu),
        module=nn.ReLU(),
        apply=torch.relu,
        apply_=Tensor.relu_,
        times_slope_=lambda m, h: m.masked_fill_(h <= 0, 0.0),
        times_slope=lambda m, h: torch.ops.aten.threshold_backward.default(m, h, 0),
        slope_derivative=None,
        onnx=("Relu",),
    ),
    "identity": Phi(
        mode="RNN_IDENTITY",
        code=4,
        functions=(),
        module=nn.Identity(),
        apply=Tensor.clone,
        apply_=lambda a: a,
        times_slope_=lambda m, h: m,
        times_slope=lambda m, h: m.clone(),
        slope_derivative=None,
        onnx=("Affine", 1.0, 0.0),
    ),
    "sigmoid": Phi(
        mode="RNN_SIGMOID",
        code=5,
        functions=(torch.sigmoid, F.sigmoid),
        module=nn.Sigmoid(),
        apply=torch.sigmoid,
        apply_=Tensor.sigmoid_,
        times_slope_=lambda m, h: m.mul_(h * (1 - h)),
        times_slope=lambda m, h: m * (h * (1 - h)),
        slope_derivative=lambda h: 1 - 2 * h,
        onnx=("Sigmoid",),
    ),
    "softplus": Phi(
        mode="RNN_SOFTPLUS",
        code=6,
        functions=(F.softplus,),
        module=nn.Softplus(),
        apply=F.softplus,
        apply_=lambda a: a.copy_(F.softplus(a)),
        times_slope_=lambda m, h: m.mul_(_softplus_slope(h)),
        times_slope=lambda m, h: m * _softplus_slope(h),
        slope_derivative=lambda h: torch.exp(-h).masked_fill(h > LINEAR, 0.0),
        onnx=("Softplus",),
    ),
    "hardtanh": Phi(
        mode="RNN_HARDTANH",
        code=7,
        functions=(F.hardtanh,),
        module=nn.Hardtanh(),
        apply=F.hardtanh,
        apply_=F.hardtanh_,
        times_slope_=lambda m, h: m.masked_fill_(h.abs() >= 1, 0.0),
        times_slope=lambda m, h: m.masked_fill(h.abs() >= 1, 0.0),
        slope_derivative=None,
        onnx=None,
    ),
    "leaky_relu": Phi(
        mode="RNN_LEAKY_RELU",
        code=8,
        functions=(F.leaky_relu,),
        module=nn.LeakyReLU(),
        apply=F.leaky_relu,
        apply_=F.leaky_relu_,
        times_slope_=lambda m, h: m.copy_(torch.where(h > 0, m, LEAK * m)),
        times_slope=lambda m, h: torch.where(h > 0, m, LEAK * m),
        slope_derivative=None,
        onnx=("LeakyRelu", LEAK),
    ),
}
PHI_OF_MODE = {row.mode: name for name, row in PHI.items()}
PHI_OF_CODE = {row.code: name for name, row in PHI.items()}
NN_RNN_MODES = PHI["tanh"].mode, PHI["relu"].mode  # those that `nn.RNN` has, and cuDNN


def name_of(function: Any) -> str | None:
    """The nonlinearity that a function or module of PyTorch means; None for any other, and for a module that
    has hooks or other settings. A trace of TorchScript keeps the function itself."""
    if torchscript() is not None:
        return None
    for name, row in PHI.items():
        if any(function is known for known in row.functions):
            return name
        if type(function) is type(row.module) and _is_plain(function, row.module):
            return name
    return None


def _is_plain(module: nn.Module, default: nn.Module) -> bool:
    """Whether a module is as its constructor makes it, but for `training`."""
    return not has_global_hooks() and {**vars(module), "training": True} == vars(default)
