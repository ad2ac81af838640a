r"""TorchScript: files that C++ and a Python without manual_rnn can run.

`torch.jit.script` compiles the `nn.RNN` that a `ManualRNN` equals, and `torch.jit.trace` records torch's own
operation. `nn.RNN` is the control: same graph, same numbers.
"""

import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import LeakyRNN
from helpers import assert_same, gradients, kernels_for, packed, twins
from internals import KernelName
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from manual_rnn import ManualRNN, use_kernel

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),  # since torch 2.15
    pytest.mark.filterwarnings("ignore:torch.jit.script takes a ManualRNN:UserWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor to a Python boolean:torch.jit.TracerWarning"),
]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
    {"nonlinearity": "relu", "bias": False, "batch_first": True},
]
EACH = pytest.mark.parametrize("options", OPTIONS, ids=str)
ELSEWHERE = """
import sys, torch
model = torch.jit.load(sys.argv[1])
torch.save([model(torch.ones(T, 2, 3)) for T in (5, 9)], sys.argv[2])
assert not [name for name in sys.modules if name.startswith("manual_rnn")]
"""


class Model(nn.Module):
    """A recurrence and a layer that shares one of its weights."""

    def __init__(self, rnn: Any) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size, rnn.hidden_size, dtype=rnn.weight_ih_l0.dtype)
        self.head.weight = rnn.weight_hh_l0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        output, h_n = self.rnn(x)
        return output, self.head(h_n)


def models(dtype: torch.dtype, options: dict[str, Any]) -> tuple[Model, Model]:
    builtin, manual = (Model(rnn) for rnn in twins(3, 4, dtype=dtype, **options))
    manual.load_state_dict(builtin.state_dict())
    return builtin, manual


def bound(dtype: torch.dtype) -> float:
    return 1e-12 if dtype == torch.float64 else 5e-6


def sequences(dtype: torch.dtype, T: int = 5) -> Tensor:
    torch.manual_seed(4)
    return torch.randn(T, 2, 3, dtype=dtype, requires_grad=True)


@DTYPES
@EACH
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_scripted_model_is_that_of_a_builtin(
    training: bool, options: dict[str, Any], dtype: torch.dtype
) -> None:
    builtin, manual = (model.train(training) for model in models(dtype, options))
    scripted, control = torch.jit.script(deepcopy(manual)), torch.jit.script(builtin)
    assert scripted.code == control.code
    for T in (5, 8):
        x = sequences(dtype, T)
        assert_same(gradients(scripted, x), gradients(builtin, x), 0)
        if not training:
            assert_same(gradients(scripted, x), gradients(manual, x), bound(dtype))


class Packed(nn.Module):
    def __init__(self, rnn: Any) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: PackedSequence) -> Tensor:
        return self.rnn(x)[0].data


def test_a_packed_input_and_weights_that_are_shared() -> None:
    builtin, manual = (Packed(rnn) for rnn in twins(3, 4))
    scripted, x = torch.jit.script(manual), packed(torch.ones(5, 2, 3), [5, 3])
    assert torch.equal(scripted(x), builtin(x))
    with torch.no_grad():
        for model in (builtin, manual):
            model.rnn.weight_hh_l0.zero_()
    assert torch.equal(scripted(x), builtin(x))


def test_alone() -> None:
    builtin, manual = twins(3, 4)
    scripted, control = torch.jit.script(manual), torch.jit.script(builtin)
    assert type(manual) is ManualRNN
    x = torch.ones(5, 2, 3)
    assert torch.equal(scripted.forward__0(x)[0], control.forward__0(x)[0])


def test_what_it_does_to_the_model_is_said() -> None:
    """Torch puts what it compiles into the model; with a copy the model stays as it was."""
    _, manual = models(torch.float32, {})
    with pytest.warns(UserWarning, match=r"script copy\.deepcopy\(model\)"):
        torch.jit.script(deepcopy(manual))
    assert type(manual.rnn) is ManualRNN
    weights = list(manual.parameters())
    torch.jit.script(manual)
    assert type(manual.rnn) is nn.RNN
    assert all(a is b for a, b in zip(manual.parameters(), weights, strict=True))


@pytest.mark.parametrize(
    "rnn", [LeakyRNN(3, 4), ManualRNN(3, 4, nonlinearity=torch.sin)], ids=["step", "callable"]
)
def test_a_recurrence_of_your_own_raises(rnn: ManualRNN) -> None:
    with pytest.raises(TypeError, match="can't convert to RNN"):
        torch.jit.script(rnn)


class Doubled(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


def test_parametrized() -> None:
    found: list[Any] = []
    for rnn in twins(3, 4):
        parametrize.register_parametrization(rnn, "weight_hh_l0", Doubled())
        try:
            found.append(torch.jit.script(rnn)(torch.ones(5, 2, 3))[0])
        except Exception as error:
            found.append(type(error))
    assert str(found[0]) == str(found[1])


def traced(model: nn.Module, x: Tensor) -> Any:
    return torch.jit.trace(model, (x,), check_trace=False)


@DTYPES
@EACH
def test_a_traced_model_is_that_of_a_builtin(options: dict[str, Any], dtype: torch.dtype) -> None:
    builtin, manual = (model.eval() for model in models(dtype, options))
    programs = [traced(model, sequences(dtype)) for model in (manual, builtin)]
    kinds = [[node.kind() for node in program.inlined_graph.nodes()] for program in programs]
    assert kinds[0] == kinds[1]
    for T in (5, 8):
        x = sequences(dtype, T)
        expected = gradients(builtin, x)
        assert_same(gradients(programs[0], x), expected, 0)
        assert_same(gradients(manual, x), expected, bound(dtype))


@pytest.mark.parametrize("kernel", kernels_for(torch.float32))
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_kernel_asked_for_is_what_is_traced(kernel: KernelName) -> None:
    builtin, manual = (model.eval() for model in models(torch.float32, {}))
    x = sequences(torch.float32)
    with use_kernel(kernel):
        program = traced(manual, x)
    kinds = [node.kind() for node in program.inlined_graph.nodes()]
    assert ("aten::rnn_tanh" in kinds) == (kernel == "aten")
    assert ("manual_rnn::network" in kinds) == (kernel not in ("reference", "aten"))
    assert_same(gradients(program, x), gradients(builtin, x), 5e-6)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_recurrence_of_your_own_is_traced_step_by_step() -> None:
    leaky, x = LeakyRNN(3, 4), sequences(torch.float32)
    assert torch.allclose(traced(leaky, x)(x)[0], leaky(x)[0])


@pytest.mark.slow
@pytest.mark.parametrize("make", ["script", "trace"])
def test_a_process_that_never_imports_it(make: str, tmp_path: Path) -> None:
    builtin, manual = (model.eval() for model in models(torch.float32, OPTIONS[1] | {"dropout": 0.0}))
    file, results = tmp_path / "model.pt", tmp_path / "results.pt"
    program = torch.jit.script(manual) if make == "script" else traced(manual, torch.ones(5, 2, 3))
    torch.jit.save(program, file)
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE, str(file), str(results)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for T, (output, h_n) in zip((5, 9), torch.load(results), strict=True):
        expected = builtin(torch.ones(T, 2, 3))
        assert torch.equal(output, expected[0])
        assert torch.equal(h_n, expected[1])
