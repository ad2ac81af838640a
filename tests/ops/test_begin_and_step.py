r"""What `begin` is handed and `step` may return, and what pictures show of a recurrence of one's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Operators, twins
from torch import Tensor

from manual_rnn import ManualRNN
from manual_rnn.inspect import eigenvalues, step_jacobians, trace

x = torch.linspace(-1, 1, 30).reshape(5, 2, 3)


def normalised(weight: Tensor) -> Tensor:
    return weight / weight.norm(dim=1, keepdim=True)


class Normalised(ManualRNN):
    """Weights prepared once for each layer and direction."""

    def begin(self, h0: Tensor, weight_hh: Tensor) -> Callable[..., Tensor]:
        w = normalised(weight_hh)
        return lambda gates, hidden, _: self.step(gates, hidden, w)


class Old(ManualRNN):
    """The form of `begin` that knows no weights."""

    def begin(self, h0: Tensor) -> Callable[..., Tensor]:  # type: ignore[override]
        return lambda gates, hidden, w: self.step(gates, hidden, normalised(w))


@pytest.mark.parametrize("kind", [Normalised, Old])
@pytest.mark.parametrize("compiled", [False, True])
def test_begin_is_handed_the_weights_of_its_layer_and_direction(kind: Any, compiled: bool) -> None:
    builtin, _ = twins(3, 4, 2, bidirectional=True)
    own = kind(3, 4, 2, bidirectional=True)
    own.load_state_dict(builtin.state_dict())
    with torch.no_grad():
        for name, weight in builtin.named_parameters():
            if "weight_hh" in name:
                weight.copy_(normalised(weight))
    torch._dynamo.reset()
    run = torch.compile(own, fullgraph=True, backend="eager") if compiled else own
    for found, expected in zip(run(x), builtin(x), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


class Nothing(ManualRNN):
    def step(self, gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Any:
        self.seen = gates


class Pair(ManualRNN):
    def step(self, gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Any:
        return gates, hidden


class BeginsWithNothing(ManualRNN):
    def begin(self, h0: Tensor) -> Any:
        pass


class Narrow(ManualRNN):
    def step(self, gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Tensor:
        return gates[:, :1]


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        (
            Nothing,
            TypeError,
            r"a state of shape \(2, 4\), got a NoneType from Nothing\.step",
        ),
        (
            Pair,
            TypeError,
            r"got a tuple from Pair\.step; a method or module `step` that takes",
        ),
        (
            BeginsWithNothing,
            TypeError,
            r"begin must .* a NoneType from BeginsWithNothing\.begin",
        ),
        (Narrow, RuntimeError, r"a state of shape \(2, 4\), got \(2, 1\) from Narrow\.step"),
    ],
)
def test_what_is_no_state_is_refused_by_name(kind: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        kind(3, 4)(x)


def test_the_builtin_step_is_one_product_and_its_nonlinearity() -> None:
    rnn, gates, hidden = ManualRNN(3, 4), torch.zeros(2, 4), torch.ones(2, 4)
    with torch.no_grad(), Operators() as seen:
        rnn.step(gates, hidden, rnn.weight_hh_l0)
    names = [operator.overloadpacket.__name__ for operator in seen.ran]
    assert [name for name in names if name not in ("t", "detach", "alias")] == ["addmm", "tanh"]


class Scaled(ManualRNN):
    """Of twice the weight, and linear: its Jacobian is that matrix."""

    def step(self, gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Tensor:
        return gates + hidden @ (2 * weight_hh).T


class Memoryless(ManualRNN):
    def step(self, gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Tensor:
        return gates.tanh()


def drawn(picture: Any, at: int = 0) -> Tensor:
    line = picture.axes[at].lines[0]
    values = torch.complex(torch.tensor(line.get_xdata()), torch.tensor(line.get_ydata()))
    return values[values.abs().argsort()].abs()


def test_pictures_show_the_jacobian_of_a_step_of_ones_own(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from manual_rnn.pictures import eigenvalue_picture, gradient_picture, write_pictures

    own, plain = Scaled(3, 4, 2), ManualRNN(3, 4, nonlinearity=torch.sin)
    for rnn, factor, symbol in ((own, 2, "J"), (plain, 1, "W_{hh}")):
        passes = trace(rnn, x).passes
        assert all(run.own_step == (rnn is own) for run in passes)
        picture = eigenvalue_picture(passes)
        for at, run in enumerate(passes):
            expected = eigenvalues(factor * run.weight_hh.detach()).abs().double()
            assert torch.allclose(drawn(picture, at), expected.sort().values, atol=1e-5)
            assert f"${symbol}$" in picture.axes[at].get_title()
        gradients: Any = gradient_picture(passes).axes[0]
        radius = gradients.lines[1].get_ydata()
        assert abs(radius[1] - expected_radius(passes[0].weight_hh, factor)) < 1e-5
        assert any(symbol in text.get_text() for text in gradients.get_legend().get_texts())
    write_pictures(Memoryless(3, 4), x, tmp_path)


def expected_radius(weight: Tensor, factor: int) -> float:
    return eigenvalues(factor * weight.detach()).abs().max().item()


def test_the_jacobian_of_a_step_without_memory_is_zero() -> None:
    (run,) = trace(Memoryless(3, 4), x).passes
    assert torch.equal(step_jacobians(run), torch.zeros(5, 4, 4))
