r"""The equations of an Elman network, as they stand in a textbook.

$$h_t = \tanh(x_t W_{ih}^T + b_{ih} + h_{t-1} W_{hh}^T + b_{hh})$$

Source: J. Elman, Finding Structure in Time, Cognitive Science 14 (1990), and the documentation of
`torch.nn.RNN`, whose weights and biases these functions take as they are.

Letters: `T` steps, `B` batch, `I` input size, `H` hidden size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rnn_forward(
    input: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h_prev: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""Run one layer, forward in time.

    Args:
        input: `(B, T, I)`.
        weight_ih: `(H, I)`.
        weight_hh: `(H, H)`.
        bias_ih: `(H,)` or None for no bias.
        bias_hh: `(H,)` or None for no bias.
        h_prev: the state before the first step, `(B, H)`; or `(1, B, H)`, as `h_n` comes back.

    Returns:
        `h_out (B, T, H)`, the state after every step, and `h_n (1, B, H)`, the last of them.

    Raises:
        TypeError: for anything but tensors.
        ValueError: for another shape; nothing broadcasts.

    Example:
        >>> rnn = torch.nn.RNN(3, 4, batch_first=True)
        >>> input = torch.randn(2, 5, 3)  # (B, T, I)
        >>> h_out, h_n = rnn_forward(input, *rnn.parameters(), torch.zeros(2, 4))
        >>> torch.allclose(h_out, rnn(input)[0], atol=1e-6)
        True
    """
    _check(input, weight_ih, weight_hh, bias_ih, bias_hh, h_prev)
    h_prev = h_prev.reshape(h_prev.shape[-2:])
    states = []
    for x_t in input.unbind(dim=1):
        gates = F.linear(x_t, weight_ih, bias_ih) + F.linear(h_prev, weight_hh, bias_hh)
        h_prev = torch.tanh(gates)  # (B, H)
        states.append(h_prev)
    h_out = torch.stack(states, dim=1) if states else h_prev.new_empty(len(input), 0, len(weight_hh))
    return h_out, h_prev.unsqueeze(0)


def bidirectional_rnn_forward(
    input: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h_prev: Tensor,
    weight_ih_reverse: Tensor,
    weight_hh_reverse: Tensor,
    bias_ih_reverse: Tensor | None,
    bias_hh_reverse: Tensor | None,
    h_prev_reverse: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""Run one layer in both directions of time, each with its own weights.

    Arguments as in `rnn_forward`, the second set for the direction that reads backward.

    Returns:
        `h_out (B, T, 2H)`, forward states beside backward states of the same step, and
        `h_n (2, B, H)`, the state in which each direction ended. To go on, give `h_n[0]` as `h_prev` and
        `h_n[1]` as `h_prev_reverse`.

    Raises:
        TypeError, ValueError: as `rnn_forward`.

    Example:
        >>> rnn = torch.nn.RNN(3, 4, batch_first=True, bidirectional=True)
        >>> forward, backward = rnn.all_weights  # of each direction: weight_ih, weight_hh, bias_ih, bias_hh
        >>> input, zeros = torch.randn(2, 5, 3), torch.zeros(2, 4)
        >>> h_out, h_n = bidirectional_rnn_forward(input, *forward, zeros, *backward, zeros)
        >>> torch.allclose(h_out, rnn(input)[0], atol=1e-6), torch.allclose(h_n, rnn(input)[1], atol=1e-6)
        (True, True)
    """
    forward, h_n = rnn_forward(input, weight_ih, weight_hh, bias_ih, bias_hh, h_prev)
    backward, h_n_reverse = rnn_forward(
        input.flip(1),
        weight_ih_reverse,
        weight_hh_reverse,
        bias_ih_reverse,
        bias_hh_reverse,
        h_prev_reverse,
    )
    return torch.cat([forward, backward.flip(1)], dim=2), torch.cat([h_n, h_n_reverse])


def _check(
    input: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Any, bias_hh: Any, h_prev: Tensor
) -> None:
    """Tensors of the shapes that the functions above name."""
    given = {"input": input, "weight_ih": weight_ih, "weight_hh": weight_hh}
    given |= {"bias_ih": bias_ih, "bias_hh": bias_hh, "h_prev": h_prev}
    for name, x in given.items():
        if not (isinstance(x, Tensor) or (x is None and name.startswith("bias"))):
            raise TypeError(f"{name}: expected a Tensor, got {type(x).__name__}")
    if input.dim() != 3 or not weight_hh.dim():
        raise ValueError(f"input: expected shape (B, T, I), got {tuple(input.shape)}")
    B, _, I = input.shape  # noqa: E741
    H = len(weight_hh)
    shapes = {"weight_ih": (H, I), "weight_hh": (H, H), "bias_ih": (H,), "bias_hh": (H,), "h_prev": (B, H)}
    for name, shape in shapes.items():
        x = given[name]
        if x is not None and x.shape != shape and (name != "h_prev" or x.shape != (1, B, H)):
            expected = f"{shape} or {(1, *shape)}" if name == "h_prev" else shape
            raise ValueError(f"{name}: expected shape {expected}, got {tuple(x.shape)}")
