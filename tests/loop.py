r"""The judge: an Elman network as a loop over plain tensors, simple and never clever.

    h_t = phi(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh)

No batching trick, no kernel, nothing of the package: PyTorch differentiates and transforms each step. Packed
and nested sequences run one at a time. Below it are the networks and inputs on which the transforms are
judged, all in float64, and networks as functions of one vector.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_sequence

__all__ = ["CASES", "LAYOUTS", "NETWORKS", "Loop", "as_function", "build", "case_id", "outputs", "sample"]

PHI = {"tanh": torch.tanh, "relu": torch.relu}


class Loop(nn.RNN):
    """Parameters and arguments of `nn.RNN`, computed step by step."""

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        if input.is_nested:
            outputs, states = self._one_by_one(list(input.unbind()), hx)
            return outputs, states
        if input.dim() == 2:
            output, h_n = self._padded(input.unsqueeze(1), None if hx is None else hx.unsqueeze(1))
            return output.squeeze(1), h_n.squeeze(1)
        if self.batch_first:
            output, h_n = self._padded(input.transpose(0, 1), hx)
            return output.transpose(0, 1), h_n
        return self._padded(input, hx)

    def _packed(self, input: PackedSequence, hx: Tensor | None) -> tuple[PackedSequence, Tensor]:
        data, sizes, order, inverse = input
        starts, B = sizes.cumsum(0) - sizes, int(sizes[0])
        rows = [[int(s) + k for s, size in zip(starts, sizes, strict=True) if k < size] for k in range(B)]
        hx = hx if hx is None or order is None else hx[:, order]
        outputs, h_n = self._one_by_one([data[own] for own in rows], hx)
        places = torch.tensor([row for own in rows for row in own]).argsort()
        h_n = h_n if inverse is None else h_n[:, inverse]
        return input._replace(data=torch.cat(outputs)[places]), h_n

    def _one_by_one(self, sequences: list[Tensor], hx: Tensor | None) -> tuple[list[Tensor], Tensor]:
        outputs, states = [], []
        for number, sequence in enumerate(sequences):
            own = None if hx is None else hx[:, number : number + 1]
            output, h_n = self._padded(sequence.unsqueeze(1), own)
            outputs.append(output.squeeze(1))
            states.append(h_n)
        return outputs, torch.cat(states, dim=1)

    def _padded(self, input: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor]:
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
                states, h = self._direction(input, hx[len(last)], f"_l{layer}{suffix}")
                directions.append(states)
                last.append(h)
            input = torch.cat(directions, dim=-1)
        return input, torch.stack(last)

    def _direction(self, input: Tensor, h: Tensor, suffix: str) -> tuple[Tensor, Tensor]:
        w_ih, w_hh = getattr(self, f"weight_ih{suffix}"), getattr(self, f"weight_hh{suffix}")
        bias = getattr(self, f"bias_ih{suffix}") + getattr(self, f"bias_hh{suffix}") if self.bias else 0
        states: dict[int, Tensor] = {}
        T = input.size(0)
        for t in reversed(range(T)) if suffix.endswith("_reverse") else range(T):
            h = PHI[self.nonlinearity](input[t] @ w_ih.mT + h @ w_hh.mT + bias)
            states[t] = h
        return torch.stack([states[t] for t in range(T)]) if T else input.new_empty(0, *h.shape), h


NETWORKS: list[dict[str, Any]] = [
    {"num_layers": L, "bidirectional": D == 2, "nonlinearity": phi}
    for L, D, phi in product((1, 2), (1, 2), ("tanh", "relu"))
]
LAYOUTS = ("batched", "unbatched", "packed")
CASES = list(product(NETWORKS, LAYOUTS))
LENGTHS = [2, 3, 1]  # of the packed sequences, not sorted


def case_id(value: Any) -> str:
    """`2-layer bidirectional tanh`, for a network; a layout is its own."""
    if isinstance(value, str):
        return value
    direction = "bidirectional" if value["bidirectional"] else "forward"
    return f"{value['num_layers']}-layer-{direction}-{value['nonlinearity']}"


def build(kind: type[nn.Module], network: dict[str, Any], **more: Any) -> Any:
    """A network of 2 inputs and 3 states in float64; the same seed, so the same weights for every kind."""
    torch.manual_seed(0)
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
