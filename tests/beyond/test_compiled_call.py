r"""A plain call in compiled code reads little of its module, and still notices whatever changes in it.

Each change is made to a module that is compiled already, and to a fresh one: both answer as in eager mode.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from changes import CHANGES, FEW, OF_NO_LEAF, Step, answer, guards_of
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.autograd import forward_ad

from manual_rnn import LeakyRNN, ManualRNN, use_kernel


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@pytest.mark.pins_torch
@pytest.mark.skipif(torch.__version__ < "2.13", reason="its Dynamo guards builtins and more: 415")
@pytest.mark.parametrize("shape", [(3, 2, 4), (3, 4)], ids=["padded", "unbatched"])
def test_a_plain_call_has_few_guards(shape: tuple[int, ...]) -> None:
    assert guards_of(ManualRNN(4, 3), torch.randn(shape)) < FEW


@pytest.mark.pins_torch
def test_what_is_not_plain_has_more() -> None:
    assert guards_of(LeakyRNN(4, 3, alpha=0.5), torch.randn(3, 2, 4)) > FEW


def assert_alike(compiled: Any, eager: Any) -> None:
    if isinstance(eager[0], type):
        assert isinstance(compiled[0], type)
        assert compiled == eager or torch.__version__ < "2.13"  # whose graphs ask no dtype of Parameters
    else:
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize(
    ("form", "when"),
    [("padded", "before"), ("padded", "after"), ("unbatched", "after"), ("with a child", "after")],
)
@OF_NO_LEAF
@pytest.mark.parametrize("change", list(CHANGES))
def test_a_change_is_noticed(change: str, form: str, when: str) -> None:
    """With a module of the user's inside, a call goes on in `module.py`."""
    rnn, x, hx = ManualRNN(3, 4), torch.randn(4, 4, 3), torch.randn(1, 4, 4)
    args = (x[0],) if form == "unbatched" else (x, hx)
    if form == "with a child":
        rnn.child = nn.Identity()
    compiled = torch.compile(rnn, backend="aot_eager")
    if when == "after":
        compiled(*args)
    CHANGES[change](rnn)
    assert_alike(answer(compiled, *args), answer(rnn, *args))


@pytest.mark.parametrize(
    "args",
    [
        (torch.randn(5, 2, 3), torch.randn(1, 3, 4)),
        (torch.randn(5, 2, 3), torch.randn(1, 4)),
        (torch.randn(5, 2, 3), torch.randn(1, 2, 4, dtype=torch.float64)),
        (torch.randn(5, 2, 3, dtype=torch.float64),),
        (torch.randn(5, 2, 4),),
        (torch.randn(5, 2, 3, 1),),
        (torch.randn(5, 2, 3, dtype=torch.complex64),),
        (torch.randint(3, (5, 2, 3)),),
        (torch.randn(0, 2, 3),),
        (torch.randn(5, 0, 3),),
    ],
    ids=lambda args: " ".join(f"{tuple(x.shape)} {x.dtype}" for x in args).replace("torch.", ""),
)
def test_what_is_given_is_checked(args: tuple[Tensor, ...]) -> None:
    rnn = ManualRNN(3, 4)
    assert_alike(answer(torch.compile(rnn, backend="aot_eager"), *args), answer(rnn, *args))


