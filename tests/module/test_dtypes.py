r"""Every dtype: conversion, the default one, transforms in each, complex numbers."""

import pytest
import torch
from helpers import assert_same, assert_same_results, gradients, twins
from internals import KernelName
from loop import NETWORKS, Loop, build, case_id
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, vmap

from manual_rnn import ManualRNN, use_kernel


@pytest.mark.parametrize("kernel", ["default", "reference"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_tanh_is_that_of_builtin_to_the_last_bit(dtype: torch.dtype, kernel: KernelName) -> None:
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


def test_the_default_dtype_is_followed() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        builtin, manual = twins(4, 6)
        input = torch.randn(5, 3, 4)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_results(manual(input), builtin(input), 1e-12)


def test_conversion_between_dtypes() -> None:
    builtin, manual = twins(4, 6, 2, bidirectional=True)
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        input = torch.randn(5, 3, 4, dtype=dtype)
        builtin.to(dtype)
        manual.to(dtype)
        found, expected = manual(input), builtin(input)
        assert found[0].dtype == expected[0].dtype == dtype
        assert_same_results(found, expected, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("network", [NETWORKS[0], NETWORKS[-1]], ids=case_id)
def test_transforms_in_every_precision(network, dtype):
    """`jvp` and per-sample gradients keep the dtype and err within a few units in the last place."""
    judge = build(Loop, network)
    rnn = build(ManualRNN, network).to(dtype)
    x = torch.randn(2, 3, 2).to(dtype).double()  # exact in every dtype

    def both(module: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        weights = {name: p.detach() for name, p in module.named_parameters()}
        tangent = jvp(lambda x: functional_call(module, weights, (x,))[0], (x,), (x,))[1]
        of_sample = grad(lambda w, x: functional_call(module, w, (x,))[0].sum())
        return tangent, vmap(of_sample, (None, 0))(weights, x)

    for p, q in zip(judge.parameters(), rnn.parameters(), strict=True):
        p.data = q.data.double()
    found, expected = both(rnn, x.to(dtype)), both(judge, x)
    pairs = [(found[0], expected[0]), *((found[1][name], expected[1][name]) for name in expected[1])]
    for ours, right in pairs:
        assert ours.dtype is dtype
        assert (ours.double() - right).abs().max() <= 32 * torch.finfo(dtype).eps * right.abs().max().clamp(
            min=1
        )


@pytest.mark.parametrize("network", [n for n in NETWORKS if n["nonlinearity"] == "tanh"], ids=case_id)
def test_complex_tanh(network):
    """By the reference kernel: values, gradients and tangents of the judge, and a numeric check."""
    results = []
    for kind in (ManualRNN, Loop):
        rnn = build(kind, network, dtype=torch.complex128)
        torch.manual_seed(1)
        for p in rnn.parameters():
            p.data.imag.normal_(std=0.1)
        x = torch.randn(3, 2, 2, dtype=torch.complex128, requires_grad=True)
        output, h_n = rnn(x)
        value = output.abs().square().sum() + h_n.real.sum()
        leaves = {"input": x, **dict(rnn.named_parameters())}
        grads = torch.autograd.grad(value, list(leaves.values()))
        tangent = jvp(lambda x, rnn=rnn: rnn(x)[0], (x.detach(),), (x.detach(),))[1]
        results.append(
            {"output": output.detach(), "jvp": tangent.detach(), **dict(zip(leaves, grads, strict=True))}
        )
    found, expected = results
    assert_same(found, expected)
    small = ManualRNN(1, 2, dtype=torch.complex128)
    x = torch.randn(2, 1, 1, dtype=torch.complex128, requires_grad=True)
    assert gradcheck(small, (x,), check_forward_ad=True)
    assert gradgradcheck(small, (x,))


def test_a_kernel_without_complex_numbers_says_so():
    rnn = ManualRNN(2, 3, dtype=torch.complex64)
    with use_kernel("torch"), pytest.raises(RuntimeError, match="real numbers"):
        rnn(torch.zeros(3, 2, 2, dtype=torch.complex64))
