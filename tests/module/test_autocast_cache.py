r"""Steps under autocast: weights are cast once in a block, as by `nn.RNN`, and gradients reach them."""

from typing import Any

import pytest
import torch
from helpers import assert_same, twins
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from manual_rnn import ManualRNN
from manual_rnn.inspect import trace

pytestmark = pytest.mark.users_lengths


class Casts(TorchDispatchMode):
    """How many matrices are cast."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].shape == (4, 4):
            self.count += 1
        return func(*args, **(kwargs or {}))


def stepped(rnn: Any, x: Tensor, calls: int = 6) -> tuple[Tensor, Tensor]:
    h, outputs = None, []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(calls):
            output, h = rnn(x, h)
            outputs.append(output)
    return torch.stack(outputs), h  # type: ignore[return-value]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch_first": True},
    {"num_layers": 2, "bidirectional": True, "bias": False},
]


@pytest.mark.parametrize("recorded", [True, False], ids=["", "no_grad"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_as_many_casts_as_a_builtin(options: dict[str, Any], steps: int, recorded: bool) -> None:
    found = []
    for rnn in twins(4, 4, **options):
        x = torch.randn((3, steps, 4) if rnn.batch_first else (steps, 3, 4))
        with torch.set_grad_enabled(recorded), Casts() as casts:
            stepped(rnn, x)
        found.append(casts.count)
    assert found[1] == found[0]
    if recorded:  # without gradients PyTorch keeps no cast
        assert found[0] == sum(p.dim() == 2 and p.shape == (4, 4) for p in rnn.parameters())


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_reach_the_weights(options: dict[str, Any], steps: int) -> None:
    found = []
    for rnn in twins(4, 4, **options):
        torch.manual_seed(1)
        x = torch.randn((3, steps, 4) if rnn.batch_first else (steps, 3, 4), requires_grad=True)
        output, h_n = stepped(rnn, x)
        (output.float().sin().sum() + h_n.float().sum()).backward()
        grads: dict[str, Any] = {name: p.grad for name, p in rnn.named_parameters()}
        assert all(g.dtype == torch.float32 and g.abs().sum() > 0 for g in grads.values())
        found.append({"output": output.detach(), "h_n": h_n.detach(), "x": x.grad, **grads})
    assert_same(found[1], found[0], 0)


def test_whoever_looks_on_sees_it_still() -> None:
    """A recurrence of one's own and a trace aren't left to PyTorch's operation."""

    class Half(ManualRNN):
        def step(self, gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Tensor:
            return 0.5 * super().step(gates, hidden, weight_hh)

    x, half = torch.randn(1, 2, 4), Half(4, 4)
    plain = ManualRNN(4, 4)
    plain.load_state_dict(half.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(half(x)[0], 0.5 * plain(x)[0], atol=1e-2)
        assert len(trace(plain, x).passes[0].states) == 1
    assert isinstance(plain, nn.RNNBase)