class Wrapped(ManualRNN):
    """A `forward` of the user's, which runs once."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        output, h_n = super().forward(input, hx)
        return output + 1, h_n


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: x,
    "Parameter": nn.Parameter,
    "Buffer": nn.Buffer,
}


@pytest.mark.parametrize("kind", [ManualRNN, Wrapped])
@pytest.mark.parametrize("of_hx", [None, *KINDS])
@pytest.mark.parametrize("of_input", KINDS)
def test_of_whatever_kind_the_arguments_are(of_input: str, of_hx: str | None, kind: type[ManualRNN]) -> None:
    rnn, x = kind(3, 4), KINDS[of_input](torch.randn(5, 2, 3))
    args = (x,) if of_hx is None else (x, KINDS[of_hx](torch.randn(1, 2, 4)))
    found, expected = torch.compile(rnn, backend="aot_eager", fullgraph=True)(*args), rnn(*args)
    assert [type(each) for each in found] == [type(each) for each in expected]
    torch.testing.assert_close(found, expected)


def test_a_size_of_the_users_own_on_the_object_is_asked_for() -> None:
    rnn: Any = ManualRNN(3, 4)
    asked: list[int] = []
    rnn.get_expected_hidden_size = lambda *_: (asked.append(0), (1, 2, 4))[1]  # type: ignore[func-returns-value]
    packed = nn.utils.rnn.pack_sequence([torch.randn(2, 3), torch.randn(3, 3)], enforce_sorted=False)
    torch.compile(rnn, backend="eager")(packed)
    assert asked


def test_a_step_put_on_the_class_itself_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    rnn, x = ManualRNN(3, 4), torch.randn(5, 2, 3)
    compiled = torch.compile(rnn, backend="aot_eager")
    before = compiled(x)
    monkeypatch.setattr(ManualRNN, "step", Step.step)
    assert_alike(answer(compiled, x), answer(rnn, x))
    assert not torch.equal(compiled(x)[0], before[0])


def test_a_leak_is_heeded() -> None:
    rnn, x = LeakyRNN(3, 4, alpha=0.3), torch.randn(5, 2, 3)
    assert_alike(answer(torch.compile(rnn, backend="aot_eager"), x), answer(rnn, x))


def test_a_kernel_asked_for_is_heeded() -> None:
    rnn, x = ManualRNN(3, 4), torch.randn(5, 2, 3)
    compiled = torch.compile(rnn, backend="aot_eager")
    compiled(x)
    with use_kernel("reference"):
        assert_alike(answer(compiled, x), answer(rnn, x))


class Tagger(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = kind(3, 4)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.rnn(input)[0]
        return output


def penalty(model: Any, plain: nn.Module, x: Tensor) -> Tensor:
    (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return torch.autograd.grad(g.square().sum(), list(plain.parameters())[1])[0]


def dual(model: Any, plain: nn.Module, x: Tensor) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(model(forward_ad.make_dual(x.detach(), x.detach().cos()))).tangent


def replaced(model: Any, plain: nn.Module, x: Tensor) -> Tensor:
    output, weight = model(x), list(plain.parameters())[1]
    weight.data = weight.data / 2
    return torch.autograd.grad(output.sum(), x)[0]


@OF_NO_LEAF
@pytest.mark.parametrize("way", [penalty, dual, replaced])
def test_without_compilation_there_is_the_freedom_of_eager_mode(way: Callable[..., Any]) -> None:
    """The way out that the limits name; `nn.RNN`, which breaks the graph, as the control."""
    found = []
    for kind in (nn.RNN, ManualRNN):
        model, x = Tagger(kind), torch.linspace(-1, 1, 30).view(5, 2, 3).requires_grad_()
        if kind is ManualRNN:
            model.rnn.forward = torch.compiler.disable(model.rnn.forward)
        found.append(way(torch.compile(model, backend="aot_eager"), model, x))
    torch.testing.assert_close(*found)


@pytest.mark.pins_torch
@pytest.mark.parametrize("way", [penalty, dual])
def test_compiled_code_refuses_other_derivatives(way: Callable[..., Any]) -> None:
    model, x = Tagger(ManualRNN), torch.randn(5, 2, 3, requires_grad=True)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"double backward|jvp"):
        way(torch.compile(model, backend="aot_eager"), model, x)


@pytest.mark.parametrize("form", ["padded", "unbatched", "vmap"])
def test_a_graph_holds_the_operator_without_rules(form: str) -> None:
    """Forward and backward are one operator each, without the rules that cost 10 us a call."""
    seen: list[str] = []

    def note(graph: Any, inputs: Any) -> Any:
        seen.extend(
            str(node.target) for node in graph.graph.nodes if "manual_rnn.network" in str(node.target)
        )
        return make_boxed_func(graph.forward)

    rnn, x = ManualRNN(3, 4), torch.randn(5, 2, 3)
    run: Any = torch.func.vmap(rnn) if form == "vmap" else rnn
    x = {"padded": x, "unbatched": x[0], "vmap": x.expand(4, 5, 2, 3)}[form]
    output, _ = torch.compile(run, backend=aot_autograd(fw_compiler=note))(x)
    assert_alike((output,), (run(x)[0],))
    output.sum().backward()
    assert seen == ["manual_rnn.network.compiled", "manual_rnn.network_vjp.compiled"]
