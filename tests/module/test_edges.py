r"""Numbers at the edge: NaN and infinity, the kink of ReLU."""

import pytest
import torch
from helpers import KERNELS, PHI, assert_same, gradients, twins
from internals import KernelName

from manual_rnn import use_kernel


@KERNELS
@pytest.mark.parametrize("bias", [0.0, -0.0])
def test_the_slope_of_relu_at_zero_is_zero(bias: float, kernel: KernelName) -> None:
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
def test_extreme_values_spread_alike(
    value: float, reverse: bool, nonlinearity: str, kernel: KernelName
) -> None:
    """NaN and infinity reach the states and gradients that they reach in nn.RNN, and no others."""
    builtin, manual = twins(4, 6, nonlinearity=nonlinearity, bidirectional=reverse)
    input = torch.randn(7, 9, 4)
    input[3, 1, 2] = value
    input.requires_grad_()
    with use_kernel(kernel):
        found = gradients(manual, input)
    for name, expected in gradients(builtin, input).items():
        torch.testing.assert_close(found[name], expected, equal_nan=True, rtol=1e-5, atol=1e-5, msg=name)
