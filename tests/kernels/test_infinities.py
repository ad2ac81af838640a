"""Infinities and NaN in inputs, weights and cotangents go where they go in nn.RNN, and nowhere else."""

import random
from typing import Any

import pytest
import torch
from internals import KernelName, kernels
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from manual_rnn import ManualRNN, use_kernel

SPECIAL = (torch.inf, -torch.inf, torch.nan)


def sprinkled(x: Tensor, choice: random.Random, chance: float) -> Tensor:
    """A copy of `x`, by chance with a few special values."""
    x = x.detach().clone()
    for _ in range(choice.choice([1, 1, 2, 4]) if choice.random() < chance and x.numel() else 0):
        x.view(-1)[choice.randrange(x.numel())] = choice.choice(SPECIAL)
    return x


def problem(seed: int) -> tuple[Any, ...]:
    """An nn.RNN, its input and initial states, lengths if packed, and cotangents."""
    choice = random.Random(seed)
    torch.manual_seed(seed)
    T, B, H = choice.choice([1, 2, 3, 5]), choice.choice([1, 2, 3, 7, 14]), choice.choice([1, 3, 8, 17])
    layers, both, chance = choice.choice([1, 1, 2]), choice.random() < 0.4, choice.choice([0.0, 0.15, 0.4])
    rnn = nn.RNN(choice.choice([1, 2, 5]), H, layers, choice.choice(["tanh", "relu"]), bidirectional=both)
    for parameter in rnn.parameters():
        parameter.data = sprinkled(parameter, choice, chance)
    x = sprinkled(torch.randn(T, B, rnn.input_size), choice, 0.25)
    h0 = sprinkled(torch.randn(layers * (1 + both), B, H), choice, 0.25)
    lengths = torch.tensor(sorted([T, *(choice.randint(1, T) for _ in range(B - 1))], reverse=True))
    packed = choice.random() < 0.5
    rows = (int(lengths.sum()),) if packed else (T, B)
    output = sprinkled(torch.randn(*rows, H * (1 + both)), choice, 0.7)
    cotangents = output, sprinkled(torch.randn(h0.shape), choice, 0.4)
    return rnn, x, h0 if choice.random() < 0.7 else None, lengths if packed else None, cotangents


def values_and_gradients(
    rnn: Any, x: Tensor, h0: Tensor | None, lengths: Tensor | None, cotangents: tuple[Tensor, Tensor]
) -> list[Tensor]:
    x = x.clone().requires_grad_()
    h0 = h0 if h0 is None else h0.clone().requires_grad_()
    output, h_n = rnn(x if lengths is None else pack_padded_sequence(x, lengths), h0)
    output = output if lengths is None else output.data
    wanted = [x, *([] if h0 is None else [h0]), *rnn.parameters()]
    return [output, h_n, *torch.autograd.grad([output, h_n], wanted, cotangents)]


@pytest.mark.parametrize("kernel", ["native", "torch"])
def test_go_where_they_go_in_nn_rnn(kernel: KernelName) -> None:
    if reason := kernels.KERNELS[kernel].unsupported_reason(torch.empty(0)):
        pytest.skip(reason)
    for seed in range(300):
        rnn, *given = problem(seed)
        ours = ManualRNN(
            rnn.input_size, rnn.hidden_size, rnn.num_layers, rnn.nonlinearity, bidirectional=rnn.bidirectional
        )
        ours.load_state_dict(rnn.state_dict())
        expected = values_and_gradients(rnn, *given)
        with use_kernel(kernel):
            found = values_and_gradients(ours, *given)
        for place, (a, b) in enumerate(zip(found, expected, strict=True)):
            same = torch.allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True)
            assert same, f"{seed=} {place=}"


def test_special_values_are_met() -> None:
    """Gradients among them are finite in part, so that spreading would show."""
    found = [values_and_gradients(*problem(seed))[2] for seed in range(300)]
    assert sum(bool(x.isfinite().any() and not x.isfinite().all()) for x in found) > 50
