r"""`torch.ops.manual_rnn.layer`, which exported programs of version 0.1 hold: they load for one more."""

from typing import Any

import torch
from torch import Tensor

from ..kernels.interface import LayerWeights, NetworkOptions
from . import composed
from .network import network

SCHEMA = (
    "(Tensor x, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor? batch_sizes, "
    "str phi, bool reverse, str kernel) -> (Tensor, Tensor)"
)


def layer(x: Tensor, h0: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """The states of a layer in one direction, and the last of each sequence."""
    weights, (batch_sizes, phi, reverse, kernel) = LayerWeights(*others[:4]), others[4:]
    options = NetworkOptions(batch_sizes, phi, False, weights.bias_ih is not None, kernel)
    if reverse:
        return composed.run_direction(x, h0, weights, True, options)
    output, h_n = network(x, h0.unsqueeze(0), [w for w in weights if w is not None], options)
    return output, h_n.squeeze(0)


if not hasattr(torch.ops.manual_rnn, "layer"):
    torch.library.define("manual_rnn::layer", SCHEMA)
    torch.library.impl("manual_rnn::layer", "CompositeImplicitAutograd", layer)
