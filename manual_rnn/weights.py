r"""The weights of a module as a list: its own, and what a user assigned instead.

No list is kept: each is read anew, so that no change goes unseen.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from .kernels.interface import PLAIN_TYPES

ASSIGNED = "_manual_rnn_assigned"  # by `_flat_weights = ...`: those tensors, and the module's own at the time
EXPANDED = "torch.nn.utils._expanded_weights"  # where torch keeps their class


def own_weights(rnn: Any) -> list[Any]:
    """The weights in order, without what was assigned to `_flat_weights`; None for one that is missing."""
    known: dict[str, Any] = rnn._parameters  # looked up directly, since nn.Module.__getattr__ is slow
    return [known[n] if n in known else getattr(rnn, n, None) for names in rnn._all_weights for n in names]


def assigned_weights(rnn: Any) -> list[Any] | None:
    """What was assigned to `_flat_weights`, if it still holds."""
    if torch.compiler.is_compiling() and not hasattr(rnn, ASSIGNED):  # a graph notices when it has
        return None
    found = rnn.__dict__.get(ASSIGNED)
    if found is None:
        return None
    weights, own_then = found
    if all(map(operator.is_, own_then, own_weights(rnn))):
        return weights
    rnn._init_flat_weights()
    return None


def same_objects(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether two lists hold the same objects; `==` would compare the numbers of tensors."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


def is_expanded(weights: Iterable[Any]) -> bool:
    """Whether any weight is one of torch's ExpandedWeights; frozen ones beside it are ordinary."""
    return any(kind.__module__.startswith(EXPANDED) for kind in {type(w) for w in weights} - PLAIN_TYPES)


class FlatWeights(list):
    """The weights of a module as a list. A change of the list changes the module."""

    def __init__(self, rnn: Any, weights: list[Any]) -> None:
        super().__init__(weights)
        self._rnn = rnn

    def __reduce__(self) -> Any:
        return list, (list(self),)


def _reaching_the_module(change: Callable[..., Any]) -> Callable[..., Any]:
    def changed(self: FlatWeights, *args: Any, **kwargs: Any) -> Any:
        found = change(self, *args, **kwargs)
        self._rnn._flat_weights = self
        return found

    return changed


CHANGES = "__setitem__ __delitem__ __iadd__ append clear extend insert pop remove reverse"
for _name in CHANGES.split():
    setattr(FlatWeights, _name, _reaching_the_module(getattr(list, _name)))
