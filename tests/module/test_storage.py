r"""Tensors whose storage was resized to less than they span: PyTorch's own error, before anything is read."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import kernels_for
from internals import OPS, KernelName, elman, linear_recurrence
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence

from manual_rnn import ManualRNN, use_kernel

OURS = [  # the vendor's and the reference's memory is read by PyTorch's own operations alone
    (kernel, dtype)
    for dtype in (torch.float32, torch.float64)
    for kernel in [*kernels_for(dtype), "default"]
    if kernel not in ("aten", "reference", "default") or (kernel, dtype) == ("default", torch.float32)
]
EVERY_KERNEL = pytest.mark.parametrize(("kernel", "dtype"), OURS, ids=str)
WEIGHTS = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
SHRINK: dict[str, Callable[[Tensor], Any]] = {
    "nothing left": lambda x: x.untyped_storage().resize_(0),
    "one number": lambda x: x.untyped_storage().resize_(x.element_size()),
    "one number less": lambda x: x.untyped_storage().resize_(x.untyped_storage().nbytes() - x.element_size()),
}
EVERY_LOSS = pytest.mark.parametrize("shrink", SHRINK)
REFUSED = pytest.raises(RuntimeError, match="out of bounds for storage of size")


def drawn(dtype: torch.dtype, H: int = 6) -> tuple[ManualRNN, dict[str, Tensor]]:
    rnn = ManualRNN(4, H, dtype=dtype)
    tensors = {"input": torch.randn(12, 3, 4, dtype=dtype), "hx": torch.randn(1, 3, H, dtype=dtype)}
    return rnn, tensors | dict(rnn.named_parameters())


@EVERY_KERNEL
@EVERY_LOSS
@pytest.mark.parametrize("H", [6, 300])
@pytest.mark.parametrize("name", ["input", "hx", *WEIGHTS])
def test_before_forward(name: str, H: int, shrink: str, kernel: KernelName, dtype: torch.dtype) -> None:
    rnn, tensors = drawn(dtype, H)
    SHRINK[shrink](tensors[name])
    with use_kernel(kernel), REFUSED:
        rnn(tensors["input"], tensors["hx"])


@EVERY_KERNEL
@EVERY_LOSS
@pytest.mark.parametrize("name", ["input", "weight_ih_l0", "weight_hh_l0"])
def test_between_forward_and_backward(name: str, shrink: str, kernel: KernelName, dtype: torch.dtype) -> None:
    rnn, tensors = drawn(dtype)
    tensors["input"].requires_grad_()
    with use_kernel(kernel):
        output, _ = rnn(tensors["input"], tensors["hx"])
    SHRINK[shrink](tensors[name])
    with REFUSED:
        output.sum().backward()


@EVERY_KERNEL
@EVERY_LOSS
def test_a_result_may_go(shrink: str, kernel: KernelName, dtype: torch.dtype) -> None:
    """As with `nn.RNN` the gradient of `h_n` needs no `output`."""
    rnn, tensors = drawn(dtype)
    with use_kernel(kernel):
        expected = torch.autograd.grad(rnn(tensors["input"])[1].sum(), list(rnn.parameters()))
        output, h_n = rnn(tensors["input"])
    SHRINK[shrink](output)
    assert all(map(torch.equal, torch.autograd.grad(h_n.sum(), list(rnn.parameters())), expected))


@EVERY_KERNEL
def test_a_view_past_the_end(kernel: KernelName, dtype: torch.dtype) -> None:
    """Enough memory for its numbers, but not where they lie."""
    rnn, tensors = drawn(dtype)
    for name in ("input", *WEIGHTS):
        x = tensors[name].detach()
        after = torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape)
        given = {**tensors, name: after}
        assert run_with(rnn, given, kernel).shape == (12, 3, 6)
        after.untyped_storage().resize_(x.nbytes)
        with REFUSED:
            run_with(rnn, given, kernel)


def run_with(rnn: ManualRNN, given: dict[str, Tensor], kernel: KernelName) -> Tensor:
    with use_kernel(kernel):
        return functional_call(rnn, {name: given[name] for name in WEIGHTS}, (given["input"],))[0]


@EVERY_KERNEL
@EVERY_LOSS
def test_batch_sizes(shrink: str, kernel: KernelName, dtype: torch.dtype) -> None:
    rnn, tensors = drawn(dtype)
    packed = pack_padded_sequence(tensors["input"], torch.tensor([12, 7, 7]))
    h = torch.randn(len(packed.data), 6, dtype=dtype)
    SHRINK[shrink](packed.batch_sizes)
    with use_kernel(kernel), REFUSED:
        rnn(packed)
    w, how = torch.randn(6, 6, dtype=dtype), (packed.batch_sizes, "tanh", False, kernel)
    for run in (elman, OPS.elman):
        with REFUSED:
            run(h, h[:3], w, *how)
    for run in (linear_recurrence, OPS.linear_recurrence):
        with REFUSED:
            run(h, h, w, *how)
