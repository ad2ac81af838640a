r"""The judges: one for modules and one for recurrences, simple and never clever.

    module        h_t = phi(x_t W_ih^T + b_ih + b_hh + h_{t-1} W_hh^T)
    with a leak   h_t = (1 - alpha) h_{t-1} + alpha phi(...)
    elman         h_t = phi(z_t + h_{t-1} w^T)              h before the first step = h0
    linear        y_t = phi'(h_t) * (v_t + y_{t-1} a)       y before the first step = 0

Loops over plain tensors: no batching trick, no kernel, nothing of the package; PyTorch differentiates and
transforms each step. Packed and nested sequences run through a module one at a time; in a recurrence a
sequence that isn't alive at a step keeps its state. Below them are the networks and inputs on which the
transforms are judged, all in float64, and networks as functions of one vector.
"""

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pairwise import pairwise
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from manual_rnn import LeakyRNN, ManualRNN

__all__ = [
    "CASES",
    "LAYOUTS",
    "NETWORKS",
    "OTHERS",
    "PHI",
    "Loop",
    "Place",
    "as_function",
    "build",
    "case_id",
    "met_in_pairs",
    "outputs",
    "recurrence",
    "sample",
]

PHI: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "identity": lambda a: a,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "hardtanh": F.hardtanh,
    "leaky_relu": F.leaky_relu,
}
SLOPE: dict[str, Callable[[Tensor], Tensor]] = {  # through the state; ReLU has none at zero, and one at NaN
    "tanh": lambda h: 1 - h * h,
    "relu": lambda h: (h <= 0).logical_not().to(h.dtype),
    "identity": torch.ones_like,
    "sigmoid": lambda h: h - h * h,
    "softplus": lambda h: 1 - (-h).exp(),
    "hardtanh": lambda h: (h.abs() < 1).to(h.dtype),
    "leaky_relu": lambda h: torch.where(h > 0, torch.ones_like(h), torch.full_like(h, 0.01)),
}


class Place(NamedTuple):
    """Where a step stands: number of its layer and direction, time, and which sequences, longest first."""

    number: int
    reverse: bool
    t: int
    rows: slice


