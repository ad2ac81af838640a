r"""Many cotangents at once, by PyTorch's older `vmap`: `is_grads_batched` and `vectorize=True`."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import PHI, assert_same, kernels_for, packed, twins
from internals import KernelName
from loop import NETWORKS, Loop, build, sample
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian

from manual_rnn import ManualRNN, use_kernel

BATCHED = [("default", torch.float64, 1e-12), *((k, torch.float32, 2e-6) for k in kernels_for(torch.float32))]


@pytest.mark.parametrize(("kernel", "dtype", "bound"), BATCHED, ids=str)
@PHI
def test_is_grads_batched(nonlinearity: str, kernel: KernelName, dtype: torch.dtype, bound: float) -> None:
    """PyTorch's older `vmap`, against the judge and `nn.RNN`."""
    network = NETWORKS[-2] | {"nonlinearity": nonlinearity}
    generator = torch.Generator().manual_seed(0)
    cotangents = torch.randn(7, 3, 2, 6, generator=generator, dtype=dtype)
    results = []
    for kind in (ManualRNN, Loop, nn.RNN):
        rnn = build(kind, network, dtype=dtype)
        input, hx = (x.to(dtype).requires_grad_() for x in sample(network, "batched"))
        named = {"input": input, "hx": hx, **dict(rnn.named_parameters())}
        with use_kernel(kernel):
            output, _ = rnn(input, hx)
        grads = torch.autograd.grad(output, list(named.values()), cotangents, is_grads_batched=True)
        results.append(dict(zip(named, grads, strict=True)))
    found, *others = results
    for expected in others:
        assert_same(found, expected, bound)


def padded_output(rnn: nn.Module, x: Tensor, hx: Tensor) -> Tensor:
    return rnn(x, hx)[0]


def packed_output(rnn: nn.Module, x: Tensor, hx: Tensor) -> Tensor:
    return rnn(packed(x, [2, 3]), hx)[0].data


def last_states(rnn: nn.Module, x: Tensor, hx: Tensor) -> Tensor:
    return rnn(x, hx)[1]


@pytest.mark.parametrize("of", [padded_output, packed_output, last_states])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_vectorized_jacobian(dtype: torch.dtype, of: Callable[..., Tensor]) -> None:
    builtin, manual = twins(2, 3, num_layers=2, bidirectional=True, dtype=dtype)
    given = torch.randn(3, 2, 2, dtype=dtype), torch.randn(4, 2, 3, dtype=dtype)
    names = ("by input", "by hx")
    found, expected = (
        dict(zip(names, jacobian(lambda x, hx, rnn=rnn: of(rnn, x, hx), given, vectorize=True), strict=True))
        for rnn in (manual, builtin)
    )
    assert_same(found, expected, 1e-12 if dtype == torch.float64 else 2e-6)


def test_vectorized_hessian() -> None:
    builtin, manual = twins(2, 3, num_layers=2, bidirectional=True, dtype=torch.float64)
    x, hx = torch.randn(3, 2, 2, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)
    found, expected = (
        hessian(lambda x, rnn=rnn: rnn(x, hx)[0].sin().sum(), x, vectorize=True) for rnn in (manual, builtin)
    )
    assert_same({"hessian": found}, {"hessian": expected})


@pytest.fixture
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_as_fast_as_nn_rnn_within_reason() -> None:
    """C would throw at such a cotangent, for 5 to 13 ms: of twenty the best was 12 times as long."""
    best: dict[type[Any], float] = {}
    for rnn in twins(3, 4) * 20:
        x = torch.randn(5, 2, 3, requires_grad=True)
        output, _ = rnn(x)
        cotangents, leaves = torch.randn(7, *output.shape), [x, *rnn.parameters()]
        start = time.perf_counter()
        torch.autograd.grad(output, leaves, cotangents, is_grads_batched=True)
        spent = time.perf_counter() - start
        best[type(rnn)] = min(spent, best.get(type(rnn), spent))
    assert best[ManualRNN] < 4 * best[nn.RNN], best
