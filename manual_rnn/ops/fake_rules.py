r"""The shapes of what the operators return, for tracing: results without numbers."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def recurrence(x: Tensor, y: Tensor, w: Tensor, batch_sizes: Tensor | None, *_: Any) -> Tensor:
    """Shaped as the first tensor."""
    _check_values(x, batch_sizes, y, w)
    return x.new_empty(x.shape)


def network(
    x: Tensor, hx: Tensor | None, weights: Sequence[Tensor], *options: Any
) -> tuple[Tensor, Tensor, list[Tensor]]:
    batch_sizes, _, bidirectional, has_biases, save_states, *rest = options
    alpha = leak_of(rest)
    _check_values(x, batch_sizes, hx, *weights, alpha)
    groups = len(weights) // (4 if has_biases else 2)
    (*G, H), D = weights[0].shape[:-1], 1 + bidirectional
    B = x.size(-2) if batch_sizes is None else _packed_batch(batch_sizes, hx)
    output = x.new_empty((*x.shape[:-1], D * H))
    count = groups // D * (1 if alpha is None else 2) if save_states else 0
    states = [output.new_empty(output.shape) for _ in range(count)]
    return output, x.new_empty((*G, groups, B, H)), states


def _packed_batch(batch_sizes: Tensor, hx: Tensor | None) -> Any:
    """`B` of a packed batch, which a trace that has no `hx` can't know."""
    return hx.size(-2) if hx is not None else int(batch_sizes[0])


def network_vjp(
    need: list[bool],
    x: Tensor,
    hx: Tensor | None,
    matrices: Sequence[Tensor],
    states: Sequence[Tensor],
    *rest: Any,
) -> list[Tensor]:
    c, c_last, batch_sizes, *_ = rest
    _check_values(x, batch_sizes, hx, *matrices, *states, c, c_last, leak_of(rest))
    return [
        x.new_empty(shape)
        for shape, needed in zip(_gradient_shapes(need, x, hx, matrices), need, strict=True)
        if needed
    ]


def _gradient_shapes(
    need: list[bool], x: Tensor, hx: Tensor | None, matrices: Sequence[Tensor]
) -> list[Sequence[int]]:
    """Of `x`, `hx` and each weight."""
    shapes: list[Any] = [x.shape, () if hx is None else hx.shape]
    has_biases = len(need) - 2 == 2 * len(matrices)
    for w_ih, w_hh in zip(matrices[::2], matrices[1::2], strict=True):
        shapes += [w_ih.shape, w_hh.shape, *([w_hh.shape[:-1]] * 2 if has_biases else [])]
    return shapes


def _check_values(x: Tensor, batch_sizes: Tensor | None, *others: Tensor | None) -> None:
    """What is made from tensors without values would be memory that nobody wrote."""
    if x.is_meta:
        return
    if batch_sizes is not None and batch_sizes.is_meta:
        raise RuntimeError(f"expected batch_sizes with values for data on {x.device}, got some on meta")
    if any(t is not None and t.is_meta for t in others):
        raise RuntimeError(f"expected all tensors on {x.device}, got one on meta")


def leak_of(rest: Sequence[Any]) -> Tensor | None:
    """The leak among what an operator was given behind its other arguments: the last, if there is one."""
    return rest[-1] if rest and isinstance(rest[-1], Tensor) else None
