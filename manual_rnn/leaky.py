r"""`LeakyRNN`, the network of leaky units of computational neuroscience."""

from typing import Any

import torch
from torch import Tensor

from . import validation
from .module import ManualRNN
from .own_names import builtin


class LeakyRNN(ManualRNN):
    r"""An Elman network whose states leak: $\tau \dot h = -h + \phi(W_{ih} x + W_{hh} h + b)$ in Euler steps.

    $$h_t = (1 - \alpha) h_{t-1} + \alpha \phi(x_t W_{ih}^T + b_{ih} + h_{t-1} W_{hh}^T + b_{hh}), \qquad
    \alpha = dt / \tau$$

    Parameters, inputs, outputs and transforms are those of `ManualRNN`, whose speed it has: the leak is part
    of the engine. Checkpoints of `torch.nn.RNN` load, and it loads those of a `LeakyRNN` with a number.

    Args:
        alpha: a number between 0 and 1, or a tensor `(H,)`, one for each unit, which becomes part of the
            `state_dict`. All layers and directions share it. It is the buffer `alpha (H,)`, and isn't
            trained; with an `nn.Parameter` in its place Python takes the steps, and it is.
        input_size, hidden_size, ...: as those of `ManualRNN`.

    Raises:
        TypeError, ValueError: for another `alpha`, and as `ManualRNN`.

    Example:
        >>> rnn = LeakyRNN(3, 4, alpha=0.2, nonlinearity="softplus")  # dt = 20 ms, tau = 100 ms
        >>> output, h_n = rnn(torch.randn(5, 2, 3))
        >>> output.shape
        torch.Size([5, 2, 4])
        >>> rnn.load_state_dict(torch.nn.RNN(3, 4).state_dict())
        <All keys matched successfully>
    """

    alpha: Tensor
    _manual_rnn_leaky = True

    def __init__(self, *args: Any, alpha: float | Tensor, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        validation.check_alpha(alpha, self.hidden_size)
        given, weight = isinstance(alpha, Tensor), self._flat_weights[0]
        row = alpha.detach() if isinstance(alpha, Tensor) else alpha
        self.register_buffer("alpha", weight.new_empty(self.hidden_size).copy_(row), persistent=given)

    @builtin
    def step(self, gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Tensor:
        """$(1 - \\alpha) h + \\alpha \\phi(...)$ with the $\\phi(...)$ of `ManualRNN.step`."""
        return torch.lerp(hidden, super().step(gates, hidden, weight_hh), self.alpha.to(hidden))

    def extra_repr(self) -> str:
        """As of `ManualRNN`, with `alpha` where all units share it."""
        alpha = self.alpha.detach()
        same = not alpha.is_meta and bool((alpha == alpha[0]).all())
        return f"{super().extra_repr()}, alpha={f'{alpha[0]:.4g}' if same else tuple(alpha.shape)}"


torch.serialization.add_safe_globals([LeakyRNN])
