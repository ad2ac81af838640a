r"""Autocast as `nn.RNN` does it, lower precisions under transforms, and complex numbers."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from helpers import assert_as_accurate, assert_same, packed, twins
from loop import NETWORKS, Loop, build, case_id
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, vmap

from manual_rnn import ManualRNN, use_kernel

LENGTHS = [3, 5, 2, 2]
REGIONS = {"forward": (True, False), "forward and backward": (True, True), "backward": (False, True)}


def autocast(on: bool = True):
    return torch.autocast("cpu", torch.bfloat16) if on else nullcontext()


def one_step(rnn: Any, dtype: torch.dtype, pack: bool, regions: tuple[bool, bool]) -> dict[str, Tensor]:
    """Output, `h_n` and gradients; autocast around forward, backward, both, or neither."""
    torch.manual_seed(1)
    D, L = 1 + rnn.bidirectional, rnn.num_layers
    input = torch.randn(5, 4, 6).to(dtype).requires_grad_()
    hx = torch.randn(L * D, 4, 8).to(dtype).requires_grad_()
    with autocast(regions[0]):
        output, h_n = rnn(packed(input, LENGTHS) if pack else input, hx)
        output = output.data if pack else output
    cotangents = [torch.randn(x.shape).to(x) for x in (output, h_n)]
    leaves = {"input": input, "hx": hx, **dict(rnn.named_parameters())}
    with autocast(regions[1]):
        grads = torch.autograd.grad([output, h_n], list(leaves.values()), cotangents)
    return {"output": output.detach(), "h_n": h_n.detach(), **dict(zip(leaves, grads, strict=True))}


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("pack", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("network", NETWORKS, ids=case_id)
def test_autocast(network, pack, region):
    """The dtypes of `nn.RNN` and an error like its own."""
    builtin, manual = twins(6, 8, **network)
    exact = one_step(copy.deepcopy(manual).double(), torch.float64, pack, (False, False))
    found, own = (one_step(rnn, torch.float32, pack, REGIONS[region]) for rnn in (manual, builtin))
    assert {k: x.dtype for k, x in found.items()} == {k: x.dtype for k, x in own.items()}
    assert_as_accurate(_rounded(found), _rounded(own), exact)


def _rounded(step: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of float32 weights computed in bfloat16 are judged as bfloat16."""
    return {name: x.bfloat16() for name, x in step.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_autocast_leaves_these_alone(dtype):
    rnn = ManualRNN(2, 3, dtype=dtype)
    with autocast():
        output, h_n = rnn(torch.randn(3, 2, 2, dtype=dtype))
    assert output.dtype == h_n.dtype == dtype


def test_autocast_of_each_sample_s_gradient():
    """Under `vmap(grad(...))` too the region's precision, and gradients in that of the weights."""
    rnn = ManualRNN(2, 3)
    weights = {name: p.detach() for name, p in rnn.named_parameters()}
    seen: list[torch.dtype] = []

    def loss(w: dict[str, Tensor], x: Tensor) -> Tensor:
        output, _ = functional_call(rnn, w, (x,))
        seen.append(output.dtype)
        return output.float().sum()

    x = torch.randn(4, 3, 2)
    with autocast():
        found = vmap(grad(loss), (None, 0))(weights, x)
    assert seen == [torch.bfloat16]
    exact = [grad(loss)({k: p.double() for k, p in weights.items()}, row.double()) for row in x]
    for name, value in found.items():
        assert value.dtype is torch.float32
        expected = torch.stack([each[name] for each in exact])
        assert (value - expected).abs().max() <= 0.03 * expected.abs().max()


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
