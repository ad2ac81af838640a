r"""Layers whose weights are torch's ExpandedWeights, which ask for a gradient of each sample (Opacus' "ew").

Such a weight knows `F.linear` and next to nothing else, and finds the samples on the first axis. So each step
projects its own input: `h_t = phi(x_t W_ih^T + b_ih + (h_{t-1} W_hh^T + b_hh))`, with the batch first.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import reference
from ..kernels.interface import PLAIN_TYPES
from ..kernels.nonlinearities import PHI
from ..kernels.time_order import Walk

__all__ = ["is_expanded", "run_layer_per_sample"]

ORDINARY = PLAIN_TYPES | {type(None)}
EXPANDED = "torch.nn.utils._expanded_weights"  # where torch keeps their class


def is_expanded(weights: Sequence[Sequence[Any]]) -> bool:
    """Whether any weight is one of those; frozen ones beside it are ordinary."""
    for group in weights:
        for w in group:
            if type(w) not in ORDINARY and type(w).__module__.startswith(EXPANDED):
                return True
    return False


def run_layer_per_sample(
    input: Tensor, hx: Tensor, weights: Sequence[Any], phi: Any, batch_sizes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`layer.run_layer` for such weights.

    Raises:
        RuntimeError: for a recurrence of your own, of whose operations they know nothing.
    """
    if not isinstance(phi, str):
        raise RuntimeError("ExpandedWeights: expected 'tanh' or 'relu', got a recurrence of your own")
    found = [
        _run_direction(input, h0, group, phi, Walk(0, bool(reverse), batch_sizes))
        for reverse, (h0, group) in enumerate(zip(hx.unbind(0), weights, strict=True))
    ]
    states, last = zip(*found, strict=True)
    return torch.cat(states, dim=-1), torch.stack(last)


def _run_direction(
    input: Tensor, h0: Tensor, weights: Sequence[Any], phi: str, walk: Walk
) -> tuple[Tensor, Tensor]:
    w_ih, w_hh, bias_ih, bias_hh = weights
    apply = PHI[phi].apply

    def step(x_t: Tensor, hidden: Tensor) -> Tensor:
        return apply(F.linear(x_t, w_ih, bias_ih) + F.linear(hidden, w_hh, bias_hh))

    expanded = [w for w in weights if w is not None and is_expanded([[w]])]
    for w in expanded:
        w.set_allow_smaller_batches(walk.batch_sizes is not None)  # later steps have fewer rows
    try:
        return reference.scan(step, input, h0, walk)
    finally:
        for w in expanded:
            w.set_allow_smaller_batches(False)
