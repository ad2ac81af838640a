r"""The equation as a loop over time, any step, any dtype, any device; autograd does the rest.

    h_t = step(g_t, h_{t-1})            g_t the gates, that is the projected input of step t

With `step = builtin_step(...)` it adds in the order in which `torch.nn.RNN` adds, and so equals it
to the last bit on a CPU, in its outputs and in every gradient.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .torch_loop import carry, in_time, steps

__all__ = ["Step", "builtin_step", "scan"]

Step = Callable[[Tensor, Tensor], Tensor]


def scan(step: Step, gates: Tensor, h0: Tensor, reverse: bool, batch_sizes: Tensor | None) -> Tensor:
    r"""`gates (T, B, H)` or packed `(N, H)`, `h0 (B, H)`; returns the states, shaped as `gates`."""
    hidden, states = h0, []
    for gates_t in in_time(steps(gates, 0, batch_sizes), reverse):
        hidden = step(gates_t, carry(hidden, h0, gates_t.size(-2)))
        states.append(hidden)
    join = torch.stack if batch_sizes is None else torch.cat
    return join(list(in_time(states, reverse)))


def builtin_step(phi: Callable[[Tensor], Tensor], weight_hh: Tensor, bias_hh: Tensor | None) -> Step:
    r"""$h_t = \phi(g_t + (h_{t-1} W_{hh}^T + b_{hh}))$, where $g_t = x_t W_{ih}^T + b_{ih}$."""
    return lambda gates, hidden: phi(gates + F.linear(hidden, weight_hh, bias_hh))
