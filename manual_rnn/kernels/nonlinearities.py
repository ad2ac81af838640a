r"""One row a nonlinearity: everything that any part of the house wants to know of it.

    h = phi(a)        the slope phi'(a), written through the state h:  tanh 1 - h*h,  relu h > 0

A new nonlinearity is a new row, and a case in `csrc/tile.inc.h`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["PHI", "PHI_OF_MODE", "Phi"]


class Phi(NamedTuple):
    """A nonlinearity.

    Attributes:
        mode: what `nn.RNN.mode` calls it.
        apply: $h = \\phi(a)$.
        apply_: the same in place.
        times_slope_: $m \\leftarrow \\phi'(h) m$ of `(m, h)`, in place; an off unit stops even an infinity.
        times_slope: the same into a new tensor.
        slope_derivative: the derivative of the slope by $h$, or None where it is 0 everywhere.
        code: its number in C.
        onnx: its name as an activation of an ONNX node.
    """

    mode: str
    apply: Callable[[Tensor], Tensor]
    apply_: Callable[[Tensor], Tensor]
    times_slope_: Callable[[Tensor, Tensor], Tensor]
    times_slope: Callable[[Tensor, Tensor], Tensor]
    slope_derivative: Callable[[Tensor], Tensor] | None
    code: int
    onnx: str


def _tanh_slope(h: Tensor) -> Tensor:
    return torch.addcmul(h.new_ones(()), h, h, value=-1)


PHI: dict[str, Phi] = {
    "tanh": Phi(
        mode="RNN_TANH",
        apply=torch.tanh,
        apply_=Tensor.tanh_,
        times_slope_=lambda m, h: m.mul_(_tanh_slope(h)),
        times_slope=lambda m, h: m * (1 - h * h),
        slope_derivative=lambda h: -2 * h,
        code=0,
        onnx="Tanh",
    ),
    "relu": Phi(
        mode="RNN_RELU",
        apply=torch.relu,
        apply_=Tensor.relu_,
        times_slope_=lambda m, h: m.masked_fill_(h <= 0, 0.0),
        times_slope=lambda m, h: m.masked_fill(h <= 0, 0.0),
        slope_derivative=None,
        code=1,
        onnx="Relu",
    ),
}
PHI_OF_MODE = {row.mode: name for name, row in PHI.items()}
