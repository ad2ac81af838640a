"""Comparing gradients: the pure functions, the callback on anybody's networks, and that both can fail."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelPruning
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training_runs import WARNINGS, trained

import manual_rnn
import training.callbacks
import training.compare
from manual_rnn import ManualRNN
from training.callbacks import CompareGradients
from training.compare import (
    Gradients,
    Loss,
    Weights,
    compare,
    doubled,
    gradients,
    nudged,
    partings,
    relative_differences,
    round_off,
    same_random_numbers,
    unit_in_the_last_place,
    weights_of,
)

pytestmark = WARNINGS
EPS = torch.finfo(torch.float32).eps


def network_and_loss() -> tuple[nn.RNN, Callable[[Any], Tensor]]:
    torch.manual_seed(0)
    x = torch.randn(30, 8, 3)
    return nn.RNN(3, 5), lambda rnn: rnn(x.to(rnn.weight_ih_l0.dtype))[0].square().mean()


def judged(change: Callable[[dict[str, Tensor]], Any]) -> dict[str, float]:
    """How far gradients in which `change` was made have parted from sound ones."""
    rnn, loss = network_and_loss()
    exactly = doubled(weights_of(rnn))
    _, builtin = gradients(rnn, loss)
    _, exact = gradients(rnn, loss, exactly)
    _, beside = gradients(rnn, loss, nudged(exactly, EPS, torch.Generator().manual_seed(0)))
    changed = {name: g.float() for name, g in exact.items()}
    change(changed)
    return partings(changed, builtin, round_off(builtin, exact, [beside]))


def test_gradients_are_those_of_backward_and_leave_grad_alone() -> None:
    rnn, loss = network_and_loss()
    rnn.bias_hh_l0.requires_grad_(False)
    value, found = gradients(rnn, loss)
    assert all(p.grad is None for p in rnn.parameters())
    loss(rnn).backward()
    assert torch.equal(value, loss(rnn).detach())
    assert list(found) == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0"]
    assert all(g.equal(rnn.get_parameter(name).grad) for name, g in found.items())  # type: ignore[arg-type]


def test_gradients_at_other_weights_leave_the_network_as_it_was() -> None:
    rnn, loss = network_and_loss()
    other = nn.RNN(3, 5)
    before = {name: p.clone() for name, p in rnn.state_dict().items()}
    _, found = gradients(rnn, loss, weights_of(other))
    assert all(g.equal(gradients(other, loss)[1][name]) for name, g in found.items())
    assert all(p.equal(before[name]) for name, p in rnn.state_dict().items())
    assert not found["weight_hh_l0"].equal(gradients(rnn, loss)[1]["weight_hh_l0"])


def test_buffers_of_a_compared_network_are_not_moved() -> None:
    norm = nn.BatchNorm1d(3)
    gradients(norm, lambda network: network(torch.randn(9, 3) + 5).square().sum())
    assert torch.equal(norm.running_mean, torch.zeros(3))  # type: ignore[arg-type]


def test_equal_gradients_differ_by_exactly_nothing() -> None:
    rnn, loss = network_and_loss()
    _, a = gradients(rnn, loss)
    _, b = gradients(rnn, loss)
    zeros = dict.fromkeys(a, 0.0)
    assert relative_differences(a, b) == partings(a, b, 0.0) == zeros


def test_gradients_of_opposite_sign_are_apart_by_their_sum() -> None:
    builtin, manual = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)

    def loss(network: nn.Module, x: Tensor) -> Tensor:
        value: Tensor = network(x).sum()
        return -value if network is manual else value

    found = compare(builtin, manual, loss, torch.tensor([[3.0, 4.0]]))
    assert (found.absolute, found.relative) == ({"weight": 8.0}, {"weight": 2.0})


def test_differences_are_measured_as_said() -> None:
    a, b = {"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([3.0, 4.0])}
    assert relative_differences(a, b) == {"w": 0.8}
    assert round_off(a, b, []) == 4.0
    assert partings(a, b, 2.0) == {"w": 2.0}
    assert partings(a, b, 0.0) == {"w": float("inf")}


def test_the_unit_is_the_larger_of_two() -> None:
    a, b, c = ({"w": torch.tensor([x])} for x in (1.0, 3.0, 9.0))
    assert round_off(b, a, [c]) == 8
    assert round_off(c, a, [b]) == 8


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
    assert [name for name, parting in found.items() if not parting <= 16] == ["weight_hh_l0"]


def test_other_parameters_are_refused() -> None:
    less, more = nn.RNN(3, 4, bias=False), nn.RNN(3, 4)
    for one, other in ((less, more), (more, less)):
        with pytest.raises(ValueError, match=r"expected networks with parameters of the same names, got \['"):
            compare(one, other, plain_sum, torch.randn(5, 2, 3))


def test_a_nudge_moves_every_trained_weight_a_little() -> None:
    rnn, _ = network_and_loss()
    before = weights_of(rnn)
    after = nudged(before, 1e-3, torch.Generator().manual_seed(0))
    for name, p in before.items():
        moved = ((after[name] - p) / p).abs()
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
    kink, at = Kink(), weights_of(Kink())
    _, here = gradients(kink, lambda kink: kink())
    beside = [gradients(kink, lambda kink: kink(), nudged(at, 1e-7, generator))[1] for _ in range(20)]
    assert torch.equal(here["w"], torch.zeros(2))
    assert {tuple(g["w"].tolist()) for g in beside} == {(0.0, 0.0), (3.0, 6.0)}
    assert partings({"w": torch.tensor([3.0, 6.0])}, here, round_off(here, here, beside)) == {"w": 1.0}


def test_the_unit_in_the_last_place_is_that_of_the_precision() -> None:
    network = nn.Linear(2, 2)
    assert unit_in_the_last_place(network) == 2**-23
    assert unit_in_the_last_place(nn.Linear(2, 2).double()) == 2**-52
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert unit_in_the_last_place(network) == 2**-7


def noisy_sum(network: nn.Module, x: Tensor) -> Tensor:
    return F.dropout(network(x)[0]).square().mean()


def test_the_comparison_draws_alike_for_every_network_and_leaves_the_generator_alone() -> None:
    builtin, manual, x = nn.RNN(3, 5), ManualRNN(3, 5), torch.randn(9, 2, 3)
    state = torch.get_rng_state()
    found, again = (compare(builtin, manual, noisy_sum, x, seed=3) for _ in range(2))
    assert max(found.partings.values()) < 16
    assert found == again
    assert found.partings != compare(builtin, manual, noisy_sum, x, seed=4).partings
    assert torch.equal(torch.get_rng_state(), state)


def test_what_networks_draw_in_a_comparison_is_of_its_seed() -> None:
    drawn: list[float] = []

    def loss(network: nn.Module, x: Tensor) -> Tensor:
        drawn.append(torch.rand(()).item())
        return plain_sum(network, x)

    for seed in (3, 4):
        compare(nn.RNN(3, 5), ManualRNN(3, 5), loss, torch.randn(9, 2, 3), tolerance=0, seed=seed)
    assert len(drawn) == 8
    assert len(set(drawn[:4])) == len(set(drawn[4:])) == 1
    assert drawn[0] != drawn[4]


def test_random_numbers_depend_on_the_seed_alone() -> None:
    drawn = []
    for seed in (1, 1, 2):
        torch.rand(3)
        with same_random_numbers(seed, torch.device("cpu")):
            drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def plain_sum(network: nn.Module, x: Tensor) -> Tensor:
    return network(x)[0].square().mean()


@pytest.mark.parametrize(("lucky_parting", "asked"), [(3.9, [1]), (4.1, [1, 20])])
def test_past_a_quarter_of_the_tolerance_many_nudges_judge(
    monkeypatch: pytest.MonkeyPatch, lucky_parting: float, asked: list[int]
) -> None:
    builtin, manual, x = nn.RNN(3, 5), ManualRNN(3, 5), torch.randn(9, 2, 3)
    numbers: list[int] = []

    def judge(builtin: Gradients, exact: Gradients, beside: list[Gradients]) -> float:
        numbers.append(len(beside))
        return round_off(builtin, exact, beside)

    def parted(manual: Gradients, builtin: Gradients, unit: float) -> dict[str, float]:
        return {"w": lucky_parting if len(numbers) == 1 else 0.5}

    monkeypatch.setattr(training.compare, "round_off", judge)
    monkeypatch.setattr(training.compare, "partings", parted)
    found = compare(builtin, manual, plain_sum, x, tolerance=16)
    assert numbers == asked
    assert found.partings == {"w": 0.5 if len(asked) == 2 else lucky_parting}


def test_what_is_not_finite_by_nn_rnn_is_left_out_and_said() -> None:
    builtin, manual = nn.Linear(1, 1), nn.Linear(1, 1)
    found = compare(builtin, manual, lambda network, x: network(x).sum() * float("inf"), torch.ones(1, 1))
    assert found.diverged
    assert found.partings == {}
    assert found.loss == 0


def test_a_gradient_that_is_not_finite_is_said_where_the_loss_is() -> None:
    found = compare(
        nn.Linear(1, 1), nn.Linear(1, 1), lambda network, x: (0 * network(x)).sqrt().sum(), torch.ones(1, 1)
    )
    assert found.diverged
    assert found.partings == found.absolute == {}


class Pair(LightningModule):
    """Anybody's two networks: an nn.RNN, and one whose gradient is wrong from a step on."""

    def __init__(self, wrong_from: int = 99) -> None:
        super().__init__()
        self.builtin, self.manual = nn.RNN(3, 5), ManualRNN(3, 5)
        self.wrong_from = wrong_from

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        output: Tensor = network(batch[0])[0]
        if network is self.manual and self.global_step + 1 >= self.wrong_from:
            output = output + (output - output.detach()) * 1e-3
        return F.mse_loss(output, batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self.builtin, batch) + self.loss(self.manual, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module: LightningModule, *callbacks: Any, **options: Any) -> None:
    loader = DataLoader(TensorDataset(torch.randn(24, 7, 3), torch.randn(24, 7, 5)), batch_size=4)
    silent: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    silent |= {"enable_model_summary": False, "accelerator": "cpu"}
    Trainer(callbacks=list(callbacks), **{"max_epochs": 1, **silent, **options}).fit(module, loader)


