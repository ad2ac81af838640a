r"""What an autograd node saves: the values that were used, whatever a user does with the tensors meanwhile.

alias           a tensor of its own over the same memory, connected to the graph: `x.data = ...` leaves it as
                it is, and an edit in place is noticed
saved           what a node has saved, for its backward pass
as_nn_rnn       the input, copied where `nn.RNN` copies it: its buffer may be filled anew before backward
"""

from typing import Any

from torch import Tensor

from ..torch_internals import functorch_active, is_wrapper, unwrap_if_dead

__all__ = ["alias", "as_nn_rnn", "saved"]


def alias(x: Any) -> Any:
    """`x` over the same memory, with the same gradient; `x` itself if it is None or belongs to a
    transform."""
    if x is None or is_wrapper(x):
        return x
    return x.view_as(x) if x.requires_grad else x.detach()


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


def saved(ctx: Any) -> Any:
    """What a node has saved. A backward pass may run in one transform after another has ended, of which a
    wrapper is left that operations refuse there."""
    tensors = ctx.saved_tensors
    if not functorch_active():
        return tensors
    return tuple(x if x is None else unwrap_if_dead(x) for x in tensors)
