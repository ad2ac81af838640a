r"""The operators under `vmap`: a new axis joins the batch; where members differ in weights, want gradients of
them, or share the states that are differentiated, it becomes the axis of an ensemble.

    joins the batch    B becomes B * size, in every tensor but the weights and the leak, and in batch_sizes
    an ensemble        G becomes size * G, in every tensor but batch_sizes
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from .fake_rules import leak_of

Fold = Callable[[Tensor, int | None], Tensor]  # of a tensor and the mapped axis that it has, or None
Unfold = Callable[[Tensor], tuple[Tensor, int]]  # of a result: with the mapped axis, and where


class Places(NamedTuple):
    """Which arguments of an operator are of the batch, which are the weights, which `batch_sizes`."""

    batch: tuple[int, ...]
    weights: int
    sizes: int


def rule(places: Places, operator: Any, size: int, in_dims: tuple, *args: Any, ensemble: bool = False) -> Any:
    """The results of an operator under `vmap`, and where they have the new axis of this size; `in_dims` says
    where each argument has it. It is that of an ensemble where weights have it, or if asked for."""
    batch, weights_at, sizes_at = places
    if in_dims[sizes_at] is not None:
        raise ValueError("vmap over batch_sizes: expected one packing for all, got one for each")
    leak, folded = () if leak_of(args) is None else (len(args) - 1,), list(args)
    one_for_all = weights_at, *leak
    if ensemble or not all(_is_unmapped(in_dims[at]) for at in one_for_all):
        fold, unfold = _ensemble(args[weights_at], in_dims[weights_at], size)
        batch = *batch, *one_for_all
    else:
        fold, unfold = _batch(size)
        if args[sizes_at] is not None:
            folded[sizes_at] = args[sizes_at] * size
    for at in batch:
        folded[at] = _folded(fold, args[at], in_dims[at])
    return _unfolded(unfold, operator(*folded))


recurrence = network = partial(rule, Places((0, 1), 2, 3))


def network_vjp(
    operator: Any, size: int, in_dims: tuple, need: list[bool], *args: Any
) -> tuple[list[Tensor], list[int]]:
    """Gradients with the mapped axis in front in memory, so that a Jacobian can be viewed as a matrix. Its
    rows share the states, which a batch would copy."""
    ensemble, places_of = any(need[2:]) or _is_unmapped(in_dims[4]), Places((1, 2, 4, 5, 6), 3, 7)
    found, places = rule(places_of, operator, size, in_dims, need, *args, ensemble=ensemble)
    return [x.movedim(at, 0).contiguous() for x, at in zip(found, places, strict=True)], [0] * len(found)


def _batch(size: int) -> tuple[Fold, Unfold]:
    """The mapped axis behind that of the batch, and both as one."""

    def fold(x: Tensor, dim: int | None) -> Tensor:
        return _axis_at(-2, x, dim, size).flatten(-3, -2)

    def unfold(x: Tensor) -> tuple[Tensor, int]:
        return x.unflatten(-2, (-1, size)), x.dim() - 1

    return fold, unfold


def _ensemble(weights: Any, dims: Any, size: int) -> tuple[Fold, Unfold]:
    """The mapped axis in front of all; with an axis of members that is there already, both as one."""
    w, dim = (weights, dims) if isinstance(weights, Tensor) else (weights[0], dims and dims[0])
    if w.dim() - (dim is not None) == 2:
        return lambda x, dim: _axis_at(0, x, dim, size), lambda x: (x, 0)

    def fold(x: Tensor, dim: int | None) -> Tensor:
        return _axis_at(0, x, dim, size).flatten(0, 1)

    return fold, lambda x: (x.unflatten(0, (size, -1)), 0)


def _folded(fold: Fold, x: Any, dims: Any) -> Any:
    """A tensor, or each of a list."""
    if isinstance(x, list):
        return list(map(fold, x, dims or [None] * len(x)))
    return None if x is None else fold(x, dims)


def _unfolded(unfold: Unfold, found: Any) -> Any:
    """Every tensor of a result, and where it has the mapped axis."""
    if isinstance(found, Tensor):
        return unfold(found)
    pairs, kind = [_unfolded(unfold, x) for x in found], type(found)
    return kind(x for x, _ in pairs), kind(at for _, at in pairs)


def _is_unmapped(dims: Any) -> bool:
    return dims is None or (isinstance(dims, list) and dims.count(None) == len(dims))


def _axis_at(place: int, x: Tensor, dim: int | None, size: int) -> Tensor:
    """Move the mapped axis of `x` to `place`, or repeat an unmapped `x` along a new one there."""
    if dim is None:
        x, dim = x.expand(size, *x.shape), 0
    return x.movedim(dim, place)
