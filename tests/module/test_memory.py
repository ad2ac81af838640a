r"""The memory of what goes in and comes out: strides, order, edits in place, a graph used twice."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from helpers import EVERY_OPTION, KERNELS, PHI, assert_same_results, error, packed, twins
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from manual_rnn import ManualRNN, use_kernel

LAYOUTS: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "padded": ({}, lambda: torch.randn(5, 3, 4)),
    "batch_first": ({"batch_first": True}, lambda: torch.randn(3, 5, 4)),
    "unbatched": ({}, lambda: torch.randn(5, 4)),
    "unbatched, batch_first": ({"batch_first": True}, lambda: torch.randn(5, 4)),
    "packed": ({}, lambda: packed(torch.randn(5, 3, 4), [5, 4, 2])),
    "a transposed input": ({}, lambda: torch.randn(3, 5, 4).transpose(0, 1)),
    "a transposed input, batch_first": ({"batch_first": True}, lambda: torch.randn(5, 3, 4).transpose(0, 1)),
    "one sequence": ({"batch_first": True}, lambda: torch.randn(1, 5, 4)),
    "one step": ({"batch_first": True}, lambda: torch.randn(3, 1, 4)),
}


@KERNELS
@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_are_those_of_builtin(layout: str, num_layers: int, bidirectional: bool, kernel: str) -> None:
    options, draw = LAYOUTS[layout]
    builtin, manual = twins(4, 6, num_layers, bidirectional=bidirectional, **options)
    input = draw()
    with use_kernel(kernel):
        found = manual(input)
    for left, right in zip(found, builtin(input), strict=True):
        left, right = (x.data if isinstance(x, PackedSequence) else x for x in (left, right))
        assert left.shape == right.shape
        assert left.stride() == right.stride()


def test_a_packed_output_keeps_the_order() -> None:
    """Of the rows in the packed output, and of the sequences in `h_n`."""
    builtin, manual = twins(4, 6, 2, bidirectional=True)
    input = packed(torch.randn(5, 3, 4), [2, 5, 3])
    (found, h_n), (expected, expected_h_n) = manual(input), builtin(input)
    assert isinstance(found, PackedSequence)
    assert_same_results((found.data, h_n), (expected.data, expected_h_n))
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@KERNELS
@EVERY_OPTION
def test_h_n_is_memory_of_its_own(options: dict[str, Any], kernel: str) -> None:
    rnn = ManualRNN(4, 6, **options)
    with use_kernel(kernel) if options.get("dtype") is None else use_kernel("default"):
        output, h_n = rnn(torch.randn(5, 3, 4, dtype=options.get("dtype")))
    before = output.detach().clone()
    assert output.untyped_storage().data_ptr() != h_n.untyped_storage().data_ptr()
    h_n.detach_().zero_()
    assert torch.equal(output, before)
    assert not h_n.requires_grad
    assert output.requires_grad


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}], ids=str)
def test_output_can_be_detached_in_place(options: dict[str, Any]) -> None:
    output, h_n = ManualRNN(4, 6, **options)(torch.randn(5, 3, 4))
    output.detach_()
    h_n.sum().backward()


@KERNELS
@PHI
@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True}, {"num_layers": 2, "bidirectional": True}], ids=str
)
def test_editing_the_output_in_place_is_noticed_or_survives(
    options: dict[str, Any], nonlinearity: str, kernel: str
) -> None:
    """A fused kernel differentiates by its output, and so must notice; `nn.RNN` on a GPU does."""
    builtin, manual = twins(4, 6, nonlinearity=nonlinearity, **options)
    input = torch.randn(5, 3, 4, requires_grad=True)

    def run(rnn: nn.Module) -> list[Tensor]:
        output, h_n = rnn(input)
        output.mul_(2)
        return list(torch.autograd.grad(output.sum() + h_n.square().sum(), [input, *rnn.parameters()]))

    expected = run(builtin)
    fused_to_the_end = kernel != "reference" and not options.get("bidirectional")
    notices = pytest.raises(RuntimeError, match="modified by an inplace operation")
    with use_kernel(kernel), notices if fused_to_the_end else nullcontext():
        assert max(map(error, run(manual), expected)) < 2e-6


@KERNELS
def test_editing_h_n_in_place_survives(kernel: str) -> None:
    builtin, manual = twins(4, 6)
    input = torch.randn(5, 3, 4, requires_grad=True)
    found = []
    for rnn in (builtin, manual):
        with use_kernel(kernel):
            output, h_n = rnn(input)
        h_n.mul_(3)
        found.append(torch.autograd.grad(output.sum() + h_n.sum(), [input, *rnn.parameters()]))
    assert max(map(error, *found)) < 2e-6


@KERNELS
@pytest.mark.parametrize("edited", ["input", "hx", "weight_hh_l0"])
def test_editing_an_argument_before_backward_raises(edited: str, kernel: str) -> None:
    for rnn in twins(4, 6):
        arguments = {"input": torch.randn(5, 3, 4), "hx": torch.randn(1, 3, 6)}
        with use_kernel(kernel):
            output, _ = rnn(**arguments)
        with torch.no_grad():
            (arguments | dict(rnn.named_parameters()))[edited].zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


@KERNELS
def test_backward_twice(kernel: str) -> None:
    """With `retain_graph` the same gradient again; without, torch's own error."""
    rnn, input = ManualRNN(4, 6, 2), torch.randn(5, 3, 4, requires_grad=True)
    with use_kernel(kernel):
        output, _ = rnn(input)
    first = torch.autograd.grad(output.sum(), input, retain_graph=True)
    second = torch.autograd.grad(output.sum(), input)
    assert torch.equal(first[0], second[0])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(output.sum(), input)
