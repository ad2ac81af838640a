r"""Nested (jagged) batches and empty sequences, against the judge, one sequence at a time."""

from typing import Any

import pytest
import torch
from helpers import assert_same
from loop import NETWORKS, Loop, build, case_id
from torch import Tensor

from manual_rnn import ManualRNN, use_kernel

LENGTHS = {
    "sorted": [3, 2, 1],
    "unsorted": [2, 4, 1],
    "equal": [2, 2, 2],
    "with empty ones": [0, 3, 0, 1],
    "one": [3],
}


def run(kind: type, network: dict, lengths: list[int], with_hx: bool, bias: bool = True) -> dict[str, Tensor]:
    """Outputs of each sequence, `h_n` and every gradient; `nested` from leaves that are plain tensors."""
    rnn = build(kind, network, batch_first=True, bias=bias)
    states = network["num_layers"] * (1 + network["bidirectional"])
    torch.manual_seed(1)
    rows = [torch.randn(length, 2, dtype=torch.float64, requires_grad=True) for length in lengths]
    hx = torch.randn(states, len(lengths), 3, dtype=torch.float64, requires_grad=True) if with_hx else None
    nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    output, h_n = rnn(nested, hx)
    outputs = list(output.unbind()) if isinstance(output, Tensor) else output
    value = sum(((n + 1) * out).sin().sum() for n, out in enumerate(outputs)) + h_n.cos().sum()
    value.backward()
    leaves = {f"input {n}": x for n, x in enumerate(rows)} | dict(rnn.named_parameters())
    if hx is not None:
        leaves["hx"] = hx
    grads = {name: leaf.grad for name, leaf in leaves.items()}
    found = {f"output {n}": out.detach() for n, out in enumerate(outputs)} | {"h_n": h_n.detach()} | grads
    return {name: torch.zeros(0) if x is None else x for name, x in found.items()}


@pytest.mark.parametrize("with_hx", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("network", NETWORKS, ids=case_id)
def test_nested(network, lengths, with_hx):
    found, expected = (run(kind, network, LENGTHS[lengths], with_hx) for kind in (ManualRNN, Loop))
    assert_same(found, expected)


@pytest.mark.parametrize("network", NETWORKS[:1], ids=case_id)
def test_nested_through_the_reference_kernel(network):
    with use_kernel("reference"):
        found = run(ManualRNN, network, LENGTHS["with empty ones"], True)
    assert_same(found, run(Loop, network, LENGTHS["with empty ones"], True))


@pytest.mark.parametrize("network", NETWORKS, ids=case_id)
def test_the_layout_comes_back(network):
    rnn = build(ManualRNN, network, batch_first=True)
    rows = [torch.zeros(n, 2, dtype=torch.float64) for n in (2, 3)]
    nested: Any = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    output, h_n = rnn(nested)
    assert output.is_nested
    assert output.layout is torch.jagged
    assert torch.equal(output.offsets(), nested.offsets())
    assert h_n.shape == (network["num_layers"] * (1 + network["bidirectional"]), 2, 3)
    assert (output + output).is_nested  # the same ragged size as its own, so arithmetic goes on


def test_rows_of_length_zero_keep_their_state():
    rnn = build(ManualRNN, NETWORKS[-2], batch_first=True)
    hx = torch.randn(4, 3, 3, dtype=torch.float64)
    rows = [torch.zeros(n, 2, dtype=torch.float64) for n in (0, 2, 0)]
    h_n = rnn(torch.nested.as_nested_tensor(rows, layout=torch.jagged), hx)[1]
    assert torch.equal(h_n[:, [0, 2]], hx[:, [0, 2]])
    assert not torch.equal(h_n[:, 1], hx[:, 1])


@pytest.mark.parametrize("lengths", [[0, 0], [0]])
def test_nothing_but_empty_sequences(lengths):
    rnn = build(ManualRNN, NETWORKS[-2], batch_first=True)
    hx = torch.randn(4, len(lengths), 3, dtype=torch.float64)
    rows = [torch.zeros(n, 2, dtype=torch.float64) for n in lengths]
    output, h_n = rnn(torch.nested.as_nested_tensor(rows, layout=torch.jagged), hx)
    assert output.is_nested
    assert output.values().shape == (0, 6)
    assert torch.equal(h_n, hx)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (torch.nested.nested_tensor([torch.zeros(2, 2), torch.zeros(3, 2)]), True),
        lambda: (torch.nested.nested_tensor([torch.zeros(2, 2)] * 2, layout=torch.jagged), False),
        lambda: (torch.nested.nested_tensor([torch.zeros(2, 2, 2)] * 2, layout=torch.jagged), True),
    ],
    ids=["strided", "not batch_first", "4D"],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_other_nested_tensors_raise(make):
    nested, batch_first = make()
    with pytest.raises(ValueError, match=r"Expected a nested input to be a jagged \(B, j, I\) tensor"):
        ManualRNN(2, 3, batch_first=batch_first)(nested)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 3, 3), (1, 3)], ids=str)
def test_states_of_other_sequences_raise(shape):
    """Too few, too many, and of one sequence alone."""
    nested = torch.nested.nested_tensor([torch.zeros(2, 2), torch.zeros(3, 2)], layout=torch.jagged)
    with pytest.raises(RuntimeError, match=r"Expected hidden size \(L \* D, 2, H\), got"):
        ManualRNN(2, 3, batch_first=True)(nested, torch.zeros(shape))
