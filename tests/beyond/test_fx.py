r"""`torch.fx`: a `ManualRNN` is a leaf, one `call_module` node, with no tracer but torch's own.

`nn.RNN` is the control in each: same nodes, same numbers, and the same refusal of a bare module.
"""

import importlib
import inspect
import pickle
import sys
from copy import deepcopy
from typing import Any

import pytest
import torch
from examples import LeakyRNN
from helpers import KERNELS, assert_same, gradients, kernels_for, twins
from internals import KernelName
from models import Tagger
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.proxy import TraceError
from torch.nn.utils import parametrizations

from manual_rnn import ManualRNN, swap_rnn, use_kernel

BOTH_WAYS: dict[str, Any] = {"num_layers": 2, "bidirectional": True}


class Reader(nn.Module):
    """The recurrence somewhere inside, its state by keyword."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"rnn": rnn})

    def forward(self, input: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, h_n = self.inner["rnn"](hx=state, input=input)
        return output.sin(), h_n


def nodes(graph: fx.GraphModule) -> list[tuple[Any, ...]]:
    return [(node.op, node.target, str(node.args), str(node.kwargs)) for node in graph.graph.nodes]


def leaves(graph: fx.GraphModule) -> list[str]:
    return [node.target for node in graph.graph.nodes if node.op == "call_module"]


@KERNELS
@pytest.mark.parametrize("model", [Tagger, Reader])
def test_a_model_traces_as_with_a_builtin(model: Any, kernel: KernelName) -> None:
    builtin, manual = (model(rnn) for rnn in twins(3, 4, **BOTH_WAYS))
    traced, control = fx.symbolic_trace(manual), fx.symbolic_trace(builtin)
    assert nodes(traced) == nodes(control)
    x = torch.randint(7, (5, 2)) if model is Tagger else torch.randn(5, 2, 3, requires_grad=True)
    for hx in (None, torch.randn(4, 2, 4, requires_grad=True)):
        expected = gradients(control, x, hx)
        with use_kernel(kernel):
            assert_same(gradients(traced, x, hx), expected, 5e-6)


@pytest.mark.parametrize("kernel", kernels_for(torch.float64))
def test_what_was_traced_traces_again_pickles_and_copies(kernel: KernelName) -> None:
    builtin, manual = (Reader(rnn) for rnn in twins(3, 4, **BOTH_WAYS, dtype=torch.float64))
    traced = fx.symbolic_trace(manual)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    again = fx.symbolic_trace(traced), pickle.loads(pickle.dumps(traced)), deepcopy(traced)
    for graph in again:
        assert nodes(graph) == nodes(traced)
        with use_kernel(kernel):
            assert_same(gradients(graph, x), gradients(builtin, x))


@pytest.mark.parametrize("pickled", [False, True], ids=["", "pickled"])
def test_wherever_the_module_comes_from(pickled: bool) -> None:
    """A constructor, a conversion or a pickle."""
    builtin, manual = twins(3, 4)
    modules = [manual, ManualRNN.from_builtin(builtin), swap_rnn(nn.Sequential(deepcopy(builtin)))[0]]
    for rnn in modules:
        rnn = pickle.loads(pickle.dumps(rnn)) if pickled else rnn
        assert leaves(fx.symbolic_trace(Reader(rnn))) == ["inner.rnn"]
        assert type(rnn).__module__ == rnn.__module__ == "manual_rnn.module"
    back = manual.to_builtin()
    assert vars(back).keys() == vars(builtin).keys()


class Sub(ManualRNN):
    """A subclass, whose module is this file."""


@pytest.mark.parametrize("kind", [ManualRNN, Sub, LeakyRNN])
@pytest.mark.parametrize("copied", [lambda rnn: rnn, deepcopy, lambda rnn: pickle.loads(pickle.dumps(rnn))])
def test_a_module_says_where_its_class_stands(kind: Any, copied: Any) -> None:
    """A client imports a class by the names that its object tells."""
    rnn = copied(kind(3, 4))
    assert "__module__" not in vars(rnn)
    assert getattr(importlib.import_module(rnn.__module__), type(rnn).__name__) is kind
    assert inspect.getmodule(rnn) is inspect.getmodule(kind) is sys.modules[kind.__module__]
    assert leaves(fx.symbolic_trace(Reader(rnn))) == ["inner.rnn"]


def test_one_from_an_earlier_version_says_so_too() -> None:
    rnn = ManualRNN(3, 4)
    vars(rnn)["__module__"] = "torch.nn.modules.rnn"
    assert pickle.loads(pickle.dumps(rnn)).__module__ == "manual_rnn.module"


class OfConstants(nn.Module):
    """Whose recurrence reads nothing but a buffer."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn
        self.register_buffer("start", torch.randn(5, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.rnn(self.start)[0]
        return found


def test_of_constants_it_is_a_leaf_with_weights_that_train() -> None:
    found: list[Any] = []
    for rnn in twins(3, 4):
        torch.manual_seed(0)
        traced: Any = fx.symbolic_trace(OfConstants(rnn))
        traced(torch.zeros(5, 2, 4)).sum().backward()
        found.append((nodes(traced), rnn.weight_hh_l0.grad))
    assert found[0][0] == found[1][0]
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)


class Everything(fx.Tracer):
    """Enters every module that it may."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False


class Counting(fx.Tracer):
    """Calls modules by a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[type] = []

    def call_module(self, m: nn.Module, *args: Any) -> Any:
        self.called.append(type(m))
        return super().call_module(m, *args)


def test_tracers_of_other_kinds() -> None:
    rnn, counting = ManualRNN(3, 4), Counting()
    for tracer in (Everything(), counting):
        graph = tracer.trace(Reader(rnn))
        assert [node.target for node in graph.nodes if node.op == "call_module"] == ["inner.rnn"]
    assert counting.called.count(ManualRNN) == 1


def test_make_fx_sees_operators_and_no_leaf() -> None:
    reader, x = Reader(ManualRNN(3, 4)), torch.randn(5, 2, 3)
    traced = make_fx(reader)(x)
    assert leaves(traced) == []
    assert torch.allclose(traced(x)[0], reader(x)[0])


def test_nothing_stays_behind() -> None:
    """After a trace a call is a call again, also after one that broke off."""
    rnn, x = ManualRNN(3, 4), torch.randn(5, 2, 3)
    expected = rnn(x)[0]
    fx.symbolic_trace(Reader(rnn))
    with pytest.raises(TraceError):
        fx.symbolic_trace(rnn)
    assert torch.equal(rnn(x)[0], expected)


def test_parametrized() -> None:
    for rnn in twins(3, 4):
        reader = Reader(parametrizations.orthogonal(rnn, "weight_hh_l0"))
        traced = fx.symbolic_trace(reader)
        assert leaves(traced) == ["inner.rnn"]
        x = torch.randn(5, 2, 3)
        assert torch.equal(traced(x)[0], reader(x)[0])


def test_hooks_run_when_the_graph_does() -> None:
    for rnn in twins(3, 4):
        seen: list[type] = []
        rnn.register_forward_pre_hook(lambda *_, seen=seen: seen.append(Tensor))
        rnn.register_forward_hook(lambda *_, seen=seen: seen.append(tuple))
        traced = fx.symbolic_trace(Reader(rnn))
        assert seen == []
        traced(torch.randn(5, 2, 3))
        assert seen == [Tensor, tuple]


def test_a_recurrence_of_your_own_is_a_leaf_too() -> None:
    manual = Reader(LeakyRNN(3, 4))
    traced = fx.symbolic_trace(manual)
    assert leaves(traced) == ["inner.rnn"]
    for T in (5, 8):
        x = torch.randn(T, 2, 3)
        assert torch.equal(traced(x)[0], manual(x)[0])


def test_alone_it_has_no_path_and_raises_as_a_builtin_does() -> None:
    for rnn in twins(3, 4):
        with pytest.raises(TraceError, match="cannot be used as inputs to control flow"):
            fx.symbolic_trace(rnn)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:Please use quant_min:UserWarning"
)  # its own
def test_quantization_takes_it_as_it_takes_a_builtin() -> None:
    quantize = pytest.importorskip("torch.ao.quantization")
    from torch.ao.quantization.quantize_fx import prepare_fx

    x, found = torch.randint(7, (5, 2)), []
    for rnn in twins(3, 4):
        prepared = prepare_fx(Tagger(rnn).eval(), quantize.get_default_qconfig_mapping(), (x,))
        assert "rnn" in leaves(prepared)
        found.append((leaves(prepared), prepared(x)[0]))
    assert found[0][0] == found[1][0]
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)
