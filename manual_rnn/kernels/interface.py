r"""What a kernel offers: a ladder of jobs, of which the lowest rung is required.

    elman                h_t = phi(z_t + h_{t-1} w^T)              h before the first step = h0
    linear_recurrence    y_t = phi'(h_t) * (v_t + y_{t-1} a)       y before the first step = 0
    network              elman of z_t = x_t W_ih^T + b_ih + b_hh, layer after layer, in each direction
    network_vjp          its gradients, from the states of every layer

The upper two may have a leak, h_t = (1 - alpha) h_{t-1} + alpha r_t with r_t = phi(z_t + h_{t-1} w^T); behind
the states of every layer then are the rates r of every layer.

A kernel without the upper two is composed from the lower two, once, in `ops/composed.py`. A kernel computes;
it knows nothing of autograd, of traces or of transforms.

Letters: `T` steps, `B` batch, `I` input size, `H` hidden size, `L` layers, `D` directions, `N` rows of a
    packed batch, `G` independent weight matrices (an ensemble). Shapes: `x (T, B, I)`, `z`, `h`, `v`, `y`
    `(T, B, H)`, or `(N, I)`, `(N, H)` with `batch_sizes (T,)`, which never grow; `h0 (B, H)`, `hx (L * D, B,
    H)`; `w`, `a` `(H, H)`; `alpha (H,)`; one more axis `G` in front of all or of none. `phi` is a key of
    `nonlinearities.PHI`; `reverse` runs time from its end. What comes back is new, contiguous memory.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import Buffer, Parameter

PLAIN_TYPES = frozenset({Tensor, Parameter, Buffer})  # the last for Dynamo; to Python a buffer is a Tensor
TRACERS = "torch._subclasses"  # where torch keeps the tensors without numbers with which it traces


class LayerWeights(NamedTuple):
    """The weights of a layer in one direction: `(H, I)`, `(H, H)` and `(H,)`, biases perhaps None."""

    weight_ih: Any
    weight_hh: Any
    bias_ih: Any = None
    bias_hh: Any = None


class NetworkOptions(NamedTuple):
    """What a network's call is beside its tensors."""

    batch_sizes: Tensor | None
    nonlinearity: str
    bidirectional: bool
    has_biases: bool
    kernel: str
    alpha: Any = None  # of a leak, (H,); a tensor without a gradient

    @property
    def D(self) -> int:  # noqa: N802
        return 1 + self.bidirectional


class Saved(NamedTuple):
    """What the gradients of a network are computed from. Where none that is wanted reads `x`, `hx` or a
    matrix, anything of its shape will do."""

    x: Tensor
    hx: Tensor | None
    matrices: Sequence[Tensor]  # W_ih and W_hh of each layer and direction
    states: Sequence[Tensor]  # of every layer; with a leak behind them the rates of every layer


def grouped(weights: Sequence[Any], has_biases: bool) -> list[LayerWeights]:
    """A flat list of weights, for each layer and direction."""
    size = 4 if has_biases else 2
    return [LayerWeights(*weights[at : at + size]) for at in range(0, len(weights), size)]


def shapes_of_weights(layers: int, D: int, I: int, H: int, has_biases: bool) -> list[tuple[int, ...]]:  # noqa: E741
    """The shapes of a network's weights: for each layer and direction of the matrices, and of the biases."""
    widths = [I if layer == 0 else H * D for layer in range(layers) for _ in range(D)]
    biases = [(H,), (H,)] if has_biases else []
    return [shape for width in widths for shape in ((H, width), (H, H), *biases)]


weight_shapes = cache(shapes_of_weights)  # Dynamo traces no cache


class Kernel(Protocol):
    """The required rungs. The upper two are looked for by name: `network`, `network_vjp`; and so are the
    `NONLINEARITIES` that it knows, if it doesn't know all, and `HAS_LEAK`, if that is False."""

    def unsupported_reason(self, *tensors: Tensor | None) -> str | None:
        """The reason why this kernel can't take these tensors, or None. The second, if there is one, is a
        state or states."""

    def elman(
        self, z: Tensor, h0: Tensor, w: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool
    ) -> Tensor:
        """The states `h`."""

    def linear_recurrence(
        self, v: Tensor, h: Tensor, a: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool
    ) -> Tensor:
        """`y`, by the slopes at the states `h`."""


def is_subclass(x: Tensor) -> bool:
    """Whether it is of a subclass of Tensor; those without numbers with which torch traces count as plain."""
    kind = type(x)
    return kind not in PLAIN_TYPES and not kind.__module__.startswith(TRACERS)


def non_plain_reason(x: Tensor) -> str | None:
    """The reason why `x` has to be computed with PyTorch's own operations, or None.

    Every fused kernel asks this first: its rules hold for dense real numbers, and an operator of ours means
    nothing to a subclass that handles operations by itself.
    """
    if is_subclass(x):
        name = type(x).__name__
        for base in type(x).__mro__:
            if base in PLAIN_TYPES:
                break
            if "__torch_function__" in vars(base) or "__torch_dispatch__" in vars(base):
                return f"expected a torch.Tensor, got a {name}, which handles operations by itself"
    if x.is_complex():
        return "it works on real numbers, and these are complex"
    return None if x.layout is torch.strided else f"expected dense tensors, got one of layout {x.layout}"


def check_memory(tensors: Sequence[Tensor | None]) -> None:
    """Each tensor ends within its storage, which may have been resized since: a kernel reads what lies there
    unasked. Every call pays for it, a fifth of a microsecond each.

    Raises:
        RuntimeError: in the words that PyTorch has as soon as a view is made of such a tensor.
    """
    for x in tensors:
        if x is not None:
            room = x.untyped_storage().nbytes() - x.nbytes
            if room < 0 or ((offset := x.storage_offset()) and room < offset * x.itemsize):
                x.as_strided(x.shape, x.stride())
