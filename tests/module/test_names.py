r"""A user's own names: whatever a subclass or a client puts on an `nn.RNN` works on a `ManualRNN`.

`nn.RNN` is the control in each case.
"""

import pickle
from collections.abc import Callable
from copy import copy, deepcopy
from typing import Any

import pytest
import torch
from helpers import assert_same, gradients, twins
from internals import own_names
from torch import Tensor, nn

from manual_rnn import ManualRNN, fast_path, swap_rnn

PUBLIC = {"begin", "step", "from_builtin", "to_builtin", "__prepare_scriptable__"}
OWN = {"_manual_rnn_leaky", "_manual_rnn_assigned", "_manual_rnn_runner"}
CACHES = {"_flat_weights", "_flat_weights_names", "_flat_weight_refs"}  # in the object, of an nn.RNN
PRIVATE = ["_drop", "_run", "_check", "_weights", "_grouped", "_assigned", "_directions"]
WORDS = ["begin", "step", "from_builtin", "to_builtin"]
BOTH = pytest.mark.parametrize("base", [nn.RNN, ManualRNN])
x = torch.linspace(-1, 1, 30).reshape(5, 2, 3)


def test_the_names_of_the_class_are_those_of_a_builtin() -> None:
    """But for those that a subclass is told of; the first two caches are properties here."""
    builtin, manual = twins(3, 4)
    assert set(dir(ManualRNN)) - set(dir(nn.RNN)) == PUBLIC | OWN | CACHES - {"_flat_weight_refs"}
    assert set(dir(nn.RNN)) - set(dir(ManualRNN)) == set()
    assert set(dir(manual)) - set(dir(builtin)) == PUBLIC | OWN
    assert set(vars(manual)) - set(vars(builtin)) == set()
    assert set(vars(builtin)) - set(vars(manual)) == CACHES


def test_any_other_name_is_registered_as_it_is_in_a_builtin(monkeypatch: pytest.MonkeyPatch) -> None:
    """`weight_hh_l0 = ...`, which some clients do before every call, takes no longer."""
    rnn = ManualRNN(3, 4)
    monkeypatch.delattr(own_names, "_freed")
    rnn.weight_hh_l0 = nn.Parameter(torch.zeros(4, 4))
    rnn.register_buffer("mask", torch.ones(4))
    rnn.add_module("drop", nn.Dropout())
    with pytest.raises(NameError):
        rnn.register_buffer("step", torch.ones(4))


def test_a_call_leaves_no_names_behind() -> None:
    _, manual = twins(3, 4)
    before = set(vars(manual))
    manual(x)[0].sum().backward()
    with torch.no_grad():
        manual(x, torch.zeros(1, 2, 4))
    assert set(vars(manual)) == before


def of_kind(base: Any, name: str, kind: str) -> Any:
    """A subclass that has something of its own under this name."""

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, *args, **kwargs)
        if kind == "module":
            setattr(self, name, nn.Linear(4, 2))
        elif kind == "dropout":
            setattr(self, name, nn.Dropout(0.9))
        elif kind == "add_module":
            self.add_module(name, nn.Linear(4, 2))
        elif kind == "attribute":
            setattr(self, name, 0)
        elif kind == "buffer":
            self.register_buffer(name, torch.zeros(3))
        elif kind == "parameter":
            setattr(self, name, nn.Parameter(torch.zeros(3)))

    body: dict[str, Any] = {"__init__": init}
    if kind == "method":
        body[name] = lambda self, a: 2 * a
    elif kind == "method of two":
        body[name] = lambda self, a, b: self(a, b)
    elif kind == "property":
        body[name] = property(lambda self: 7)
    return type("Own", (base,), body)


def count(rnn: Any, name: str) -> Any:
    setattr(rnn, name, getattr(rnn, name) + 1)
    return getattr(rnn, name)


USES: dict[str, Callable[[Any, str], bool]] = {
    "module": lambda rnn, name: getattr(rnn, name)(torch.ones(4)).shape == (2,),
    "dropout": lambda rnn, name: 0 < (getattr(rnn, name)(torch.ones(999)) == 0).sum() < 999,
    "add_module": lambda rnn, name: getattr(rnn, name)(torch.ones(4)).shape == (2,),
    "attribute": lambda rnn, name: count(rnn, name) == 1,
    "buffer": lambda rnn, name: getattr(rnn, name).add_(1).sum() == 3 == rnn.state_dict()[name].sum(),
    "parameter": lambda rnn, name: getattr(rnn, name) is dict(rnn.named_parameters())[name],
    "method": lambda rnn, name: torch.equal(getattr(rnn, name)(x), 2 * x),
    "method of two": lambda rnn, name: torch.equal(getattr(rnn, name)(x, None)[0], rnn(x)[0]),
    "property": lambda rnn, name: getattr(rnn, name) == 7,
}
EACH = pytest.mark.parametrize("kind", USES)


@BOTH
@EACH
@pytest.mark.parametrize("name", [*PRIVATE, *WORDS])
def test_a_name_of_ones_own(name: str, kind: str, base: Any) -> None:
    torch.manual_seed(0)
    rnn, expected = of_kind(base, name, kind)(3, 4), twins(3, 4)[0]
    rnn.load_state_dict(expected.state_dict(), strict=False)
    assert torch.allclose(rnn(x)[0], expected(x)[0], atol=1e-6)
    assert torch.allclose(deepcopy(rnn)(x)[0], expected(x)[0], atol=1e-6)
    assert USES[kind](deepcopy(rnn), name)
    assert USES[kind](rnn, name)


@EACH
@pytest.mark.parametrize("name", WORDS)
def test_a_call_stays_a_plain_one(name: str, kind: str) -> None:
    """It isn't slower for the name: it goes the fast way still."""
    rnn = of_kind(ManualRNN, name, kind)(3, 4)
    assert fast_path.try_fast_path(rnn, x, None) is not None


