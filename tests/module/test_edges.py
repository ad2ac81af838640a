r"""Numbers at the edge: NaN and infinity, the kink of ReLU, complex, autocast, batched cotangents."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import KERNELS, PHI, assert_same, assert_same_results, error, gradients, twins

from manual_rnn import ManualRNN, use_kernel


@PHI
@KERNELS
def test_is_grads_batched(nonlinearity: str, kernel: str) -> None:
    builtin, manual = twins(4, 6, 2, nonlinearity, bidirectional=True)
    input = torch.randn(5, 3, 4, requires_grad=True)
    cotangents = torch.randn(7, 5, 3, 12)
    found = []
    for rnn in (builtin, manual):
        with use_kernel(kernel):
            output, _ = rnn(input)
        found.append(
            torch.autograd.grad(output, [input, *rnn.parameters()], cotangents, is_grads_batched=True)
        )
    assert max(map(error, *found)) < 2e-6


@KERNELS
@pytest.mark.parametrize("bias", [0.0, -0.0])
def test_the_slope_of_relu_at_zero_is_zero(bias: float, kernel: str) -> None:
    builtin, manual = twins(4, 6, nonlinearity="relu")
    for rnn in (builtin, manual):
        for name, weight in rnn.named_parameters():
            weight.data.fill_(bias if name.startswith("bias") else 1.0)
    input = torch.zeros(5, 3, 4, requires_grad=True)
    with use_kernel(kernel):
        found = gradients(manual, input)
    assert_same(found, gradients(builtin, input))
    assert not any(found[name].any() for name in ("output", "input", "weight_hh_l0", "bias_ih_l0"))


@PHI
@KERNELS
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e30, 1e-42])
def test_extreme_values_spread_alike(value: float, reverse: bool, nonlinearity: str, kernel: str) -> None:
    """NaN and infinity reach the states and gradients that they reach in nn.RNN, and no others."""
    builtin, manual = twins(4, 6, nonlinearity=nonlinearity, bidirectional=reverse)
    input = torch.randn(7, 9, 4)
    input[3, 1, 2] = value
    input.requires_grad_()
    with use_kernel(kernel):
        found = gradients(manual, input)
    for name, expected in gradients(builtin, input).items():
        torch.testing.assert_close(found[name], expected, equal_nan=True, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("kernel", ["default", "reference"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_tanh(dtype: torch.dtype, kernel: str) -> None:
    builtin, manual = twins(4, 6, 2, bidirectional=True, dtype=dtype)
    input = torch.randn(5, 3, 4, dtype=dtype, requires_grad=True)
    hx = torch.randn(4, 3, 6, dtype=dtype, requires_grad=True)
    with use_kernel(kernel):
        found = gradients(manual, input, hx)
    assert_same(found, gradients(builtin, input, hx), bound=0)


def test_complex_relu_raises_as_in_builtin() -> None:
    for rnn in twins(4, 6, nonlinearity="relu", dtype=torch.complex64):
        with pytest.raises(RuntimeError, match="clamp is not supported for complex types"):
            rnn(torch.randn(5, 3, 4, dtype=torch.complex64))


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weights", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_autocast(given: torch.dtype, weights: torch.dtype, lower: torch.dtype) -> None:
    """The dtype of the result, or the type of the error; and gradients in the weights' own dtype."""
    found: list[Any] = []
    for rnn in twins(4, 6, 2, bidirectional=True, dtype=weights):
        input = torch.randn(5, 3, 4, dtype=torch.float32).to(given).requires_grad_()
        try:
            with torch.autocast("cpu", dtype=lower):
                output, h_n = rnn(input)
        except RuntimeError as raised:
            found.append(type(raised))
            continue
        (output.sum() + h_n.sum()).backward()
        assert input.grad is not None
        found.append([x.dtype for x in (output, h_n, input.grad, *(p.grad for p in rnn.parameters()))])
    assert found[0] == found[1]
    lowered = torch.float64 if given == weights == torch.float64 else lower
    assert found[1] is RuntimeError or found[1][:2] == [lowered, lowered]


def test_autocast_is_as_accurate_as_in_builtin() -> None:
    builtin, manual = twins(4, 32, 2)
    input = torch.randn(9, 5, 4)
    exact = copy.deepcopy(builtin).double()(input.double())[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = error(manual(input)[0], exact), error(builtin(input)[0], exact)
    assert 0 < ours <= 2 * theirs


def test_autocast_switched_off_inside() -> None:
    rnn, input = ManualRNN(4, 6), torch.randn(5, 3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert rnn(input)[0].dtype == torch.float32


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@KERNELS
def test_without_gradients(mode: Callable[[], Any], kernel: str) -> None:
    builtin, manual = twins(4, 6, 2, bidirectional=True)
    input = torch.randn(5, 3, 4)
    with mode(), use_kernel(kernel):
        found, expected = manual(input), builtin(input)
    assert_same_results(found, expected)
    assert [x.requires_grad for x in found] == [x.requires_grad for x in expected] == [False, False]
    assert [x.is_inference() for x in found] == [x.is_inference() for x in expected]


def test_the_default_dtype_is_followed() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        builtin, manual = twins(4, 6)
        input = torch.randn(5, 3, 4)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_results(manual(input), builtin(input), 1e-12)
