"""Parameters and their initial values: those of `nn.RNN` from the same seed, or recurrent ones of choice."""

from typing import Any

import pytest
import torch
from helpers import EVERY_OPTION, assert_same, twins
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from manual_rnn import LeakyRNN, ManualRNN


def values(rnn: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in rnn.named_parameters()}


def recurrent(rnn: ManualRNN) -> list[Tensor]:
    return [weights[1] for weights in rnn.all_weights]


@EVERY_OPTION
def test_names_order_versions_and_values_are_those_of_the_builtin(options: dict[str, Any]) -> None:
    """From the same seed, which leaves the generator in the same state too."""
    torch.manual_seed(0)
    builtin, drawn = nn.RNN(4, 6, **options), torch.rand(3)
    torch.manual_seed(0)
    rnn, drawn_next = ManualRNN(4, 6, **options), torch.rand(3)
    assert torch.equal(drawn_next, drawn)
    assert list(values(rnn)) == list(values(builtin))
    assert_equal(values(rnn), values(builtin))
    found, expected = rnn.state_dict(), builtin.state_dict()
    assert list(found) == list(expected)
    assert vars(found)["_metadata"] == vars(expected)["_metadata"]
    assert_equal(found, expected)


@EVERY_OPTION
def test_default_draws_the_numbers_of_the_builtin(options: dict[str, Any]) -> None:
    both = twins(4, 6, **options)
    before, drawn = values(both[1]), []
    for module in both:
        torch.manual_seed(7)
        assert module.reset_parameters() is None
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
    assert_equal(values(both[1]), values(both[0]))
    assert all(not torch.equal(before[name], weight) for name, weight in values(both[1]).items())


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert_same(found, expected, bound=0)


def test_default_redraws_all_that_the_builtin_redraws() -> None:
    """What lies under a parametrization, a parameter of the user's, those of a module inside."""
    builtin, rnn = (weight_norm(module, "weight_hh_l0") for module in twins(3, 5))
    for module in (builtin, rnn):
        module.gain, module.head = nn.Parameter(torch.ones(5)), nn.Linear(5, 2)
        torch.manual_seed(7)
        module.reset_parameters()
    assert_equal(values(rnn), values(builtin))
    assert not torch.equal(values(rnn)["gain"], torch.ones(5))


class Sigmoid(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sigmoid()

    def right_inverse(self, y: torch.Tensor) -> torch.Tensor:
        return y.logit()


@pytest.mark.parametrize("computed", [False, True])
def test_a_trained_leak_is_not_redrawn(computed: bool) -> None:
    rnn = LeakyRNN(3, 5, alpha=0.25)
    del rnn.alpha
    rnn.alpha = nn.Parameter(torch.full((5,), 0.25))
    rnn.alphabet = nn.Parameter(torch.zeros(5))
    if computed:
        nn.utils.parametrize.register_parametrization(rnn, "alpha", Sigmoid())
    rnn.reset_parameters()
    torch.testing.assert_close(rnn.alpha, torch.full((5,), 0.25))
    assert rnn.alphabet.abs().min() > 0


def test_a_nonlinearity_that_has_two_names_is_not_redrawn() -> None:
    rnn = ManualRNN(3, 5, nonlinearity=nn.PReLU())
    phi: Any = rnn.nonlinearity
    del rnn.nonlinearity
    rnn.act, rnn.nonlinearity = phi, phi
    rnn.reset_parameters()
    assert phi.weight.item() == 0.25


@pytest.mark.parametrize("bias", [True, False])
def test_identity(bias: bool) -> None:
    _, rnn = twins(3, 5, 2, "relu", bias, bidirectional=True)
    before = values(rnn)
    torch.manual_seed(0)
    rnn.reset_parameters("identity")
    for name, weight in rnn.named_parameters():
        if "weight_ih" in name:
            assert torch.equal(weight, before[name]), "not the default draw"
        else:
            assert torch.equal(weight, torch.eye(5) if "weight_hh" in name else torch.zeros(5))


def test_identity_keeps_a_state_until_the_input_speaks() -> None:
    rnn = ManualRNN(3, 5, nonlinearity="relu")
    rnn.reset_parameters("identity")
    hx = torch.rand(1, 2, 5)
    assert torch.equal(rnn(torch.zeros(50, 2, 3), hx)[1], hx)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_orthogonal(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rnn = ManualRNN(3, 8, 2, bidirectional=True, dtype=dtype)
    before = values(rnn)
    torch.manual_seed(0)
    rnn.reset_parameters("orthogonal")
    for name, weight in rnn.named_parameters():
        if "weight_hh" not in name:
            assert torch.equal(weight, before[name]), "not the default draw"
    for w in recurrent(rnn):
        error = (w.double().T @ w.double() - torch.eye(8)).abs().max().item()
        assert error < 8 * torch.finfo(dtype).eps
    assert len({w[0, 0].item() for w in recurrent(rnn)}) == 4, "every matrix is drawn for itself"


@pytest.mark.parametrize("name", ["identity", "orthogonal"])
def test_recurrent_values_stay_leaves_that_train(name: str) -> None:
    rnn = ManualRNN(3, 5)
    rnn.reset_parameters(name)
    rnn(torch.randn(4, 2, 3))[0].sum().backward()
    assert all(weight.is_leaf and weight.grad is not None for weight in rnn.parameters())


@pytest.mark.parametrize("wrong", ["eye", "", 1, ["identity"]])
def test_anything_else_is_refused_before_drawing(wrong: str) -> None:
    rnn = ManualRNN(3, 5)
    before = values(rnn)
    with pytest.raises(ValueError, match="expected None, 'identity' or 'orthogonal', got"):
        rnn.reset_parameters(wrong)
    assert_equal(values(rnn), before)


def test_a_computed_weight_is_refused_before_drawing() -> None:
    rnn = ManualRNN(3, 5)
    weight_norm(rnn, "weight_hh_l0")
    before = values(rnn)
    with pytest.raises(RuntimeError, match="expected weight_hh_l0 to be a parameter"):
        rnn.reset_parameters("identity")
    assert_equal(values(rnn), before)
