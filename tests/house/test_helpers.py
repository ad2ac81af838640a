r"""The comparing helpers fail when they should, and name what is off."""

from collections.abc import Callable

import pytest
import torch
from helpers import ULPS, assert_as_accurate, assert_same, error, gradients, kernels_for, packed, twins
from internals import kernels
from torch import Tensor, nn

Run = dict[str, Tensor]


@pytest.fixture
def run() -> Run:
    """A bidirectional two-layer run in float64."""
    torch.manual_seed(3)
    rnn = nn.RNN(4, 6, num_layers=2, bidirectional=True, dtype=torch.float64)
    input = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=True)
    return gradients(rnn, input, hx)


def scaled_gradient(run: Run) -> Run:
    return {**run, "bias_hh_l1": run["bias_hh_l1"] * 1.001}


def dropped_dh0(run: Run) -> Run:
    return {**run, "hx": torch.zeros_like(run["hx"])}


def dropped_dh0_of_one_layer(run: Run) -> Run:
    hx = run["hx"].clone()
    hx[2] = 0
    return {**run, "hx": hx}


def transposed_w_hh(run: Run) -> Run:
    return {**run, "weight_hh_l0": run["weight_hh_l0"].T}


def swapped_directions(run: Run) -> Run:
    return {**run, "output": run["output"].roll(6, dims=-1)}


def swapped_weights(run: Run) -> Run:
    pair = ("weight_ih_l1", "weight_ih_l1_reverse")
    return {**run, pair[0]: run[pair[1]], pair[1]: run[pair[0]]}


def swapped_layers_of_h_n(run: Run) -> Run:
    return {**run, "h_n": run["h_n"][[2, 3, 0, 1]]}


def shifted_in_time(run: Run) -> Run:
    return {**run, "input": run["input"].roll(1, dims=0)}


def nan_somewhere(run: Run) -> Run:
    spoiled = run["weight_ih_l0"].clone()
    spoiled[1, 2] = float("nan")
    return {**run, "weight_ih_l0": spoiled}


SPOILED: list[tuple[Callable[[Run], Run], str]] = [
    (scaled_gradient, "bias_hh_l1: off"),
    (dropped_dh0, "hx: off"),
    (dropped_dh0_of_one_layer, "hx: off"),
    (transposed_w_hh, "weight_hh_l0: off"),
    (swapped_directions, "output: off"),
    (swapped_weights, "weight_ih_l1: off"),
    (swapped_layers_of_h_n, "h_n: off"),
    (shifted_in_time, "input: off"),
    (nan_somewhere, "weight_ih_l0: off"),
]


@pytest.mark.parametrize(("spoil", "named"), SPOILED)
def test_assert_same_names_what_is_off(run: Run, spoil: Callable[[Run], Run], named: str) -> None:
    assert_same(run, run)
    with pytest.raises(AssertionError, match=f"^{named}"):
        assert_same(spoil(run), run)


@pytest.mark.parametrize(("spoil", "named"), SPOILED)
def test_bitwise_comparison_names_what_is_off(run: Run, spoil: Callable[[Run], Run], named: str) -> None:
    assert_same(run, run, bound=0)
    with pytest.raises(AssertionError, match=f"^{named.removesuffix(': off')} is not bitwise equal"):
        assert_same(spoil(run), run, bound=0)


def test_bitwise_comparison_sees_the_last_bit(run: Run) -> None:
    bias = run["bias_ih_l0"]
    nudged = {**run, "bias_ih_l0": torch.nextafter(bias, torch.full_like(bias, torch.inf))}
    with pytest.raises(AssertionError, match=r"^bias_ih_l0 is not"):
        assert_same(nudged, run, bound=0)
    assert_same(nudged, run)


@pytest.mark.parametrize(("spoil", "named"), SPOILED)
def test_assert_as_accurate_names_what_is_off(run: Run, spoil: Callable[[Run], Run], named: str) -> None:
    builtin = {name: value.float() for name, value in run.items()}
    found = {name: value.float() for name, value in spoil(run).items()}
    assert_as_accurate(builtin, builtin, run)
    with pytest.raises(AssertionError, match=f"^{named}"):
        assert_as_accurate(found, builtin, run)


