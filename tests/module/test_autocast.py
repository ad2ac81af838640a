r"""Autocast as `nn.RNN` does it: dtypes, errors, accuracy, and what stays as it is."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from helpers import assert_as_accurate, error, packed, twins
from loop import NETWORKS, case_id
from torch import Tensor
from torch.func import functional_call, grad, vmap

from manual_rnn import ManualRNN

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
def test_as_accurate_as_builtin_in_each_region(network, pack, region):
    """The dtypes of `nn.RNN` and an error like its own."""
    builtin, manual = twins(6, 8, **network)
    exact = one_step(copy.deepcopy(manual).double(), torch.float64, pack, (False, False))
    found, own = (one_step(rnn, torch.float32, pack, REGIONS[region]) for rnn in (manual, builtin))
    assert {k: x.dtype for k, x in found.items()} == {k: x.dtype for k, x in own.items()}
    assert_as_accurate(_rounded(found), _rounded(own), exact)


def _rounded(step: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of float32 weights computed in bfloat16 are judged as bfloat16."""
    return {name: x.bfloat16() for name, x in step.items()}


def test_complex_numbers_are_left_alone():
    rnn = ManualRNN(2, 3, dtype=torch.complex64)
    with autocast():
        output, h_n = rnn(torch.randn(3, 2, 2, dtype=torch.complex64))
    assert output.dtype == h_n.dtype == torch.complex64


def test_each_sample_s_gradient():
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


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weights", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_dtypes_and_errors_are_those_of_builtin(
    given: torch.dtype, weights: torch.dtype, lower: torch.dtype
) -> None:
    """The dtype of the result, or the type of the error; and gradients in the weights' own dtype.

    What is float64 throughout is left alone.
    """
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


def test_at_most_twice_the_error_of_builtin() -> None:
    builtin, manual = twins(4, 32, 2)
    input = torch.randn(9, 5, 4)
    exact = copy.deepcopy(builtin).double()(input.double())[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = error(manual(input)[0], exact), error(builtin(input)[0], exact)
    assert 0 < ours <= 2 * theirs


def test_switched_off_inside() -> None:
    rnn, input = ManualRNN(4, 6), torch.randn(5, 3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert rnn(input)[0].dtype == torch.float32


def test_tensors_without_numbers_are_left_alone() -> None:
    """torch knows no autocast for the device meta."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = (rnn(torch.empty(5, 3, 4, device="meta")) for rnn in twins(4, 6, device="meta"))
    for left, right in zip(found, expected, strict=True):
        assert (left.shape, left.dtype, left.device) == (right.shape, right.dtype, right.device)
