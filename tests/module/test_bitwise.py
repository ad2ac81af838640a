r"""The reference kernel equals `nn.RNN` on a CPU to the last bit: outputs and every gradient."""

from itertools import product
from typing import Any

import pytest
import torch
from helpers import assert_same, gradients, packed, twins
from internals import KernelName
from torch import Tensor, nn

from manual_rnn import use_kernel

CASES = list(product(("tanh", "relu"), (1, 2, 3), (False, True), (torch.float32, torch.float64)))


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("layout", ["padded", "batch_first", "unbatched", "sorted", "unsorted"])
@pytest.mark.parametrize(("nonlinearity", "num_layers", "bidirectional", "dtype"), CASES)
def test_outputs_and_gradients_are_bitwise_equal(
    nonlinearity: str, num_layers: int, bidirectional: bool, dtype: torch.dtype, layout: str
) -> None:
    """With dropout between the layers: the same seed gives the same masks."""
    builtin, manual = twins(
        7,
        16,
        num_layers,
        nonlinearity,
        batch_first=layout == "batch_first",
        dropout=0.3 if num_layers > 1 else 0.0,
        bidirectional=bidirectional,
        dtype=dtype,
    )
    LD = num_layers * (1 + bidirectional)
    given: dict[str, Any] = {"input": draw(9, 5, 7, dtype=dtype), "hx": draw(LD, 5, 16, dtype=dtype)}
    if layout == "batch_first":
        given["input"] = draw(5, 9, 7, dtype=dtype)
    if layout == "unbatched":
        given = {"input": draw(9, 7, dtype=dtype), "hx": draw(LD, 16, dtype=dtype)}
    if layout in ("sorted", "unsorted"):
        lengths = [9, 6, 6, 3, 1] if layout == "sorted" else [3, 9, 1, 6, 6]
        given["pack"] = lambda input: packed(input, lengths)
    with use_kernel("reference"):
        found = gradients(manual, **given)
    assert_same(found, gradients(builtin, **given), bound=0)


@pytest.mark.parametrize(
    ("nonlinearity", "bias", "training"), list(product(("tanh", "relu"), (True, False), (True, False)))
)
def test_without_bias_or_state_and_in_eval(nonlinearity: str, bias: bool, training: bool) -> None:
    builtin, manual = twins(7, 16, 2, nonlinearity, bias, dropout=0.5, bidirectional=True)
    builtin.train(training)
    manual.train(training)
    input = draw(9, 5, 7, dtype=torch.float32)
    with use_kernel("reference"):
        found = gradients(manual, input)
    assert_same(found, gradients(builtin, input), bound=0)


def test_twenty_steps_of_training_stay_bitwise_equal() -> None:
    builtin, manual = twins(3, 8, 2, dropout=0.2, bidirectional=True)
    histories = []
    runs: list[tuple[nn.Module, KernelName]] = [(builtin, "default"), (manual, "reference")]
    for rnn, kernel in runs:
        torch.manual_seed(5)
        optimizer = torch.optim.Adam(rnn.parameters(), lr=0.01)
        losses = []
        with use_kernel(kernel):
            for _ in range(20):
                output, h_n = rnn(torch.randn(6, 4, 3))
                loss = output.square().mean() + h_n.sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        histories.append(losses)
    assert histories[0] == histories[1]
    assert_same(dict(manual.named_parameters()), dict(builtin.named_parameters()), bound=0)
