r"""Packed sequences: their order, and each of them as if alone."""

import pytest
import torch
from helpers import KERNELS, assert_same, assert_same_results, gradients, packed, twins
from internals import KernelName
from situations import Loud
from torch import Tensor
from torch.func import functionalize
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from manual_rnn import ManualRNN, use_kernel


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
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [[5, 3, 3, 1], [1, 4, 2, 5], [2, 2, 2, 2]])
def test_a_packed_batch_equals_each_sequence_alone(
    lengths: list[int], bidirectional: bool, kernel: KernelName
) -> None:
    rnn = ManualRNN(4, 6, num_layers=2, bidirectional=bidirectional)
    input, hx = torch.randn(max(lengths), 4, 4), torch.randn(4 if bidirectional else 2, 4, 6)
    with use_kernel(kernel):
        output, h_n = rnn(packed(input, lengths), hx)
        padded, _ = pad_packed_sequence(output)
        for b, length in enumerate(lengths):
            alone, alone_h_n = rnn(input[:length, b], hx[:, b])
            assert_same_results((padded[:length, b], h_n[:, b]), (alone, alone_h_n), 2e-6)
            assert not padded[length:, b].any()


@KERNELS
def test_batch_sizes_of_two_axes(kernel: KernelName) -> None:
    """One that was built by hand, which PyTorch up to 2.14 reads by its numbers; then it refuses it."""
    builtin, manual = twins(4, 6, 2)
    input = PackedSequence(torch.randn(6, 4), torch.tensor([[3], [2], [1]]))
    expected, expected_h_n = builtin(PackedSequence(input.data, input.batch_sizes.flatten()))
    with use_kernel(kernel):
        found, h_n = manual(input)
    assert_same_results((found.data, h_n), (expected.data, expected_h_n))
    assert found.batch_sizes is input.batch_sizes


@KERNELS
@pytest.mark.parametrize("lengths", [[5, 3, 2], [2, 5, 3], [1, 1, 1]])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_where_mutations_are_taken_out(
    bidirectional: bool, lengths: list[int], kernel: KernelName
) -> None:
    """`functionalize` wraps `batch_sizes` too, in a tensor without memory."""
    builtin, manual = twins(4, 6, 2, bidirectional=bidirectional)
    input, hx = torch.randn(max(lengths), 3, 4), torch.randn(4 if bidirectional else 2, 3, 6)

    def run(rnn: torch.nn.Module, input: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor]:
        output, h_n = rnn(packed(input, lengths), *([] if hx is None else [hx]))
        return pad_packed_sequence(output)[0].sin_(), h_n

    for state in (None, hx):
        expected = functionalize(run)(builtin, input, state)
        with use_kernel(kernel):
            found = functionalize(run)(manual, input, state)
        assert_same_results(found, expected)


class Count(Tensor):
    """A subclass that changes nothing."""


@KERNELS
@pytest.mark.parametrize("kind", [Count, Loud])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_rows_that_a_subclass_counts(bidirectional: bool, kind: type[Tensor], kernel: KernelName) -> None:
    """By default it is the results' class too, as of `nn.RNN`."""
    builtin, manual = twins(4, 6, 2, bidirectional=bidirectional)
    sizes = torch.tensor([3, 2, 2]).as_subclass(kind)
    x = torch.randn(7, 4)
    expected = gradients(builtin, x, pack=lambda x: PackedSequence(x, sizes))
    with use_kernel(kernel):
        found = gradients(manual, x, pack=lambda x: PackedSequence(x, sizes))
    assert_same(found, expected, 2e-6)
    for wanted in (False, True):
        with torch.set_grad_enabled(wanted):
            output, h_n = manual(PackedSequence(x, sizes))
        assert (type(output.data), type(h_n)) == (kind, kind)
