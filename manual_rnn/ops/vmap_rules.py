r"""The operators under `vmap`: a new axis joins the batch; where members differ in weights, or want gradients
of them, it becomes the axis of an ensemble.

Each rule is given its operator, the size of the axis, and where each argument has it; and returns results and
where they have it.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .fake_rules import leak_of


def recurrence(operator: Any, size: int, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
    """A new axis joins the batch, or the ensemble where members differ in weights."""
    x, y, w, batch_sizes, *options = args
    _reject_batched_sizes(in_dims[3])
    if in_dims[2] is None:
        x, y = (_into_batch(a, d, size) for a, d in zip((x, y), in_dims, strict=False))
        rows = None if batch_sizes is None else batch_sizes * size
        out = operator(x, y, w, rows, *options).unflatten(-2, (-1, size))
        return out, out.dim() - 2
    members, (x, y, w) = _into_ensemble(
        [x, y, w], in_dims[:3], [w.dim() - (in_dims[2] is not None) - 2] * 3, size
    )
    return operator(x, y, w, batch_sizes, *options).unflatten(0, members), 0


def network(operator: Any, size: int, in_dims: tuple, *args: Any) -> tuple[Any, Any]:
    x, hx, weights, batch_sizes, *options = args
    x_dim, hx_dim, w_dims, sizes_dim = in_dims[:4]
    _reject_batched_sizes(sizes_dim)
    options, alpha, alpha_dim = _without_leak(options, in_dims)
    if _none_batched(w_dims) and alpha_dim is None:
        folded = _into_batch(x, x_dim, size), hx if hx is None else _into_batch(hx, hx_dim, size)
        rows = None if batch_sizes is None else batch_sizes * size
        output, h_n, states = operator(*folded, weights, rows, *options, *alpha)
        output, h_n, *states = (t.unflatten(-2, (-1, size)) for t in (output, h_n, *states))
        at = output.dim() - 2, h_n.dim() - 2
        return (output, h_n, states), (*at, [at[0]] * len(states))
    w_dims = w_dims or [None] * len(weights)
    tensors, dims = (
        [*alpha, x, *([] if hx is None else [hx]), *weights],
        [*([alpha_dim] if alpha else []), x_dim, *([] if hx is None else [hx_dim]), *w_dims],
    )
    grouped = [weights[0].dim() - (w_dims[0] is not None) - 2] * len(tensors)
    members, found = _into_ensemble(tensors, dims, grouped, size)
    alpha, found = found[: len(alpha)], found[len(alpha) :]
    x, hx, weights = found[0], None if hx is None else found[1], found[len(found) - len(weights) :]
    output, h_n, states = operator(x, hx, weights, batch_sizes, *options, *alpha)
    output, h_n, *states = (t.unflatten(0, members) for t in (output, h_n, *states))
    return (output, h_n, states), (0, 0, [0] * len(states))


def network_vjp(operator: Any, size: int, in_dims: tuple, *args: Any) -> tuple[Any, Any]:
    need, x, hx, matrices, states, c, c_last, batch_sizes, *options = args
    _, x_dim, hx_dim, m_dims, s_dims, c_dim, last_dim, sizes_dim = in_dims[:8]
    _reject_batched_sizes(sizes_dim)
    options, alpha, alpha_dim = _without_leak(options, in_dims)
    m_dims, s_dims = m_dims or [None] * len(matrices), s_dims or [None] * len(states)
    if _none_batched(m_dims) and alpha_dim is None and not any(need[2:]):
        x, hx, c, c_last, *states = (
            t if t is None else _into_batch(t, d, size)
            for t, d in zip(
                (x, hx, c, c_last, *states), (x_dim, hx_dim, c_dim, last_dim, *s_dims), strict=True
            )
        )
        rows = None if batch_sizes is None else batch_sizes * size
        found = operator(need, x, hx, matrices, states, c, c_last, rows, *options, *alpha)
        found = [t.unflatten(-2, (-1, size)) for t in found]
        return found, [t.dim() - 2 for t in found]
    optional = [t for t in (hx, c, c_last) if t is not None]
    tensors = [*alpha, x, *matrices, *states, *optional]
    dims = [
        *([alpha_dim] if alpha else []), x_dim, *m_dims, *s_dims,
        *(d for t, d in zip((hx, c, c_last), (hx_dim, c_dim, last_dim), strict=True) if t is not None),
    ]  # fmt: skip
    grouped = [matrices[0].dim() - (m_dims[0] is not None) - 2] * len(tensors)
    members, found = _into_ensemble(tensors, dims, grouped, size)
    alpha, found = found[: len(alpha)], found[len(alpha) :]
    M, S = len(matrices), len(states)
    x, matrices, states, given = (
        found[0],
        found[1 : 1 + M],
        found[1 + M : 1 + M + S],
        iter(found[1 + M + S :]),
    )
    hx, c, c_last = (t if t is None else next(given) for t in (hx, c, c_last))
    found = operator(need, x, hx, matrices, states, c, c_last, batch_sizes, *options, *alpha)
    return [t.unflatten(0, members) for t in found], [0] * len(found)


def _without_leak(options: list[Any], in_dims: tuple) -> tuple[list[Any], list[Tensor], int | None]:
    """Options without the leak; that, or nothing; and its mapped axis."""
    alpha = leak_of(options)
    return (options, [], None) if alpha is None else (options[:-1], [alpha], in_dims[-1])


def _none_batched(dims: Any) -> bool:
    return dims is None or all(d is None for d in dims)


def _into_batch(x: Tensor, dim: int | None, size: int) -> Tensor:
    """The mapped axis behind that of the batch; an unmapped `x` is repeated."""
    return _axis_at(-2, x, dim, size).flatten(-3, -2)


def _into_ensemble(
    tensors: Sequence[Tensor], dims: Sequence[int | None], grouped: Sequence[int], size: int
) -> tuple[tuple[int, ...], list[Tensor]]:
    """The mapped axis in front of all, with an axis of members that is there already as one; and their
    sizes."""
    moved = [_axis_at(0, x, d, size) for x, d in zip(tensors, dims, strict=True)]
    count = 1 + grouped[0]
    return tuple(moved[0].shape[:count]), [x.flatten(0, count - 1) if count > 1 else x for x in moved]


def _axis_at(place: int, x: Tensor, dim: int | None, size: int) -> Tensor:
    """Move the mapped axis of `x` to `place`, or repeat an unmapped `x` along a new one there."""
    if dim is None:
        x, dim = x.expand(size, *x.shape), 0
    return x.movedim(dim, place)


def _reject_batched_sizes(dim: int | None) -> None:
    if dim is not None:
        raise ValueError("vmap over batch_sizes: expected one packing for all, got one for each")
