r"""`torch._efficientzerotensor`, which has no memory, and views of it at an offset: as with `nn.RNN`.

Forward mode makes such zeros, and public code meets them as tangents.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from manual_rnn import ManualRNN

Results = list[Tensor | None]
CUTS: dict[str, Callable[[tuple[int, ...]], Tensor]] = {
    "whole": lambda shape: torch._efficientzerotensor(shape),
    "a row": lambda shape: torch._efficientzerotensor((2, *shape))[1],
    "a chunk": lambda shape: torch._efficientzerotensor((2 * shape[0], *shape[1:])).chunk(2)[1],
}
PLACES = ["x", "hx", "c", "c_last", *(f"weight_{at}_l0" for at in ("ih", "hh")), "bias_ih_l0", "bias_hh_l0"]
SHAPES = [(layers, bidirectional) for layers in (1, 2) for bidirectional in (False, True)]


def given_to(rnn: nn.RNN, batch: int) -> dict[str, Tensor]:
    """All that a forward and a backward pass read."""
    ways = rnn.num_layers * (1 + rnn.bidirectional)
    tensors = {"x": torch.randn(5, batch, 3), "hx": torch.randn(ways, batch, 4)}
    tensors |= {
        "c": torch.randn(5, batch, 4 * (1 + rnn.bidirectional)),
        "c_last": torch.randn(ways, batch, 4),
    }
    return tensors | {name: w.detach() for name, w in rnn.named_parameters()}


def results(rnn: nn.Module, given: dict[str, Tensor], packed: bool) -> Results:
    """Of a forward and a backward pass; what has no memory wants no gradient."""
    tensors = {
        name: t if t._is_zerotensor() else t.clone().requires_grad_(name not in ("c", "c_last"))
        for name, t in given.items()
    }
    x, hx, c, c_last = (tensors.pop(name) for name in ("x", "hx", "c", "c_last"))
    input: Any = x
    if packed:
        sizes = pack_padded_sequence(torch.empty(5, 2, 3), torch.tensor([5, 3])).batch_sizes
        input, c = PackedSequence(x.flatten(0, 1)[:8], sizes), c.flatten(0, 1)[:8]
    output, h_n = functional_call(rnn, tensors, (input, hx))
    output = output.data if packed else output
    wanted = [t for t in (x, hx, *tensors.values()) if t.requires_grad]
    return [output, h_n, *torch.autograd.grad((output, h_n), wanted, (c, c_last), allow_unused=True)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("layers", "bidirectional"), SHAPES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("cut", CUTS)
def test_every_place(cut: str, place: str, layers: int, bidirectional: bool, packed: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.RNN(3, 4, layers, bidirectional=bidirectional)
    ours = ManualRNN(3, 4, layers, bidirectional=bidirectional)
    given = given_to(theirs, 2)
    given[place] = CUTS[cut](tuple(given[place].shape))
    for found, right in zip(results(ours, given, packed), results(theirs, given, packed), strict=True):
        torch.testing.assert_close(found, right)