@pytest.mark.parametrize("units", [1, -1])
def test_the_bound_in_units_in_the_last_place(units: int) -> None:
    """Just inside is taken, just outside isn't, where nn.RNN is exact."""
    exact = {"output": torch.ones(3, dtype=torch.float64)}
    builtin = {"output": torch.ones(3)}
    step = units * torch.finfo(torch.float32).eps
    inside, outside = (ULPS[torch.float32] - 1) * step, (ULPS[torch.float32] + 1) * step
    assert_as_accurate({"output": builtin["output"] + inside}, builtin, exact)
    with pytest.raises(AssertionError, match=r"^output: off by"):
        assert_as_accurate({"output": builtin["output"] + outside}, builtin, exact)


def test_the_bound_in_multiples_of_the_error_of_builtin() -> None:
    exact = {"output": torch.ones(3, dtype=torch.float64)}
    builtin = {"output": torch.ones(3) + 1e-4}
    assert_as_accurate({"output": torch.ones(3) + 1.9e-4}, builtin, exact)
    with pytest.raises(AssertionError, match=r"^output: off by"):
        assert_as_accurate({"output": torch.ones(3) + 2.1e-4}, builtin, exact)


def test_missing_misshapen_and_mistyped_entries_are_named(run: Run) -> None:
    with pytest.raises(AssertionError, match="hx"):
        assert_same({name: value for name, value in run.items() if name != "hx"}, run)
    with pytest.raises(AssertionError, match=r"^h_n: shape"):
        assert_same({**run, "h_n": run["h_n"][:2]}, run)
    with pytest.raises(AssertionError, match=r"^output: torch\.float32"):
        assert_same({**run, "output": run["output"].float()}, run)


def test_error_is_relative_to_the_largest_magnitude() -> None:
    assert error(torch.tensor([100.0, 1.0]), torch.tensor([100.0, 2.0])) == pytest.approx(0.01)
    assert error(torch.tensor([0.5]), torch.tensor([0.25])) == pytest.approx(0.25)
    assert error(torch.empty(0, 3), torch.empty(0, 3)) == 0.0


def test_gradients_are_those_of_random_cotangents_on_both_results() -> None:
    """Against a run by hand: no cotangent is zero, constant or shared."""
    rnn, _ = twins(4, 6, dtype=torch.float64)
    input = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    found = gradients(rnn, input)
    output, h_n = rnn(input)
    torch.manual_seed(1)
    cotangents = torch.randn_like(output), torch.randn_like(h_n)
    (expected,) = torch.autograd.grad([output, h_n], input, cotangents)
    assert torch.equal(found["input"], expected)
    (only_output,) = torch.autograd.grad(rnn(input)[0], input, cotangents[0])
    (only_h_n,) = torch.autograd.grad(rnn(input)[1], input, cotangents[1])
    assert not torch.equal(found["input"], only_output)
    assert not torch.equal(found["input"], only_h_n)


def test_gradients_leave_out_what_is_frozen() -> None:
    rnn, _ = twins(4, 6)
    rnn.weight_hh_l0.requires_grad_(False)
    found = gradients(rnn, torch.randn(5, 3, 4), torch.randn(1, 3, 6, requires_grad=True))
    assert list(found) == ["output", "h_n", "hx", "weight_ih_l0", "bias_ih_l0", "bias_hh_l0"]


def test_twins_differ_by_seed_only() -> None:
    (a, b), (c, _) = twins(4, 6), twins(4, 6, seed=1)
    assert_same(b.state_dict(), a.state_dict(), bound=0)
    with pytest.raises(AssertionError, match="weight_ih_l0"):
        assert_same(c.state_dict(), a.state_dict())


def test_packed_is_sorted_where_the_lengths_are() -> None:
    assert packed(torch.zeros(3, 2, 1), [3, 1]).sorted_indices is None
    order = packed(torch.zeros(3, 2, 1), [1, 3]).sorted_indices
    assert order is not None
    assert order.tolist() == [1, 0]


def test_kernels_for_lists_what_can_run() -> None:
    assert kernels_for(torch.float64) == kernels_for(torch.float32)
    assert set(kernels_for(torch.float32)) <= set(kernels.KERNELS)
    assert kernels_for(torch.complex64) == [kernels.REFERENCE]
