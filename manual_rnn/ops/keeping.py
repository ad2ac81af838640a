r"""What a node of plain numbers keeps for its backward pass: nothing that a user can change.

states          a copy that's made only if the user writes to them
a leaf          its numbers under another name: `leaf.data = ...` leaves those alone
any other       as `save_for_backward` keeps it, which notices edits in place
not needed      None, so that memory of it is freed
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["as_views", "keep", "kept"]


def as_views(*inputs: Any) -> list[Any]:
    """Inputs to be kept, or None: of a computed tensor itself `x.data = ...` would change what was kept."""
    return [x if x is None or x.grad_fn is None else x.view_as(x) for x in inputs]


def keep(ctx: Any, states: Sequence[Tensor], inputs: Sequence[Any]) -> None:
    """Save the states and those inputs that some gradient needs."""
    ctx.leaves = [
        (x, x.data_ptr()) if x is not None and x.requires_grad and x.grad_fn is None else None for x in inputs
    ]
    saved = [x if x is None or x.grad_fn is not None else x.detach() for x in inputs]
    ctx.save_for_backward(*states, *saved)


def kept(ctx: Any) -> list[Any]:
    """The states and the inputs: numbers, or where backward is itself to be differentiated, leaves.

    Raises:
        RuntimeError: for a second derivative after the `.data` of a leaf was replaced.
    """
    saved = list(ctx.saved_tensors)
    if not torch.is_grad_enabled():
        return saved
    for place, known in enumerate(ctx.leaves, start=len(saved) - len(ctx.leaves)):
        if known is None:
            continue
        leaf, at = known
        if leaf.data_ptr() != at:
            raise RuntimeError(
                "expected the input and weights of the forward pass for a second derivative, got one whose "
                ".data was replaced meanwhile"
            )
        saved[place] = leaf
    return saved
