r"""The network of which there are twins, and the weights it starts from.

h_t = phi(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh)        nn.RNN or ManualRNN, ``network.rnn``
y_t = h_t W^T + b                                           ``network.readout``
"""

from pathlib import Path
from typing import Literal

from torch import Tensor, nn

import manual_rnn

from .checkpoints import load_rnn

Recurrent = Literal["identity", "orthogonal", "uniform"]


class Network(nn.Module):
    r"""A recurrent network and a linear readout of every step.

    Shapes: input (B, T, I), ``hx`` (L D, B, H) or None for zeros; output (B, T, O), ``h_n`` (L D, B, H), with
    L layers in D directions.
    """

    def __init__(self, rnn: nn.Module, readout: nn.Linear) -> None:
        super().__init__()
        self.rnn, self.readout = rnn, readout

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, h_n = self.rnn(input, hx)
        return self.readout(output), h_n


def set_weights(rnn: nn.RNN, recurrent: Recurrent, init_from: Path | None) -> None:
    """Gives ``rnn`` the weights of a file, or recurrent ones to begin with; ``uniform`` are its own.

    Raises:
        ValueError: where the file has not one RNN of these shapes.
        FileNotFoundError: where there is no such file.
    """
    if recurrent != "uniform":
        same_weights = manual_rnn.ManualRNN.from_builtin(rnn)
        same_weights.reset_parameters(recurrent=recurrent)
    if init_from is not None:
        load_rnn(rnn, init_from)


def trained_gradients(network: nn.Module) -> dict[str, Tensor]:
    """The gradients that the last backward left, by the parameter's name."""
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
