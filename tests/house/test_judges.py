r"""The judges themselves: right where `nn.RNN` and autograd can say so, and apart from what is wrong."""

from itertools import product
from typing import Any

import pytest
import torch
from examples import BY_HAND, ByHand, EngineLeakyRNN, LeakyRNN
from helpers import assert_same, gradients, packed
from loop import LAYOUTS, LENGTHS, NETWORKS, Loop, build, case_id, recurrence, sample
from pairwise import pairs, pairwise
from torch import Tensor, nn

SIZES = torch.tensor([3, 2, 2, 1])
PACKED = pytest.mark.parametrize("batch_sizes", [None, SIZES], ids=["padded", "packed"])
WAYS = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
PHI = pytest.mark.parametrize("phi", ["tanh", "relu"])


def test_every_two_choices_meet() -> None:
    """And no row stands for nothing, on axes of which the longest come first, last and between."""
    for axes in ([2, 3, 4], [4, 2, 3], [1, 5, 2, 5], [9, 2, 2, 2]):
        rows = pairwise(*map(range, axes))
        every = set().union(*(pairs(row) for row in product(*map(range, axes))))
        assert set().union(*map(pairs, rows)) == every
        longest, second, *_ = sorted([*axes, 1], reverse=True)
        assert len(rows) <= 1.5 * longest * second
        assert len(set(rows)) == len(rows)


@pytest.mark.parametrize(("network", "layout"), list(product(NETWORKS, LAYOUTS)), ids=case_id)
def test_the_judge_of_modules_is_nn_rnn(network: dict[str, Any], layout: str) -> None:
    input, hx = sample(network, layout)
    if layout == "packed":
        input = torch.randn(max(LENGTHS), len(LENGTHS), 2, dtype=torch.float64)
    pack = (lambda x: packed(x, LENGTHS)) if layout == "packed" else (lambda x: x)
    for start in (None, hx.requires_grad_()):
        found, expected = (
            gradients(build(kind, network), input.requires_grad_(), start, pack) for kind in (Loop, nn.RNN)
        )
        assert_same(found, expected)


@pytest.mark.parametrize("network", NETWORKS, ids=case_id)
def test_the_judge_of_modules_takes_nested_sequences_one_by_one(network: dict[str, Any]) -> None:
    loop, builtin = (build(kind, network, batch_first=True) for kind in (Loop, nn.RNN))
    rows = [torch.randn(length, 2, dtype=torch.float64) for length in (2, 4, 1)]
    hx = torch.randn(len(loop.all_weights), 3, 3, dtype=torch.float64)
    outputs, h_n = loop(torch.nested.as_nested_tensor(rows, layout=torch.jagged), hx)
    for b, row in enumerate(rows):
        output, last = builtin(row, hx[:, b])
        assert_same({"output": outputs[b], "h_n": h_n[:, b]}, {"output": output, "h_n": last})


def test_the_judge_of_modules_notices() -> None:
    network = NETWORKS[-2]
    input, hx = sample(network, "batched")
    right = gradients(build(Loop, network), input, hx)
    for wrong in (build(Loop, network | {"nonlinearity": "relu"}), build(Loop, network)):
        with torch.no_grad():
            wrong.weight_hh_l0_reverse.copy_(wrong.weight_hh_l0_reverse.T.clone())
        with pytest.raises(AssertionError, match="output: off"):
            assert_same(gradients(wrong, input, hx), right)
    with pytest.raises(AssertionError, match="output: off"):
        assert_same(gradients(build(Loop, network), input, torch.zeros_like(hx)), right)


def draw(batch_sizes: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    rows = (4, 3, 5) if batch_sizes is None else (8, 5)
    x, y, w = (torch.randn(shape, dtype=torch.float64) for shape in (rows, (3, 5), (5, 5)))
    return x.requires_grad_(), y.requires_grad_(), w.requires_grad_()


@PACKED
@WAYS
@PHI
def test_the_judge_of_recurrences_is_nn_rnn(phi: str, reverse: bool, batch_sizes: Tensor | None) -> None:
    """With the identity for an input weight; backward in time it is the second direction."""
    z, h0, w = draw(batch_sizes)
    rnn: Any = nn.RNN(5, 5, nonlinearity=phi, bias=False, bidirectional=True, dtype=torch.float64)
    for weights in rnn.all_weights:
        nn.init.eye_(weights[0])
        weights[1].data = w.detach()
    input = z if batch_sizes is None else nn.utils.rnn.PackedSequence(z, batch_sizes)
    output = rnn(input, torch.stack([h0, h0]))[0]
    both = output if batch_sizes is None else output.data
    expected = both[..., 5:] if reverse else both[..., :5]
    found = recurrence("elman", z, h0, w, batch_sizes, phi, reverse)
    assert_same({"elman": found}, {"elman": expected})


@PACKED
@WAYS
@PHI
def test_the_linear_judge_is_the_derivative_of_the_other(
    phi: str, reverse: bool, batch_sizes: Tensor | None
) -> None:
    z, h0, w = draw(batch_sizes)
    h = recurrence("elman", z, h0, w, batch_sizes, phi, reverse)
    c = torch.randn_like(h)
    found = recurrence("linear", c, h, w, batch_sizes, phi, not reverse)
    assert_same({"dz": found}, {"dz": torch.autograd.grad(h, z, c)[0]})


@PACKED
def test_the_judge_of_recurrences_notices(batch_sizes: Tensor | None) -> None:
    """A transposed w, a wrong direction, a dropped h0, another phi."""
    z, h0, w = draw(batch_sizes)
    right = recurrence("elman", z, h0, w, batch_sizes, "tanh", False)
    wrong = [
        recurrence("elman", z, h0, w.T, batch_sizes, "tanh", False),
        recurrence("elman", z, h0, w, batch_sizes, "tanh", True),
        recurrence("elman", z, 0 * h0, w, batch_sizes, "tanh", False),
        recurrence("elman", z, h0, w, batch_sizes, "relu", False),
    ]
    assert all((h - right).abs().max() > 1e-2 for h in wrong)


def test_members_of_an_ensemble_run_one_by_one() -> None:
    x, y, w = (torch.randn(2, *shape).double() for shape in ((4, 3, 5), (3, 5), (5, 5)))
    found = recurrence("elman", x, y, w, None, "tanh", False)
    alone = [recurrence("elman", x[g], y[g], w[g], None, "tanh", False) for g in range(2)]
    assert torch.equal(found, torch.stack(alone))


def test_the_judge_of_an_example_notices() -> None:
    """The equation of another example, and a leaky one with another leak."""
    rnn, x = LeakyRNN(2, 3, bidirectional=True, dtype=torch.float64), torch.randn(4, 2, 2).double()
    expected = {"output": ByHand(LeakyRNN, rnn, [])(x)[0]}
    assert_same({"output": rnn(x)[0]}, expected)
    rnn.alpha = 0.21
    with pytest.raises(AssertionError, match="output: off"):
        assert_same({"output": rnn(x)[0]}, expected)
    for kind in set(BY_HAND) - {LeakyRNN, EngineLeakyRNN}:  # which have one equation
        draws = [torch.full((2, 3), 0.1, dtype=torch.float64)] * 8
        with pytest.raises(AssertionError, match="output: off"):
            assert_same({"output": ByHand(kind, rnn, draws)(x)[0]}, expected)
