r"""The memory of what comes out: strides, and no storage shared."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import EVERY_OPTION, KERNELS, packed, twins
from internals import KernelName
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
def test_strides_are_those_of_builtin(
    layout: str, num_layers: int, bidirectional: bool, kernel: KernelName
) -> None:
    options, draw = LAYOUTS[layout]
    builtin, manual = twins(4, 6, num_layers, bidirectional=bidirectional, **options)
    input = draw()
    with use_kernel(kernel):
        found = manual(input)
    for left, right in zip(found, builtin(input), strict=True):
        left, right = (x.data if isinstance(x, PackedSequence) else x for x in (left, right))
        assert left.shape == right.shape
        assert left.stride() == right.stride()


@KERNELS
@EVERY_OPTION
def test_h_n_is_memory_of_its_own(options: dict[str, Any], kernel: KernelName) -> None:
    rnn = ManualRNN(4, 6, **options)
    with use_kernel(kernel) if options.get("dtype") is None else use_kernel("default"):
        output, h_n = rnn(torch.randn(5, 3, 4, dtype=options.get("dtype")))
    before = output.detach().clone()
    assert output.untyped_storage().data_ptr() != h_n.untyped_storage().data_ptr()
    h_n.detach_().zero_()
    assert torch.equal(output, before)
    assert not h_n.requires_grad
    assert output.requires_grad
