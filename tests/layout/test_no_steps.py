r"""Sequences without steps: an empty output, and the state comes back."""

from typing import Any

import pytest
import torch
from helpers import kernels_for
from internals import KernelName
from loop import NETWORKS, build, case_id

from manual_rnn import ManualRNN, use_kernel

RUNS = [("default", torch.float64), *((kernel, torch.float32) for kernel in kernels_for(torch.float32))]


@pytest.mark.parametrize(("kernel", "dtype"), RUNS, ids=str)
@pytest.mark.parametrize("shape", [(0, 4, 2), (0, 2)], ids=["batched", "unbatched"])
@pytest.mark.parametrize("network", NETWORKS, ids=case_id)
def test_no_steps(
    network: dict[str, Any], shape: tuple[int, ...], kernel: KernelName, dtype: torch.dtype
) -> None:
    """An empty output, `h_n = hx`, and the gradient of `h_n` arrives at `hx`."""
    rnn, directions = build(ManualRNN, network, dtype=dtype), 1 + network["bidirectional"]
    input = torch.zeros(shape, dtype=dtype, requires_grad=True)
    states = (network["num_layers"] * directions, *shape[1:-1], 3)
    hx = torch.randn(states, dtype=dtype, requires_grad=True)
    with use_kernel(kernel):
        output, h_n = rnn(input, hx)
        assert output.shape == (*shape[:-1], 3 * directions)
        assert torch.equal(h_n, hx)
        (output.sum() + (2 * h_n).sum()).backward()
        assert hx.grad is not None
        assert (hx.grad == 2).all()
        assert rnn(torch.zeros(shape, dtype=dtype))[1].abs().max() == 0