def test_the_callback_compares_anybodys_networks_under_a_plain_trainer() -> None:
    every, third = CompareGradients(), CompareGradients(every_n_steps=3)
    fit(Pair(), every)
    fit(Pair(), third)
    assert every.record.compared == every.record.steps == [1, 2, 3, 4, 5, 6]
    assert third.record.compared == [1, 4]
    assert list(every.record.partings) == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    assert 0 < every.record.largest_parting < 16
    assert every.record.failure is None


def test_the_callback_names_the_step_of_a_wrong_gradient() -> None:
    compared = CompareGradients()
    fit(Pair(wrong_from=4), compared)
    assert compared.record.failure is not None
    assert compared.record.failure.endswith("parted by more than the tolerance of 16 at step 4")


def test_the_callback_compares_by_its_own_tolerance_and_draws_anew_at_each_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def note(*args: Any, **options: Any) -> training.compare.Comparison:
        seen.append((args[4], options["seed"]))
        return compare(*args, **options)

    monkeypatch.setattr(training.callbacks, "compare", note)
    fit(Pair(), CompareGradients(every_n_steps=2, tolerance=3.0))
    assert seen[:3] == [(3.0, 0), (3.0, 2), (3.0, 4)]


def test_the_callback_does_not_touch_the_training() -> None:
    states = []
    for callbacks in ([], [CompareGradients()]):
        torch.manual_seed(0)
        module = Pair()
        fit(module, *callbacks)
        states.append(module.state_dict())
    assert all(torch.equal(w, states[1][name]) for name, w in states[0].items())


