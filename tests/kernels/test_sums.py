r"""Gradients that are sums over many rows: as exact as those of `nn.RNN`, whose products add in blocks."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from helpers import error
from internals import KernelName
from torch import Tensor, nn

from manual_rnn import ManualRNN, use_kernel

CASES: list[tuple[tuple[int, int, int, int], dict[str, Any]]] = [
    ((2, 300_000, 8, 8), {"nonlinearity": "relu"}),
    ((20, 100_000, 4, 8), {"nonlinearity": "relu"}),
    ((20, 5_000, 16, 33), {"nonlinearity": "relu"}),  # shared among threads by rows
    ((5, 5_000, 16, 32), {"bidirectional": True}),
    ((3_000, 32, 8, 16), {}),
    ((1, 1_000_000, 4, 4), {}),
]
EACH = pytest.mark.parametrize(("sizes", "options"), CASES, ids=str)


def weight_gradients(rnn: nn.Module, x: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    grads = torch.autograd.grad((rnn(x)[0] * cotangent).sum(), list(rnn.parameters()))
    return dict(zip((name for name, _ in rnn.named_parameters()), grads, strict=True))


def relative(found: dict[str, Tensor], exact: dict[str, Tensor], name: str) -> float:
    """In units of the largest exact magnitude."""
    scale = exact[name].abs().max()
    return error(found[name] / scale, exact[name] / scale) if scale else 0.0


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("kernel", ["default", "native"])
def test_sums_of_many_rows(
    sizes: tuple[int, int, int, int], options: dict[str, Any], kernel: KernelName
) -> None:
    """At most twice the error of `nn.RNN` in float32, or one unit in the last place."""
    T, B, I, H = sizes  # noqa: E741
    builtin: Any = nn.RNN(I, H, **options)
    manual = ManualRNN.from_builtin(builtin)
    x, cotangent = torch.randn(T, B, I), torch.rand(T, B, H * (1 + builtin.bidirectional))
    exact = weight_gradients(deepcopy(builtin).double(), x.double(), cotangent.double())
    expected = weight_gradients(builtin, x, cotangent)
    with use_kernel(kernel):
        found = weight_gradients(manual, x, cotangent)
    for name in exact:
        off, allowed = relative(found, exact, name), max(2 * relative(expected, exact, name), 1.2e-7)
        assert off <= allowed, f"{name}: off by {off:.2g}, nn.RNN by {allowed / 2:.2g}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(20, 500, 16, 33), (3, 3000, 5, 8), (900, 4, 40, 70)], ids=str)
def test_no_number_of_threads_changes_a_bit(sizes: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    T, B, I, H = sizes  # noqa: E741
    rnn = ManualRNN(I, H, 2, bidirectional=True, dtype=dtype)
    x, cotangent = torch.randn(T, B, I).to(dtype), torch.randn(T, B, 2 * H).to(dtype)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(weight_gradients(rnn, x, cotangent))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(other[name], found[0][name]) for name in found[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_infinite_sum_stays_infinite(dtype: torch.dtype) -> None:
    """The rounding error of an infinite sum is no number."""
    found = []
    for kind in (nn.RNN, ManualRNN):
        torch.manual_seed(0)
        rnn: Any = kind(3, 4, nonlinearity="relu", dtype=dtype)
        x, cotangent = torch.randn(1, 6000, 3, dtype=dtype), torch.ones(1, 6000, 4, dtype=dtype)
        cotangent[0, 10] = torch.inf
        found.append(weight_gradients(rnn, x, cotangent))
    for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
        builtin, manual = (f[name] for f in found)
        assert torch.isinf(builtin).any()
        assert torch.equal(manual.isinf(), builtin.isinf())
        assert torch.equal(manual.isnan(), builtin.isnan())
