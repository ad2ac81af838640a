r"""Packed batches through padded ones, as `vendor` may run them on CUDA: here by ATen, in float64."""

from typing import Any

import pytest
import torch
from helpers import PHI, assert_same, gradients, packed, twins
from internals import aten, kernels
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import gradgradcheck
from torch.nn.utils.rnn import PackedSequence

from manual_rnn import ManualRNN, use_kernel

OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3, "bias": False},
    {"num_layers": 2, "bidirectional": True},
    {"bidirectional": True, "batch_first": True},
]
LENGTHS = pytest.mark.parametrize("lengths", [[5], [4, 4], [5, 4, 4, 1], [1, 5, 2, 4]], ids=str)


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """With the rule switched on: the shapes of what ATen is given, none of it packed."""
    seen: list[tuple[int, ...]] = []

    def watched(run: Any) -> Any:
        def watch(x: Tensor, *args: Any) -> Any:
            seen.append(tuple(x.shape))
            return run(x, *args)

        return watch

    monkeypatch.setattr(kernels, "padding_pays", lambda *_: True)
    monkeypatch.setattr(aten, "RUN", {phi: watched(run) for phi, run in aten.RUN.items()})
    return seen


@PHI
@LENGTHS
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_gradient(options: dict[str, Any], lengths: list[int], nonlinearity: str, shapes: list) -> None:
    builtin, manual = twins(3, 4, nonlinearity=nonlinearity, dtype=torch.float64, **options)
    first, B, T = options.get("batch_first", False), len(lengths), max(lengths)
    shape = (B, T, 3) if first else (T, B, 3)
    input = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(len(builtin.all_weights), B, 4, dtype=torch.float64, requires_grad=True)
    pack = lambda x: packed(x, lengths, first)  # noqa: E731
    expected = gradients(builtin, input, hx, pack)
    with use_kernel("aten"):
        found = gradients(manual, input, hx, pack)
    assert_same(found, expected)
    assert {shape[:2] for shape in shapes} == {(T, B)}


@pytest.mark.parametrize("reverse", [False, True])
def test_what_follows_an_end_touches_nothing(reverse: bool, shapes: list) -> None:
    """A sequence with an infinity at its first step spoils no other."""
    rnn, others = ManualRNN(2, 3, bidirectional=reverse), torch.tensor([1, 2, 4])
    data = torch.randn(7, 2)
    data[0] = torch.inf
    with use_kernel("aten"):
        output = rnn(PackedSequence(data.requires_grad_(), torch.tensor([3, 2, 1, 1])))[0].data
    assert output[others].isfinite().all()
    assert torch.autograd.grad(output.sum(), data)[0][others].isfinite().all()


def test_a_second_derivative(shapes: list) -> None:
    rnn, sizes = ManualRNN(2, 3, dtype=torch.float64), torch.tensor([2, 2, 1])
    data = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    with use_kernel("aten"):
        assert gradgradcheck(lambda x: rnn(PackedSequence(x, sizes))[0].data, (data,))


def test_it_is_off_until_a_gpu_has_timed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = torch.tensor([2, 2, 1])

    def pays(H: int = 64, sizes: Tensor = sizes, phi: str = "tanh", device: str = "cuda") -> bool:
        N = int(sizes.sum())
        with FakeTensorMode():
            x, hx = torch.empty(N, 3, device=device), torch.empty(1, 2, H, device=device)
        return kernels.padding_pays(x, hx, sizes, phi)

    assert not pays()
    monkeypatch.setattr(kernels, "PADS_PACKED", True)
    assert pays()
    assert not pays(H=257)
    assert pays(sizes=torch.tensor([2, 1, 1]))
    assert not pays(phi="relu")
    assert not pays(device="cpu")
