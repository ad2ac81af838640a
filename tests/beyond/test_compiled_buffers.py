r"""Buffers that are written to again around a call of compiled code; `nn.RNN` in eager mode judges."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import error, packed, twins
from torch import Tensor, nn

Run = Callable[[nn.Module, Callable[[Any], Any]], list[Tensor]]
NO_COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="inductor compiles C++, and there is no g++")
BACKENDS = pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NO_COMPILER)])
CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "copy_": lambda x: x.copy_(torch.ones_like(x)),
    "numpy": lambda x: x.numpy().fill(0),
    "data": lambda x: x.data.zero_(),
    "resize": lambda x: x.untyped_storage().resize_(0),
}
twins64 = {first: twins(3, 4, batch_first=first, dtype=torch.float64) for first in (True, False)}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Without graphs of another version of this package."""
    return str(tmp_path_factory.mktemp("inductor"))


@pytest.fixture(autouse=True)
def _fresh(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", cache)
    torch._dynamo.reset()


def gradients(output: Tensor, rnn: nn.Module, *more: Tensor) -> list[Tensor]:
    return list(
        torch.autograd.grad(output.sin().sum(), [p for p in rnn.parameters() if p.requires_grad] + [*more])
    )


def refilled(change: Callable[[Tensor], Any], transposed: bool) -> Run:
    def run(rnn: nn.Module, compile: Callable[[Any], Any]) -> list[Tensor]:
        buffer = torch.linspace(-1, 1, 2 * 3 * 3, dtype=torch.float64).view(2, 3, 3)
        output = compile(rnn)(buffer.transpose(0, 1) if transposed else buffer)[0]
        change(buffer)
        return gradients(output, rnn)

    return run


def edited_in_the_graph(rnn: nn.Module, compile: Callable[[Any], Any]) -> list[Tensor]:
    def step(buffer: Tensor) -> Tensor:
        output: Tensor = rnn(buffer)[0]
        buffer.add_(1)
        return output

    return gradients(compile(step)(torch.linspace(-1, 1, 18, dtype=torch.float64).view(2, 3, 3)), rnn)


class Stateful(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn
        self.state: Any = nn.Buffer(torch.full((1, 3, 4), 0.3, dtype=torch.float64))

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor
        output, h_n = self.rnn(input, self.state.clone())
        self.state.copy_(h_n.detach())
        return output


def stateful(rnn: nn.Module, compile: Callable[[Any], Any]) -> list[Tensor]:
    """A state that is a copy of a buffer, which takes the last one."""
    model = Stateful(rnn)
    return gradients(compile(model)(torch.linspace(-1, 1, 27, dtype=torch.float64).view(3, 3, 3)), rnn)


def state_without_backward(rnn: nn.Module, compile: Callable[[Any], Any]) -> list[Tensor]:
    def step(input: Tensor, state: Tensor) -> Tensor:
        output: Tensor
        output, h_n = rnn(input, state)
        state.copy_(h_n.detach())
        return output

    state = torch.full((1, 3, 4), 0.3, dtype=torch.float64)
    return [
        compile(step)(torch.linspace(-1, 1, 27, dtype=torch.float64).view(3, 3, 3), state).detach(),
        state,
    ]


CASES: dict[str, tuple[Run, bool]] = {
    **{f"{name}, batch_first": (refilled(change, False), True) for name, change in CHANGES.items()},
    **{f"{name}, transposed": (refilled(change, True), False) for name, change in CHANGES.items()},
    "edited in the graph": (edited_in_the_graph, True),
    "stateful": (stateful, False),
    "state without backward": (state_without_backward, False),
}


@BACKENDS
@pytest.mark.parametrize("name", CASES)
def test_what_a_buffer_held_at_the_call_counts(name: str, backend: str) -> None:
    run, first = CASES[name]
    builtin, manual = twins64[first]
    expected = run(builtin, lambda target: target)
    found = run(manual, lambda target: torch.compile(target, backend=backend, fullgraph=True))
    assert max(map(error, found, expected)) < 1e-12


@BACKENDS
@pytest.mark.parametrize("frozen", ["weight_hh", ""], ids=["weight_hh", "all"])
@pytest.mark.parametrize("form", ["padded", "packed"])
def test_a_gradient_of_hx_where_no_weight_that_reads_it_is_trained(
    form: str, frozen: str, backend: str
) -> None:
    found = []
    for rnn in twins(3, 4, 2, bidirectional=True, dtype=torch.float64):
        for name, weight in rnn.named_parameters():
            weight.requires_grad_(frozen not in name)
        hx = torch.linspace(-1, 1, 4 * 3 * 4, dtype=torch.float64).view(4, 3, 4).requires_grad_()
        input: Any = torch.linspace(-1, 1, 45, dtype=torch.float64).view(5, 3, 3)
        input = packed(input, [5, 4, 1]) if form == "packed" else input
        run = rnn if isinstance(rnn, nn.RNN) else torch.compile(rnn, backend=backend)
        output, h_n = run(input, hx)
        output = output.data if form == "packed" else output
        found.append([output, *gradients(torch.cat([output.flatten(), h_n.flatten()]), rnn, hx)])
    assert max(map(error, *found)) < 1e-12


def test_many_cotangents_at_once() -> None:
    found = []
    for rnn in twins(3, 4, 2, bidirectional=True, dtype=torch.float64):
        x = torch.linspace(-1, 1, 45, dtype=torch.float64).view(5, 3, 3).requires_grad_()
        run = rnn if isinstance(rnn, nn.RNN) else torch.compile(rnn, backend="aot_eager", fullgraph=True)
        output = run(x)[0]
        many = torch.eye(output.numel(), dtype=torch.float64).view(-1, *output.shape)
        found.append(torch.autograd.grad(output, x, many, is_grads_batched=True))
    assert max(map(error, *found)) < 1e-12