def test_pruned_networks_are_compared() -> None:
    class Pruned(Pair):
        def __init__(self) -> None:
            super().__init__()
            self.builtin = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 5))  # type: ignore[assignment]
            self.manual = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 5))  # type: ignore[assignment]

        def loss(self, network: nn.Module, batch: Any) -> Tensor:
            return F.mse_loss(network(batch[0]), batch[1])

    compared = CompareGradients()
    fit(Pruned(), ModelPruning("l1_unstructured", amount=0.3), compared, max_epochs=2)
    assert "0.weight_orig" in compared.record.partings
    assert compared.record.failure is None


def test_profiled_networks_are_compared(tmp_path: Any) -> None:
    compared = CompareGradients()
    fit(Pair(), compared, profiler="pytorch", default_root_dir=tmp_path)
    assert len(compared.record.compared) == 6


def test_a_module_without_two_networks_is_refused() -> None:
    class One(Pair):
        def __init__(self) -> None:
            super().__init__()
            del self.manual

    with pytest.raises(ValueError, match=r"expected a module with two networks.* One has no manual"):
        fit(One(), CompareGradients())


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"tolerance": -1.0}, {"tolerance": float("nan")}])
def test_options_of_the_callback_out_of_range_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=r"of at least [01], got"):
        CompareGradients(**options)


def test_gradients_beyond_the_tolerance_end_in_failure() -> None:
    words = r"the gradient of \S+ parted by more than the tolerance of 0 at step 1"
    with pytest.raises(ArithmeticError, match=words):
        trained(model={"kernel": "torch"}, compare=CompareGradients(tolerance=0))


def test_a_wrong_gradient_of_manual_rnn_is_named_with_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    right, steps = training.compare.gradients, count(1)

    def wrong(network: Any, loss: Loss, weights: Weights | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        value, found = right(network, loss, weights)
        if isinstance(network.rnn, manual_rnn.ManualRNN) and next(steps) >= 4:
            found["rnn.weight_hh_l0"] = found["rnn.weight_hh_l0"] * 1.001
        return value, found

    monkeypatch.setattr(training.compare, "gradients", wrong)
    with pytest.raises(ArithmeticError, match=r"gradient of rnn\.weight_hh_l0 parted by .* at step 4"):
        trained()
