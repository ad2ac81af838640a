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
    ctx.leaves = [x if x is not None and x.requires_grad and x.grad_fn is None else None for x in inputs]
    saved = [x if x is None or x.grad_fn is not None else x.detach() for x in inputs]
    ctx.save_for_backward(*states, *saved)


def kept(ctx: Any) -> list[Any]:
    """The states and the inputs; where backward is itself to be differentiated, each leaf as a view that
    leads to it in the graph, with the numbers of the forward pass: `leaf.data` may have been replaced."""
    saved = list(ctx.saved_tensors)
    if not torch.is_grad_enabled():
        return saved
    for place, leaf in enumerate(ctx.leaves, start=len(saved) - len(ctx.leaves)):
        if leaf is not None:
            alias = leaf.view_as(leaf)
            alias.data = saved[place]
            saved[place] = alias
    return saved