@EACH
@pytest.mark.parametrize("name", ["begin", "step"])
def test_compiled(name: str, kind: str) -> None:
    rnn = of_kind(ManualRNN, name, kind)(3, 4)
    torch._dynamo.reset()
    compiled = torch.compile(rnn, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(x)[0], rnn(x)[0], atol=1e-6)


class Decoder(ManualRNN):
    """A layer under one of the two words, a counter under the other."""

    begin: Any
    step: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.begin = nn.Linear(4, 4)
        self.register_buffer("step", torch.zeros(()))

    def forward(self, input: Any, hx: Any = None) -> Any:
        self.step += 1
        output, h_n = super().forward(input, hx)
        return self.begin(output), h_n


def test_what_is_registered_is_seen_wherever_the_module_goes() -> None:
    rnn = Decoder(3, 4)
    expected = rnn(x)[0]
    for again in (deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
        assert again.begin is again._modules["begin"] is not rnn.begin
        assert again.step is again._buffers["step"]
        assert torch.equal(again(x)[0], expected)
        assert again.step == 2
    state = Decoder(3, 4)
    state.load_state_dict(rnn.state_dict())
    assert torch.equal(state(x)[0], expected)
    double = deepcopy(rnn).double()
    assert double.step.dtype == double.begin.weight.dtype == torch.float64
    assert double(x.double())[0].dtype == torch.float64
    doubled = {name: 2 * p for name, p in rnn.named_parameters()}
    assert not torch.equal(torch.func.functional_call(rnn, doubled, (x,))[0], expected)


@BOTH
def test_what_is_registered_may_be_replaced_and_deleted(base: Any) -> None:
    rnn = base(3, 4)
    rnn.begin = nn.Linear(4, 2)
    rnn._modules["begin"] = second = nn.Linear(4, 3)
    assert rnn.begin is second
    rnn.begin = third = nn.Linear(4, 1)
    assert rnn.begin is third
    assert dict(rnn.named_children()) == {"begin": third}
    rnn.begin = None
    assert rnn.begin is None
    rnn.begin = nn.Linear(4, 2)
    del rnn.begin
    assert "begin" not in rnn._modules
    assert isinstance(getattr(rnn, "begin", None), nn.Module) is False
    rnn.register_buffer("step", torch.zeros(2))
    rnn.step = torch.ones(2)
    assert rnn.state_dict()["step"].sum() == 2
    with pytest.raises(TypeError, match="cannot assign"):
        rnn.step = 3
    with pytest.raises(TypeError):
        rnn.register_buffer("to_builtin", 3)
    assert "to_builtin" not in rnn._buffers
    assert_same(gradients(rnn, x), gradients(rnn, x), 0)


def test_a_deleted_module_gives_back_the_method() -> None:
    rnn = ManualRNN(3, 4)
    rnn.step = nn.Linear(4, 2)  # type: ignore[assignment]
    del rnn.step
    gates = torch.randn(2, 4)
    assert torch.equal(rnn.step(gates, torch.zeros(2, 4), rnn.weight_hh_l0), gates.tanh())


def test_conversions_keep_them() -> None:
    builtin: Any = nn.RNN(3, 4)
    builtin.step, builtin.begin = 0, nn.Linear(4, 2)
    layer, weight = builtin.begin, builtin.begin.weight
    manual: Any = swap_rnn(builtin)
    assert type(manual) is ManualRNN
    assert manual.step == 0
    assert manual.begin is layer
    copied = copy(manual)
    assert copied.begin is layer
    other: Any = manual.to_builtin()
    assert vars(other)["_modules"]["begin"].weight is weight
    back = swap_rnn(manual, to=nn.RNN)
    assert back.begin is layer
    assert type(back._modules) is dict
    assert "begin" not in vars(back)


@BOTH
def test_one_of_two_inputs_is_no_recurrence(base: Any) -> None:
    """A decoder's methods, which call the network themselves."""

    class Decoder(base):
        def begin(self, tokens: Tensor, state: Tensor) -> Any:
            return self.step(tokens, state)

        def step(self, tokens: Tensor, state: Tensor) -> Any:
            return self(tokens, state)

    rnn, h = Decoder(3, 4), torch.zeros(1, 2, 4)
    assert torch.equal(rnn.begin(x, h)[0], rnn(x, h)[0])


@pytest.mark.parametrize("form", ["method", "function", "module", "begin", "begin of two"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_recurrence_is_recognised_still(form: str, compiled: bool) -> None:
    def half(gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Tensor:
        return 0.5 * torch.tanh(gates + hidden @ weight_hh.T)

    class Half(nn.Module):
        def forward(self, gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Tensor:
            return half(gates, hidden, weight_hh)

    bodies: dict[str, dict[str, Any]] = {
        "method": {"step": lambda self, a, b, c: half(a, b, c)},
        "begin": {"begin": lambda self, h0: half},
        "begin of two": {"begin": lambda self, start, weight_hh: lambda a, b, _: half(a, b, weight_hh)},
    }
    rnn: Any = type("Own", (ManualRNN,), bodies.get(form, {}))(3, 4)
    if form in ("function", "module"):
        rnn.step = half if form == "function" else Half()
    h, expected = torch.zeros(2, 4), []
    for gates in x @ rnn.weight_ih_l0.T + rnn.bias_ih_l0 + rnn.bias_hh_l0:
        h = half(gates, h, rnn.weight_hh_l0)
        expected.append(h)
    torch._dynamo.reset()
    run = torch.compile(rnn, fullgraph=True, backend="eager") if compiled else rnn
    assert torch.allclose(run(x)[0], torch.stack(expected), atol=1e-6)
