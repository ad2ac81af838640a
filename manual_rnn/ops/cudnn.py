r"""cuDNN's network on CUDA.

first derivative    PyTorch's own, in C++: what `nn.RNN` runs
any other           `higher_order.py`
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from .. import kernels
from ..kernels import aten
from ..kernels.interface import NetworkOptions
from . import dispatch
from .higher_order import batching_rule, with_derivatives


def run_cudnn(
    x: Tensor, hx: Tensor, flat: Sequence[Tensor], options: NetworkOptions, batch_first: bool = False
) -> tuple[Tensor, Tensor]:
    r"""`x (T, B, I)`, with `batch_first` `(B, T, I)`, or packed; returns `output` alike and `h_n`."""
    recorded = dispatch.requires_grad(x, hx, *flat)
    output, h_n = aten.cudnn(x, hx, flat, options, batch_first, recorded)
    if not recorded:
        return output, h_n
    batching_rule()
    kernel = "torch" if options.kernel == kernels.ATEN else kernels.DEFAULT  # of what isn't cuDNN's
    output.grad_fn.register_hook(partial(with_derivatives, kernel))  # type: ignore[union-attr]
    return output, h_n