class Loop(nn.RNN):
    """Parameters and arguments of `nn.RNN`, computed step by step; each weight is read once, by its name. It
    has more nonlinearities."""

    def __init__(self, *args: Any, nonlinearity: str = "tanh", alpha: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.nonlinearity, self.leak = nonlinearity, alpha

    def step(self, gates: Tensor, h: Tensor, w_hh: Tensor, place: Place) -> Tensor:
        """The state after one step; the judge of another recurrence overrides it."""
        new = PHI[self.nonlinearity](gates + h @ w_hh.mT)
        return new if self.leak is None else (1 - self.leak) * h + self.leak * new

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        if input.is_nested:
            return self._one_by_one(list(input.unbind()), hx)
        if input.dim() == 2:
            output, h_n = self._padded(input.unsqueeze(1), None if hx is None else hx.unsqueeze(1))
            return output.squeeze(1), h_n.squeeze(1)
        if self.batch_first:
            output, h_n = self._padded(input.transpose(0, 1), hx)
            return output.transpose(0, 1), h_n
        return self._padded(input, hx)

    def _packed(self, input: PackedSequence, hx: Tensor | None) -> tuple[PackedSequence, Tensor]:
        data, sizes, order, inverse = input
        rows = rows_of_each(sizes)
        hx = hx if hx is None or order is None else hx[:, order]
        outputs, h_n = self._one_by_one([data[own] for own in rows], hx)
        h_n = h_n if inverse is None else h_n[:, inverse]
        return input._replace(data=packed_again(outputs, rows)), h_n

    def _one_by_one(self, sequences: list[Tensor], hx: Tensor | None) -> tuple[list[Tensor], Tensor]:
        longest_first = sorted(range(len(sequences)), key=lambda number: -len(sequences[number]))
        outputs, states = [], []
        for number, sequence in enumerate(sequences):
            own = None if hx is None else hx[:, number : number + 1]
            rank = longest_first.index(number)
            output, h_n = self._padded(sequence.unsqueeze(1), own, slice(rank, rank + 1))
            outputs.append(output.squeeze(1))
            states.append(h_n)
        return outputs, torch.cat(states, dim=1)

    def _padded(self, input: Tensor, hx: Tensor | None, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        if hx is None:
            number = self.num_layers * len(suffixes)
            hx = torch.zeros(number, input.size(1), self.hidden_size, dtype=input.dtype)
        last: list[Tensor] = []
        for layer in range(self.num_layers):
            if layer and self.training and self.dropout:
                input = torch.dropout(input, self.dropout, True)
            directions = []
            for suffix in suffixes:
                place = Place(len(last), bool(suffix), 0, rows)
                states, h = self._direction(input, hx[len(last)], f"_l{layer}{suffix}", place)
                directions.append(states)
                last.append(h)
            input = torch.cat(directions, dim=-1)
        return input, torch.stack(last)

    def _direction(self, input: Tensor, h: Tensor, suffix: str, place: Place) -> tuple[Tensor, Tensor]:
        w_ih, w_hh = getattr(self, f"weight_ih{suffix}"), getattr(self, f"weight_hh{suffix}")
        bias = getattr(self, f"bias_ih{suffix}") + getattr(self, f"bias_hh{suffix}") if self.bias else 0
        states: dict[int, Tensor] = {}
        T = input.size(0)
        for t in reversed(range(T)) if place.reverse else range(T):
            h = self.step(input[t] @ w_ih.mT + bias, h, w_hh, place._replace(t=t))
            states[t] = h
        return torch.stack([states[t] for t in range(T)]) if T else input.new_empty(0, *h.shape), h


def recurrence(
    name: str, x: Tensor, y: Tensor, w: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool
) -> Tensor:
    """ "elman" of `(z, h0, w)` or "linear_recurrence" of `(v, h, a)`; a leading `G` on all or none."""
    if w.dim() == 3:
        members = zip(x, y, w, strict=True)
        return torch.stack([recurrence(name, *member, batch_sizes, phi, reverse) for member in members])
    steps = (lambda rows: [*rows]) if batch_sizes is None else (lambda rows: rows.split(batch_sizes.tolist()))
    zs, hs = steps(x), [] if name == "elman" else steps(y)
    if not len(zs):
        return torch.empty_like(x)
    state = y if name == "elman" else torch.zeros_like(zs[0])
    states: dict[int, Tensor] = {}
    for t in reversed(range(len(zs))) if reverse else range(len(zs)):
        alive = len(zs[t])
        if name == "elman":
            states[t] = PHI[phi](zs[t] + state[:alive] @ w.mT)
        else:
            states[t] = SLOPE[phi](hs[t]) * (zs[t] + state[:alive] @ w)
        state = torch.cat([states[t], state[alive:]])
    join = torch.stack if batch_sizes is None else torch.cat
    return join([states[t] for t in range(len(zs))])


def rows_of_each(batch_sizes: Tensor) -> list[list[int]]:
    """For each sequence of a packed batch, longest first, the numbers of its rows."""
    starts, B = (batch_sizes.cumsum(0) - batch_sizes).tolist(), int(batch_sizes[0])
    sizes = batch_sizes.tolist()
    return [[start + b for start, size in zip(starts, sizes, strict=True) if b < size] for b in range(B)]


def packed_again(sequences: list[Tensor], rows: list[list[int]]) -> Tensor:
    """The rows of all sequences in packed order."""
    places = torch.tensor([row for own in rows for row in own]).argsort()
    return torch.cat(sequences)[places]


NETWORKS: list[dict[str, Any]] = [
    {"num_layers": L, "bidirectional": D == 2, "nonlinearity": phi}
    for L, D, phi in product((1, 2), (1, 2), ("tanh", "relu"))
]
OTHERS: list[dict[str, Any]] = [  # which nn.RNN hasn't
    {"num_layers": 2, "bidirectional": True, "nonlinearity": phi}
    for phi in PHI
    if phi not in ("tanh", "relu")
]
OTHERS += [
    {"num_layers": 1, "bidirectional": False, "nonlinearity": "tanh", "alpha": 0.3},
    {"num_layers": 2, "bidirectional": True, "nonlinearity": "softplus", "alpha": 0.7},
]
LAYOUTS = ("batched", "unbatched", "packed")
CASES = list(product(NETWORKS + OTHERS, LAYOUTS))
LENGTHS = [2, 3, 1]  # of the packed sequences, not sorted


def case_id(value: Any) -> str:
    """`2-layer bidirectional tanh`, for a network; a layout is its own."""
    if isinstance(value, str):
        return value
    direction = "bidirectional" if value["bidirectional"] else "forward"
    leak = "-leaky" if "alpha" in value else ""
    return f"{value['num_layers']}-layer-{direction}{leak}-{value['nonlinearity']}"


def met_in_pairs(a: Iterable[Any], b: Iterable[Any]) -> list[tuple[Any, Any, dict[str, Any]]]:
    """Every choice of `a` with every one of `b`, and each of these with either half of the networks: forward
    or bidirectional, one layer or two, tanh or relu."""
    rows = pairwise(list(product(a, b)), (1, 2), (False, True), ("tanh", "relu"))
    names = "num_layers", "bidirectional", "nonlinearity"
    return [(*both, dict(zip(names, network, strict=True))) for both, *network in rows]


def build(kind: type[nn.Module], network: dict[str, Any], **more: Any) -> Any:
    """A network of 2 inputs and 3 states in float64; the same seed, so the same weights for every kind. One
    of ours with a leak is a `LeakyRNN`."""
    torch.manual_seed(0)
    kind = LeakyRNN if kind is ManualRNN and "alpha" in network else kind
    return kind(2, 3, **{"dtype": torch.float64, **network, **more})


def sample(network: dict[str, Any], layout: str, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Input and `hx`; the input of a packed layout is its `(N, I)` data, in packed order."""
    generator = torch.Generator().manual_seed(seed)
    states = network["num_layers"] * (1 + network["bidirectional"])
    shape, batch = {"batched": ((3, 2, 2), (2,)), "unbatched": ((3, 2), ()), "packed": ((6, 2), (3,))}[layout]
    draw = lambda *size: torch.randn(*size, dtype=torch.float64, generator=generator)  # noqa: E731
    return draw(*shape), draw(states, *batch, 3)


def wrap(input: Tensor, layout: str) -> Any:
    """The input as the module takes it."""
    if layout != "packed":
        return input
    pattern = pack_sequence([torch.zeros(length) for length in LENGTHS], enforce_sorted=False)
    return pattern._replace(data=input)


def outputs(rnn: nn.Module, weights: dict[str, Tensor], input: Tensor, hx: Tensor, layout: str) -> Tensor:
    """Output and `h_n`, one after the other, of a call with these weights."""
    output, h_n = functional_call(rnn, weights, (wrap(input, layout), hx))
    output = output.data if isinstance(output, PackedSequence) else output
    return torch.cat([output.flatten(), h_n.flatten()])


def as_function(rnn: nn.Module, network: dict[str, Any], layout: str) -> tuple[Callable, Tensor]:
    """All outputs as a function of one vector, and the vector: every weight, the input and `hx`."""
    input, hx = sample(network, layout)
    leaves = {name: p.detach() for name, p in rnn.named_parameters()} | {"input": input, "hx": hx}
    sizes = [leaf.numel() for leaf in leaves.values()]

    def function(vector: Tensor) -> Tensor:
        pieces = zip(leaves.items(), vector.split(sizes), strict=True)
        arguments = {name: piece.view(leaf.shape) for (name, leaf), piece in pieces}
        input, hx = arguments.pop("input"), arguments.pop("hx")
        return outputs(rnn, arguments, input, hx, layout)

    return function, torch.cat([leaf.flatten() for leaf in leaves.values()])
