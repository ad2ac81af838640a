r"""Five classic recurrences of one's own, in every layout, and their judge: the equations by hand."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from loop import Loop, Place
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

import manual_rnn
from manual_rnn import ManualRNN

__all__ = [
    "BY_HAND",
    "LAYOUTS",
    "ByHand",
    "EngineLeakyRNN",
    "LayerNormRNN",
    "LeakyRNN",
    "NoisyRNN",
    "VariationalRNN",
    "ZoneoutRNN",
]


class LeakyRNN(ManualRNN):
    r"""$\tau \dot h = -h + \tanh(W x + U h + b)$ in Euler steps, `alpha` = step / $\tau$."""

    alpha = 0.2

    def step(self, gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Tensor:
        return torch.lerp(hidden, super().step(gates, hidden, weight_hh), self.alpha)


class ZoneoutRNN(ManualRNN):
    """Krueger et al. 2016: in training a unit keeps its last value with probability `rate`."""

    rate = 0.15

    def step(self, gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Tensor:
        new = super().step(gates, hidden, weight_hh)
        if self.training:
            return torch.where(torch.rand_like(new) < self.rate, hidden, new)
        return torch.lerp(new, hidden, self.rate)


class VariationalRNN(ManualRNN):
    """Gal and Ghahramani 2016: for each sequence one dropout mask of the state, the same at every step."""

    rate = 0.25

    def begin(self, h0: Tensor) -> Callable[..., Tensor]:
        mask = F.dropout(torch.ones_like(h0), self.rate, self.training)
        return lambda gates, hidden, weight_hh: self.step(gates, hidden * mask[: len(hidden)], weight_hh)


class LayerNormRNN(ManualRNN):
    """Ba, Kiros and Hinton 2016, without gain and bias, so that checkpoints fit."""

    def step(self, gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Tensor:
        summed = gates + F.linear(hidden, weight_hh)
        return torch.tanh(F.layer_norm(summed, summed.shape[-1:]))


class NoisyRNN(ManualRNN):
    """Lim et al. 2021: noise enters every state in training."""

    sigma = 0.1

    def step(self, gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Tensor:
        noise = self.sigma * torch.randn_like(gates) if self.training else 0.0
        return super().step(gates + noise, hidden, weight_hh)


def normalised(a: Tensor) -> Tensor:
    centred = a - a.mean(-1, keepdim=True)
    return centred / ((centred**2).mean(-1, keepdim=True) + 1e-5).sqrt()


class EngineLeakyRNN(manual_rnn.LeakyRNN):
    """`LeakyRNN`, whose leak the engine knows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, alpha=0.2, **kwargs)


BY_HAND: dict[type[ManualRNN], Callable[..., Tensor]] = {  # gates, state, U = W_hh^T and what chance drew
    LeakyRNN: lambda g, h, u, _: 0.8 * h + 0.2 * torch.tanh(g + h @ u),
    EngineLeakyRNN: lambda g, h, u, _: 0.8 * h + 0.2 * torch.tanh(g + h @ u),
    ZoneoutRNN: lambda g, h, u, drawn: torch.where(drawn < 0.15, h, torch.tanh(g + h @ u)),
    VariationalRNN: lambda g, h, u, drawn: torch.tanh(g + (h * drawn) @ u),
    LayerNormRNN: lambda g, h, u, _: torch.tanh(normalised(g + h @ u)),
    NoisyRNN: lambda g, h, u, drawn: torch.tanh(g + h @ u + 0.1 * drawn),
}


class ByHand(Loop):
    """The judge of the example `kind` on the parameters of `rnn`, with what chance drew in the run judged:
    one tensor for every step of every layer and direction, or one for each layer and direction."""

    def __init__(self, kind: type[ManualRNN], rnn: ManualRNN | nn.RNN, drawn: list[Tensor]) -> None:
        options = {name: getattr(rnn, name) for name in ("batch_first", "bidirectional")}
        super().__init__(rnn.input_size, rnn.hidden_size, rnn.num_layers, **options)
        for name, parameter in rnn.named_parameters():
            setattr(self, name, parameter)
        self.equation, self.drawn = BY_HAND[kind], list(drawn)

    def step(self, gates: Tensor, h: Tensor, w_hh: Tensor, place: Place) -> Tensor:
        chance = None
        if self.drawn:
            T = len(self.drawn) // (self.num_layers * (1 + self.bidirectional))
            taken = T - 1 - place.t if place.reverse else place.t  # steps of the longest, before this one
            chance = self.drawn[place.number * T + taken % T][place.rows]
        return self.equation(gates, h, w_hh.mT, chance)


Layout = tuple[list[int], Callable[[list[Tensor]], Any], Callable[[Any], Any]]

# Lengths; how sequences are brought together, and how the outputs are taken apart.
LAYOUTS: dict[str, Layout] = {
    "padded": ([4, 4, 4], lambda xs: torch.stack(xs, 1), lambda output: output.unbind(1)),
    "batch_first": ([4, 4, 4], torch.stack, lambda output: output.unbind(0)),
    "unbatched": ([4], lambda xs: xs[0], lambda output: [output]),
    "sorted": ([5, 3, 1], pack_sequence, unpack_sequence),
    "unsorted": ([2, 5, 3], lambda xs: pack_sequence(xs, enforce_sorted=False), unpack_sequence),
    "nested": (
        [2, 5, 3],
        lambda xs: torch.nested.as_nested_tensor(xs, layout=torch.jagged),
        lambda output: output.unbind() if isinstance(output, Tensor) else output,  # the judge gives a list
    ),
}
