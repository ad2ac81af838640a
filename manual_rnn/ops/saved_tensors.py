r"""What an autograd node saves: the values that were used, whatever a user does with the tensors meanwhile.

alias           a tensor of its own over the same memory, connected to the graph: `x.data = ...` leaves it as
                it is, and an edit in place is noticed
saved_by        what a node has saved, for its backward pass
copy            of hx: a node checks all that it has saved for edits, also for gradients that don't read it
as_nn_rnn       the input, copied where `nn.RNN` copies it: its buffer may be filled anew before backward
graph_copies    the input and hx as a compiled backward pass reads them
node_inputs     all of a plain call for ATen's node, which saves whatever it is given
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..kernels.interface import check_memory
from ..torch_internals import (
    below_autograd,
    copy_all,
    functorch_active,
    is_wrapper,
    unnoticed_alias,
    unwrap_if_dead,
)
from .dispatch import statically

# Up to so many numbers a copy is cheaper than an alias that notices no edit: with a copy of weight_ih a
# training step of (T, B, I, H) = (3, 2, 2, 3) takes 112 us, with an alias 130, on an AMD EPYC (Zen 4).
FEW = 2**14


def alias(x: Any) -> Any:
    """`x` over the same memory, with the same gradient; `x` itself if it is None or belongs to a
    transform."""
    if x is None or is_wrapper(x):
        return x
    return x.view_as(x) if x.requires_grad else x.detach()


def copy(x: Any) -> Any:
    """The same in memory of its own."""
    if x is None or is_wrapper(x):
        return x
    check_memory([x])
    return x.clone()


def as_nn_rnn(x: Tensor) -> Tensor:
    """`x (T, B, I)` or `(N, I)`, as a copy where its rows aren't evenly spaced, which `nn.RNN` copies to
    multiply them. Its gradient has the strides that a matrix product gives it."""
    rows = x.reshape(-1, x.size(-1))
    if rows.stride(0) == 1 and rows.stride(1) == rows.size(0) and x.requires_grad:
        rows = _with_columns_in_memory(rows)
    return rows.view(x.shape)


def _with_columns_in_memory(rows: Tensor) -> Tensor:
    """A view of `rows (N, I)` whose gradient has contiguous columns, as `rows` itself has.

    The gradient of the flat view in the middle is contiguous.
    """
    columns = rows.t()
    return columns.reshape(-1).view(columns.shape).t()


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """What the operator of this name does; a graph's compiler knows nothing of it, and keeps its results."""
    check_memory(tensors)
    return fake_copies(tensors)


def fake_copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x.clone() for x in tensors]


def graph_copies(x: Tensor | None, hx: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """In compiled code a copy of `hx`, and of `x` where `nn.RNN` makes one: their buffers may be filled anew
    before backward. Each may be None, where backward doesn't read it.

    A graph would save its argument itself, and make a copy that the forward pass doesn't read in the backward
    pass.
    """
    own_x = None if x is None or _is_evenly_spaced(x) else x
    given = [t for t in (own_x, hx) if t is not None]
    if not given:
        return x, hx
    with below_autograd():
        found = iter(torch.ops.manual_rnn.copies(given))
    return x if own_x is None else next(found), hx if hx is None else next(found)


def _is_evenly_spaced(x: Tensor) -> bool:
    """Whether all rows of `x (T, B, I)` or `(N, I)` are at one distance from each other in memory."""
    if x.dim() == 2 or statically(x.size(0), 1) or statically(x.size(1), 1):
        return True
    return statically(x.stride(0) - x.size(1) * x.stride(1), 0)


def saved_by(ctx: Any) -> Any:
    """What a node has saved. A backward pass may run in one transform after another has ended, of which a
    wrapper is left that operations refuse there."""
    tensors = ctx.saved_tensors
    if not functorch_active():
        return tensors
    return tuple(x if x is None else unwrap_if_dead(x) for x in tensors)


@cache
def read_by_backward(need: tuple[bool, ...], single: bool, layer: int, size: int) -> list[bool]:
    """Whether backward reads `x`, `hx` and each weight, for the gradients of these that are wanted, of a
    single step or more. A layer has `layer` weights, one direction of it `size`, two matrices first."""
    need_x, need_hx, *need_w = need
    carried = need_hx or not single
    read = [any(need_w[:layer:size]), any(need_w[1::size])]
    for at in range(0, len(need_w), size):
        above = at - at % layer  # weights of the layers below
        below = need_x or (above > 0 and (need_hx or any(need_w[:above])))
        reached = below or need_hx or any(need_w[above : above + layer])
        read += [below, carried and reached, *[False] * (size - 2)]
    return read


def node_inputs(
    x: Tensor, hx: Tensor | None, weights: Sequence[Tensor], read: Sequence[bool], batch_first: bool
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Aliases of all that ATen's node is given, and a copy of `hx`. `read` says of `x`, `hx` and each weight
    whether backward reads it: there an edit in place is noticed."""
    check_memory(weights)
    found, copied = list(weights), []
    for at, w in enumerate(weights):
        if read[2 + at]:
            found[at] = w[...]
        elif w.requires_grad and w.numel() <= FEW:
            copied.append(at)
        else:
            found[at] = _unread_alias(w)
    if copied:
        for at, w in zip(copied, copy_all([weights[at] for at in copied]), strict=True):
            found[at] = w
    x = _input_alias(x, batch_first)
    return x if read[0] else _unread_alias(x), copy(hx), found


def _unread_alias(x: Tensor) -> Tensor:
    """One that notices no edit; a node saves no inference tensor, so of one a copy."""
    if x.is_inference():
        return x.clone()
    return unnoticed_alias(x, x.shape) if x.requires_grad else x.data


def expanded_zeros(like: Tensor, shape: torch.Size) -> Tensor:
    """Zeros of any shape, which take the memory of one."""
    return torch.zeros((), dtype=like.dtype, device=like.device).expand(shape)


def forget(x: Tensor) -> None:
    """Let go of the memory of a tensor that a node has saved and won't read."""
    x.data = expanded_zeros(x, x.shape)


def _input_alias(x: Tensor, batch_first: bool) -> Tensor:
    """Where the input's rows aren't evenly spaced it is copied, as `nn.RNN` copies it."""
    if batch_first:
        return as_nn_rnn(x.transpose(0, 1)).transpose(0, 1)
    if not x.is_contiguous():
        return as_nn_rnn(x.view_as(x))
    return x.view_as(x) if x.requires_grad else x.detach()
