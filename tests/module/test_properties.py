r"""What must hold of any RNN, whatever `nn.RNN` says."""

from collections.abc import Iterator

import pytest
import torch
from helpers import assert_same, kernels_for
from torch import Tensor

from manual_rnn import ManualRNN, use_kernel

KERNELS = kernels_for(torch.float32)
TOLERANCE = 2e-6


def small_rnn(bidirectional: bool = False) -> ManualRNN:
    return ManualRNN(4, 6, num_layers=2, bidirectional=bidirectional)


@pytest.fixture(params=KERNELS, autouse=True)
def _each_kernel(request: pytest.FixtureRequest) -> Iterator[None]:
    with use_kernel(request.param):
        yield


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert_same({"result": found}, {"result": expected}, TOLERANCE)


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_two_segments_with_carried_state_equal_one_run(cut: int) -> None:
    rnn, input, hx = small_rnn(), torch.randn(7, 3, 4), torch.randn(2, 3, 6)
    output, h_n = rnn(input, hx)
    first, carried = rnn(input[:cut], hx)
    second, last = rnn(input[cut:], carried)
    assert_close(torch.cat([first, second]), output)
    assert_close(last, h_n)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_permuting_the_batch_permutes_the_result(bidirectional: bool) -> None:
    rnn, order = small_rnn(bidirectional=bidirectional), torch.tensor([2, 0, 3, 1])
    input, hx = torch.randn(5, 4, 4), torch.randn(4 if bidirectional else 2, 4, 6)
    output, h_n = rnn(input, hx)
    permuted, permuted_h_n = rnn(input[:, order], hx[:, order])
    assert_close(permuted, output[:, order])
    assert_close(permuted_h_n, h_n[:, order])


def test_reversing_time_swaps_the_directions() -> None:
    rnn, mirror = (ManualRNN(4, 6, bidirectional=True) for _ in range(2))
    flip = {name: name + "_reverse" for name in rnn.state_dict() if not name.endswith("_reverse")}
    flip |= {reverse: name for name, reverse in flip.items()}
    mirror.load_state_dict({flip[name]: value for name, value in rnn.state_dict().items()})
    input, hx = torch.randn(5, 3, 4), torch.randn(2, 3, 6)
    output, h_n = rnn(input, hx)
    mirrored, mirrored_h_n = mirror(input.flip(0), hx.flip(0))
    assert_close(mirrored.flip(0).roll(6, dims=-1), output)
    assert_close(mirrored_h_n.flip(0), h_n)


def test_a_future_input_changes_no_earlier_output() -> None:
    rnn, input = small_rnn(), torch.randn(5, 3, 4)
    output, _ = rnn(input)
    changed = input.clone()
    changed[3] += 1
    later, _ = rnn(changed)
    assert torch.equal(later[:3], output[:3])
    assert not torch.equal(later[3], output[3])


def test_sequences_of_a_batch_do_not_mix() -> None:
    rnn, input = small_rnn(bidirectional=True), torch.randn(5, 3, 4, requires_grad=True)
    output, _ = rnn(input)
    (dinput,) = torch.autograd.grad(output[:, 1].sum(), input)
    assert not dinput[:, [0, 2]].any()
    assert dinput[:, 1].all()


def test_the_same_call_gives_the_same_bits_and_changes_nothing() -> None:
    rnn, input, hx = small_rnn(), torch.randn(5, 3, 4), torch.randn(2, 3, 6)
    before = {name: value.clone() for name, value in rnn.state_dict().items()}
    copies = input.clone(), hx.clone()
    first, second = rnn(input, hx), rnn(input, hx)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(input, copies[0])
    assert torch.equal(hx, copies[1])
    assert_same(rnn.state_dict(), before, bound=0)
