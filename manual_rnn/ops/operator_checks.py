r"""What an operator checks of its tensors before a kernel reads them: nothing broadcasts."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..kernels.interface import NetworkOptions, Saved, weight_shapes
from ..kernels.time_order import batch_size


def check_recurrence(name: str, x: Tensor, y: Tensor, w: Tensor, batch_sizes: Tensor | None) -> None:
    """Nothing broadcasts: raise unless the shapes fit to the last axis."""
    _check_real(name, x)
    second = x.shape[1:] if name == "elman" else x.shape
    if batch_sizes is None and x.dim() == 3 and w.shape == (x.size(2),) * 2 and y.shape == second:
        return  # the common case, found soon: a call may take a few microseconds in all
    G, H = w.shape[:-2], x.size(-1)
    if x.dim() != w.dim() + (batch_sizes is None):
        rank = w.dim() + (batch_sizes is None)
        raise ValueError(f"{name}: expected its first tensor to have {rank} axes, got {x.dim()}")
    B = batch_size(x, batch_sizes, y)
    state = (*G, B, H) if name == "elman" else x.shape
    _compare(name, (x, y, w), ((*G, *x.shape[len(G) :]), state, (*G, H, H)))


def check_network(x: Tensor, hx: Tensor | None, weights: Sequence[Tensor], options: NetworkOptions) -> None:
    """The same of a network."""
    _check_real("network", x)
    size = options.D * (4 if options.has_biases else 2)
    if not weights or len(weights) % size:
        raise ValueError(f"network: expected {size} weights for each layer, got {len(weights)}")
    G, H = weights[0].shape[:-2], weights[0].size(-2)
    rank = len(G) + (3 if options.batch_sizes is None else 2)
    if x.dim() != rank:
        raise ValueError(f"network: expected an input of {rank} axes, got {x.dim()}")
    layers = len(weights) // size
    shapes = [x.shape[len(G) :], *weight_shapes(layers, options.D, x.size(-1), H, options.has_biases)]
    tensors, expected = [x, *weights], [(*G, *shape) for shape in shapes]
    if options.alpha is not None:
        tensors, expected = [*tensors, options.alpha], [*expected, (*G, H)]
    if hx is not None:
        B = batch_size(x, options.batch_sizes, hx)
        tensors, expected = [*tensors, hx], [*expected, (*G, layers * options.D, B, H)]
    _compare("network", tensors, expected)


def check_network_vjp(
    need: Sequence[bool],
    saved: Saved,
    cotangents: tuple[Tensor | None, Tensor | None],
    options: NetworkOptions,
) -> None:
    """The same of a network's gradients."""
    x, hx, matrices, states = saved
    weights = len(matrices) * (2 if options.has_biases else 1)
    count = len(matrices) // (2 * options.D) * (1 if options.alpha is None else 2)
    if len(need) != 2 + weights or len(states) != count:
        raise ValueError(
            f"network_vjp: expected {2 + weights} flags and {count} tensors of states, "
            f"got {len(need)} and {len(states)}"
        )
    check_network(x, hx, matrices, options._replace(has_biases=False))
    c, c_last = cotangents
    H, h = matrices[0].size(-2), states[0]
    shape = (*x.shape[:-1], options.D * H)
    B = batch_size(x, options.batch_sizes, c_last)
    last = (*h.shape[: matrices[0].dim() - 2], len(matrices) // 2, B, H)
    tensors = [*states, *(t for t in (c, c_last) if t is not None)]
    expected = [shape] * (len(states) + (c is not None)) + [last] * (c_last is not None)
    _compare("network_vjp", tensors, expected)


def _check_real(name: str, x: Tensor) -> None:
    if x.is_complex():  # a layer of complex numbers runs by the reference, without an operator
        raise TypeError(f"{name}: expected real numbers, for which its derivatives hold, got {x.dtype}")


def _compare(name: str, tensors: Any, expected: Any) -> None:
    shapes = [tuple(map(tuple, each)) for each in (expected, [x.shape for x in tensors])]
    if shapes[0] != shapes[1]:
        raise ValueError("{}: expected tensors of shapes {}, got {}".format(name, *shapes))
