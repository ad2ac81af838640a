r"""Nothing asks a card for its numbers, for which the processor would have to wait.

Tensors on meta have no numbers: whatever asks for them raises. Those of `batch_sizes` are on the CPU.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from internals import aten, elman, fast_path, linear_recurrence, triton_launch
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


@pytest.fixture
def _derivative_on_meta() -> Iterator[None]:
    """cuDNN's, of which torch has no shapes without a card."""

    def shapes(x: Tensor, flat: Any, stride: Any, buffer: Any, hx: Tensor, *_: Any) -> Any:
        return torch.empty_like(x), torch.empty_like(hx), None, list(map(torch.empty_like, flat))

    library = torch.library.Library("aten", "IMPL")
    library.impl("_cudnn_rnn_backward", shapes, "Meta")
    yield
    library._destroy()


@FORM
@pytest.mark.usefixtures("_derivative_on_meta")
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}], ids=str)
def test_by_cudnn(options: dict[str, Any], sizes: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but what cuDNN does itself."""
    monkeypatch.setattr(aten, "unsupported_reason", lambda *_: None)
    monkeypatch.setattr(aten, "by_cudnn", lambda _: True)
    rnn, (rows, _) = ManualRNN(3, 4, **options, **META), batch(sizes)
    leaves = [rows, *rnn.parameters()]
    found = fast_path._run(rnn, rows, None, sizes or ())
    assert found is not None
    torch.autograd.grad(found[0].sum() + found[1].sum(), leaves, retain_graph=True)
    gradients_twice(*found, leaves)


@FORM
def test_by_triton(sizes: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    class Kernel:
        def __getitem__(self, grid: tuple[int]) -> Any:
            return lambda *args, **how: launched.append(how["LINEAR"])

    monkeypatch.setattr(triton_launch, "_kernel", Kernel)
    monkeypatch.setattr(triton_launch, "unsupported_reason", lambda *_: None)
    rows, h0, w = batch(sizes)[0], torch.empty(3, 3, **META), torch.empty(3, 3, **META)
    how = None if sizes is None else torch.tensor(sizes), "tanh", True, "triton"
    h = elman(rows, h0, w, *how)
    linear_recurrence(rows, h, w, *how).sum().backward()
    assert launched == [False, True, True, True]
