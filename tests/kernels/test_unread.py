r"""Nothing asks a card for its numbers, for which the processor would have to wait.

Tensors on meta have no numbers: whatever asks for them raises. Those of `batch_sizes` are on the CPU.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from internals import Network, elman, linear_recurrence, triton_scan, vendor
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from manual_rnn import KernelName, ManualRNN, use_kernel

META: dict[str, Any] = {"device": "meta"}
FORM = pytest.mark.parametrize("sizes", [None, [3, 2, 1]], ids=str)


@pytest.mark.parametrize("ask", [Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.__bool__, Tensor.__int__])
def test_meta_tells(ask: Callable[[Tensor], Any]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        ask(torch.zeros((), **META))


def batch(sizes: list[int] | None) -> tuple[Tensor, Any]:
    """Rows that want a gradient, and how a module takes them."""
    rows = torch.empty(*((4, 3) if sizes is None else (sum(sizes),)), 3, **META).requires_grad_()
    return rows, rows if sizes is None else PackedSequence(rows, torch.tensor(sizes))


def gradients_twice(output: Any, h_n: Tensor, leaves: list[Tensor]) -> None:
    output = output.data if isinstance(output, PackedSequence) else output
    first = torch.autograd.grad(output.sin().sum() + h_n.sum(), leaves, create_graph=True)
    torch.autograd.grad([g.sin().sum() for g in first], leaves, allow_unused=True)


@FORM
@pytest.mark.parametrize("kernel", ["torch", "default"])
def test_by_the_loop(kernel: KernelName, sizes: list[int] | None) -> None:
    rnn, (rows, given) = ManualRNN(3, 4, 2, bidirectional=True, **META), batch(sizes)
    with use_kernel(kernel):
        output, h_n = rnn(given)
    gradients_twice(output, h_n, [rows, *rnn.parameters()])


@FORM
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}], ids=str)
def test_by_cudnn(options: dict[str, Any], sizes: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but what cuDNN does itself."""

    def forward(
        x: Tensor, hx: Tensor, flat: Any, bias: bool, sizes: Any, phi: str, two: bool, _: bool
    ) -> Any:
        output = x.new_empty(*x.shape[:-1], hx.size(-1) * (1 + two))
        return output, torch.empty_like(hx), x.new_empty(7), vendor._one_buffer(flat, bias)

    def backward(x: Tensor, hx: Tensor, flat: Any, *_: Any) -> Any:
        return torch.empty_like(x), torch.empty_like(hx), list(map(torch.empty_like, flat))

    monkeypatch.setattr(vendor, "cudnn_forward", forward)
    monkeypatch.setattr(vendor, "cudnn_backward", backward)
    rnn, (rows, _) = ManualRNN(3, 4, **options, **META), batch(sizes)
    hx, leaves = torch.empty(len(rnn.all_weights), 3, 4, **META), [rows, *rnn.parameters()]
    how = rnn.bias, None if sizes is None else torch.tensor(sizes), "tanh", rnn.bidirectional
    for again in (False, True):
        output, h_n = Network.apply(how, rows, hx, *rnn.parameters())
        if again:
            gradients_twice(output, h_n, leaves)
        else:
            torch.autograd.grad(output.sum() + h_n.sum(), leaves)


@FORM
def test_by_triton(sizes: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    class Kernel:
        def __getitem__(self, grid: tuple[int]) -> Any:
            return lambda *args, **how: launched.append(how["LINEAR"])

    monkeypatch.setattr(triton_scan, "_kernel", Kernel)
    monkeypatch.setattr(triton_scan, "why_not", lambda *_: None)
    rows, h0, w = batch(sizes)[0], torch.empty(3, 3, **META), torch.empty(3, 3, **META)
    how = None if sizes is None else torch.tensor(sizes), "tanh", True, "triton"
    h = elman(rows, h0, w, *how)
    linear_recurrence(rows, h, w, *how).sum().backward()
    assert launched == [False, True, True, True]
