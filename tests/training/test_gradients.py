"""The functions that compare gradients, and that they can fail."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.gradients import (
    distance,
    gradient_differences,
    gradients,
    nudge,
    partings,
    relative_differences,
    round_off,
)


def network_and_loss() -> tuple[nn.RNN, Callable[[Any], Tensor]]:
    torch.manual_seed(0)
    x = torch.randn(30, 8, 3)
    return nn.RNN(3, 5), lambda rnn: rnn(x.to(rnn.weight_ih_l0.dtype))[0].square().mean()


def judged(change: Callable[[dict[str, Tensor]], Any]) -> dict[str, float]:
    """How far gradients in which `change` was made have parted from sound ones."""
    rnn, loss = network_and_loss()
    _, builtin = gradients(rnn, loss)
    _, exact = gradients(rnn.double(), loss)
    _, nudged = gradients(nudge(rnn, torch.finfo(torch.float32).eps, torch.Generator().manual_seed(0)), loss)
    changed = {name: g.float() for name, g in exact.items()}
    change(changed)
    return partings(changed, builtin, round_off(builtin, exact, [nudged]))


def test_gradients_are_those_of_backward_and_leave_grad_alone() -> None:
    rnn, loss = network_and_loss()
    rnn.bias_hh_l0.requires_grad_(False)
    value, found = gradients(rnn, loss)
    assert all(p.grad is None for p in rnn.parameters())
    loss(rnn).backward()
    assert torch.equal(value, loss(rnn).detach())
    assert list(found) == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0"]
    assert all(g.equal(rnn.get_parameter(name).grad) for name, g in found.items())  # type: ignore[arg-type]


def test_equal_gradients_differ_by_exactly_nothing() -> None:
    rnn, loss = network_and_loss()
    _, a = gradients(rnn, loss)
    _, b = gradients(rnn, loss)
    zeros = dict.fromkeys(a, 0.0)
    assert gradient_differences(a, b) == relative_differences(a, b) == partings(a, b, 0.0) == zeros


def test_differences_are_measured_as_said() -> None:
    a, b = {"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([3.0, 4.0])}
    assert gradient_differences(a, b) == {"w": 4.0}
    assert relative_differences(a, b) == {"w": 0.8}
    assert distance(a, b) == 4.0
    assert partings(a, b, 2.0) == {"w": 2.0}
    assert partings(a, b, 0.0) == {"w": float("inf")}


def test_sound_gradients_part_by_about_one() -> None:
    assert all(0 < parting < 3 for parting in judged(lambda g: None).values())


@pytest.mark.parametrize("wrong", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_one_part_in_a_thousand_is_named(wrong: str) -> None:
    found = judged(lambda g: g[wrong].mul_(1.001))
    assert [name for name, parting in found.items() if parting > 16] == [wrong]


def test_a_transposed_and_a_dropped_gradient_are_named() -> None:
    transposed = judged(lambda g: g.update(weight_hh_l0=g["weight_hh_l0"].T.contiguous()))
    dropped = judged(lambda g: g["bias_hh_l0"].zero_())
    assert [n for n, parting in transposed.items() if parting > 16] == ["weight_hh_l0"]
    assert [n for n, parting in dropped.items() if parting > 16] == ["bias_hh_l0"]


def test_nan_is_within_no_tolerance() -> None:
    found = judged(lambda g: g["weight_hh_l0"][0].fill_(float("nan")))
    assert not found["weight_hh_l0"] <= 16
    assert found["weight_ih_l0"] <= 16


def test_other_parameters_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"expected gradients of the same parameters, got \['w'\] and \['v'\]"
    ):
        gradient_differences({"w": torch.zeros(1)}, {"v": torch.zeros(1)})


def test_a_nudge_moves_every_weight_a_little() -> None:
    rnn, _ = network_and_loss()
    before = {name: p.clone() for name, p in rnn.named_parameters()}
    nudge(rnn, 1e-3, torch.Generator().manual_seed(0))
    for name, p in rnn.named_parameters():
        moved = ((p - before[name]) / before[name]).abs()
        assert moved.min() > 0
        assert moved.max() < 5e-3


class Kink(nn.Module):
    """relu(w0 x0 + w1 x1) where the sum is 0: either slope is right."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -0.25], dtype=torch.float64))

    def forward(self) -> Tensor:
        return (self.w @ self.w.new_tensor([3.0, 6.0])).relu()


def test_many_nudges_cross_a_kink() -> None:
    generator = torch.Generator().manual_seed(0)
    _, here = gradients(Kink(), lambda kink: kink())
    nudged = [gradients(nudge(Kink(), 1e-7, generator), lambda kink: kink())[1] for _ in range(20)]
    assert torch.equal(here["w"], torch.zeros(2))
    assert {tuple(g["w"].tolist()) for g in nudged} == {(0.0, 0.0), (3.0, 6.0)}
    assert partings({"w": torch.tensor([3.0, 6.0])}, here, round_off(here, here, nudged)) == {"w": 1.0}
