r"""The equations of `manual_rnn.functional`, on the weights of an `nn.RNN`."""

from typing import Any

import pytest
import torch
from helpers import assert_same
from torch import Tensor, nn

from manual_rnn import bidirectional_rnn_forward, rnn_forward

NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
SHAPES = [(3, 5, 4, 6), (3, 1, 4, 6), (1, 5, 4, 6), (2, 4, 1, 1), (3, 2, 7, 63)]


def builtin(I: int, H: int, bias: bool = True, bidirectional: bool = False) -> nn.RNN:  # noqa: E741
    return nn.RNN(I, H, bias=bias, batch_first=True, bidirectional=bidirectional, dtype=torch.float64)


def weights(rnn: nn.RNN, suffix: str = "") -> tuple[Any, Any, Any, Any]:
    weight_ih, weight_hh, bias_ih, bias_hh = (
        dict(rnn.named_parameters()).get(name + suffix) for name in NAMES
    )
    return weight_ih, weight_hh, bias_ih, bias_hh


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def compare(h_out: Tensor, h_n: Tensor, rnn: nn.RNN, input: Tensor, h0: Tensor, leaves: list[Tensor]) -> None:
    """Values and gradients against `rnn`; `leaves` are differentiated."""
    expected_out, expected_n = rnn(input, h0)
    cotangents = torch.randn_like(h_out), torch.randn_like(h_n)
    leaves = [*leaves, *rnn.parameters()]
    found = torch.autograd.grad([h_out, h_n], leaves, cotangents)
    expected = torch.autograd.grad([expected_out, expected_n], leaves, cotangents)
    names = [str(number) for number in range(len(leaves))]
    assert_same({"h_out": h_out, "h_n": h_n}, {"h_out": expected_out, "h_n": expected_n})
    assert_same(dict(zip(names, found, strict=True)), dict(zip(names, expected, strict=True)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("B", "T", "I", "H"), SHAPES)
def test_rnn_forward_equals_builtin(B: int, T: int, I: int, H: int, bias: bool) -> None:  # noqa: E741
    rnn, input, h_prev = builtin(I, H, bias), draw(B, T, I), draw(B, H)
    h_out, h_n = rnn_forward(input, *weights(rnn), h_prev)
    assert h_out.shape == (B, T, H)
    assert h_n.shape == (1, B, H)
    compare(h_out, h_n, rnn, input, h_prev.unsqueeze(0), [input, h_prev])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("B", "T", "I", "H"), SHAPES)
def test_bidirectional_rnn_forward_equals_builtin(B: int, T: int, I: int, H: int, bias: bool) -> None:  # noqa: E741
    """From initial states that differ between the directions."""
    rnn = builtin(I, H, bias, bidirectional=True)
    input, h_prev, h_prev_reverse = draw(B, T, I), draw(B, H), draw(B, H)
    forward, backward = weights(rnn), weights(rnn, "_reverse")
    h_out, h_n = bidirectional_rnn_forward(input, *forward, h_prev, *backward, h_prev_reverse)
    assert h_out.shape == (B, T, 2 * H)
    assert h_n.shape == (2, B, H)
    h0 = torch.stack([h_prev, h_prev_reverse])
    compare(h_out, h_n, rnn, input, h0, [input, h_prev, h_prev_reverse])


@pytest.mark.parametrize("missing", [2, 3])
def test_one_bias_may_be_none(missing: int) -> None:
    """None counts as zero."""
    rnn, input, h_prev = builtin(4, 6), draw(3, 5, 4), draw(3, 6)
    given = list(weights(rnn))
    with torch.no_grad():
        given[missing].zero_()
    expected, _ = rnn(input, h_prev.unsqueeze(0))
    given[missing] = None
    h_out, _ = rnn_forward(input, given[0], given[1], given[2], given[3], h_prev)
    assert_same({"h_out": h_out}, {"h_out": expected})


def test_the_state_that_comes_back_goes_in_again() -> None:
    """Sequences in two pieces equal the whole, one direction or both."""
    rnn, input, h_prev = builtin(4, 6), draw(3, 5, 4), draw(3, 6)
    first, h_n = rnn_forward(input[:, :2], *weights(rnn), h_prev)
    second, h_n = rnn_forward(input[:, 2:], *weights(rnn), h_n)
    expected, expected_n = rnn(input, h_prev.unsqueeze(0))
    assert_same({"h_out": torch.cat([first, second], 1), "h_n": h_n}, {"h_out": expected, "h_n": expected_n})
    rnn = builtin(4, 6, bidirectional=True)
    forward, backward = weights(rnn), weights(rnn, "_reverse")
    _, h_n = bidirectional_rnn_forward(input, *forward, h_prev, *backward, h_prev)
    found, _ = bidirectional_rnn_forward(input, *forward, h_n[0], *backward, h_n[1:])
    expected, _ = rnn(input, h_n)
    assert_same({"h_out": found}, {"h_out": expected})


SHAPES_OF_NO_STATE = [(6,), (1, 6), (2, 3, 6), (1, 1, 3, 6), (3, 1, 6), (3, 5), (6, 3), ()]


@pytest.mark.parametrize("shape", SHAPES_OF_NO_STATE, ids=str)
@pytest.mark.parametrize("T", [0, 1, 3])
def test_a_state_of_another_shape_raises(shape: tuple[int, ...], T: int) -> None:
    rnn = builtin(4, 6)
    with pytest.raises(ValueError, match=r"h_prev: expected shape \(3, 6\)( or \(1, 3, 6\))?, got "):
        rnn_forward(draw(3, T, 4), *weights(rnn), draw(*shape))


@pytest.mark.parametrize("wrong", range(4))
def test_nothing_broadcasts(wrong: int) -> None:
    given = list(weights(builtin(4, 6)))
    given[wrong] = given[wrong][:1]
    with pytest.raises(ValueError, match=r"(input|weight_[ih]h|bias_[ih]h): expected shape "):
        rnn_forward(draw(3, 5, 4), given[0], given[1], given[2], given[3], draw(3, 6))
    with pytest.raises(ValueError, match=r"input: expected shape \(B, T, I\), got \(4, 4\)"):
        rnn_forward(draw(4, 4), *weights(builtin(4, 6)), draw(4, 6))


def test_no_steps_leave_the_state() -> None:
    rnn, h_prev = builtin(4, 6), draw(3, 6)
    h_out, h_n = rnn_forward(draw(3, 0, 4), *weights(rnn), h_prev)
    assert h_out.shape == (3, 0, 6)
    assert torch.equal(h_n, h_prev.unsqueeze(0))
