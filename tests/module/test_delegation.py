r"""Calls that are left to `nn.RNN`, with its numbers to the last bit, and calls that are not."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers import nodes, packed, twins
from internals import aten, module, native, plain_network
from situations import Loud
from torch import Tensor, nn
from torch.autograd import functional
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap

from manual_rnn import ManualRNN, explain_kernel, use_kernel

pytestmark = [
    pytest.mark.users_lengths,
    pytest.mark.skipif(not native.has_aten_node, reason="no compiler, or another torch"),
]
Run = Callable[[nn.Module, Tensor], Any]


def gradients(rnn: nn.Module, x: Any, hx: Tensor | None = None) -> list[Tensor]:
    output, h_n = rnn(x, hx)
    output = getattr(output, "data", output)
    loss = output.float().sin().sum() + h_n.float().cos().sum()
    wanted = [p for p in [x, *rnn.parameters()] if isinstance(p, Tensor) and p.requires_grad]
    return [output, h_n, *torch.autograd.grad(loss, wanted)]


def frozen(rnn: nn.Module, x: Tensor) -> list[Tensor]:
    rnn.weight_hh_l0.requires_grad_(False)
    return gradients(rnn, x)


def under_autocast(rnn: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        return gradients(rnn, x)


def of_weights(rnn: nn.Module, x: Tensor) -> list[Tensor]:
    weights = {name: p.detach() for name, p in rnn.named_parameters()}
    return list(grad(lambda w: functional_call(rnn, w, (x,))[0].sin().sum())(weights).values())


def penalty(rnn: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(rnn(x)[0].sin().sum(), x, create_graph=True)
    return list(torch.autograd.grad(g.square().sum(), list(rnn.parameters())))


def loss_of(rnn: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: rnn(x)[0].sin().sum()


FEW: dict[str, Run] = {
    "autocast": under_autocast,
    "the gradient of a leaf": lambda rnn, x: gradients(rnn, x.clone().requires_grad_()),
    "grad by weights": of_weights,
    "grad": lambda rnn, x: grad(loss_of(rnn))(x),
    "vjp": lambda rnn, x: vjp(loss_of(rnn), x)[1](torch.ones(()))[0],
    "jvp": lambda rnn, x: jvp(loss_of(rnn), (x,), (x.cos(),)),
    "jacrev": lambda rnn, x: jacrev(lambda x: rnn(x)[1])(x),
    "a penalty": penalty,
    "hvp": lambda rnn, x: functional.hvp(loss_of(rnn), x, x.cos()),
    "hessian": lambda rnn, x: functional.hessian(loss_of(rnn), x),
}


def flat(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [x for each in found for x in flat(each)]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ways to a kernel of ours that were taken."""
    ran: list[str] = []

    def watched(original: Callable[..., Any], *args: Any) -> Any:
        ran.append(str(original))
        return original(*args)

    for owner, name in ((plain_network, "cudnn_rnn"), (plain_network, "network"), (module, "run_rnn")):
        monkeypatch.setattr(owner, name, partial(watched, getattr(owner, name)))
    return ran


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}], ids=str)
@pytest.mark.parametrize("name", FEW)
def test_a_few_steps_are_left_to_nn_rnn(name: str, options: dict[str, Any], engine: list[str]) -> None:
    found = []
    for rnn in twins(4, 6, **options):
        found.append(flat(FEW[name](rnn, torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(1)))))
    assert not engine
    assert len(found[0]) == len(found[1]) > 0
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "options",
    [{}, {"nonlinearity": "relu", "bias": False}, {"num_layers": 2, "bidirectional": True}],
    ids=str,
)
@pytest.mark.parametrize("name", FEW)
def test_a_single_step_has_fewer_nodes(name: str, options: dict[str, Any]) -> None:
    x, rnns = torch.randn(1, 3, 4), twins(4, 6, **options)
    for a, b in zip(*(flat(FEW[name](rnn, x)) for rnn in rnns), strict=True):
        assert torch.equal(a, b)
    theirs, ours = (len(set(nodes(*rnn(x)))) for rnn in rnns)
    assert 0 < ours < theirs


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("name", ["grad", "the gradient of a leaf", "a penalty", "hvp"])
def test_more_steps_are_not(name: str, more: int, engine: list[str]) -> None:
    x = torch.randn(10 + more, 3, 4)
    for a, b in zip(*(flat(FEW[name](rnn, x)) for rnn in twins(4, 6)), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)
    assert bool(engine) == bool(more)


@pytest.mark.parametrize("hx", [None, torch.randn(1, 3, 6)], ids=["zeros", "hx"])
@pytest.mark.parametrize("form", ["padded", "batch_first", "unbatched", "packed"])
def test_a_single_step_in_training(form: str, hx: Tensor | None, engine: list[str]) -> None:
    x: Any = torch.randn(1, 3, 4)
    rnns = twins(4, 6, batch_first=form == "batch_first")
    if form == "batch_first":
        x = x.transpose(0, 1)
    if form == "unbatched":
        x, hx = x[:, 0], None if hx is None else hx[:, 0]
    if form == "packed":
        x = packed(x, [1, 1, 1])
    for a, b in zip(*(gradients(rnn, x, hx) for rnn in rnns), strict=True):
        assert torch.equal(a, b)
    assert not engine


@pytest.mark.parametrize("form", ["padded", "batch_first", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("wanted", [True, False])
def test_a_single_step_with_dropout(wanted: bool, bidirectional: bool, form: str, engine: list[str]) -> None:
    x: Any = torch.randn(1, 3, 4)
    rnns = twins(4, 6, 3, dropout=0.4, bidirectional=bidirectional, batch_first=form == "batch_first")
    x = {"batch_first": x.transpose(0, 1), "packed": packed(x, [1, 1, 1])}.get(form, x)
    found = []
    for rnn in rnns:
        torch.manual_seed(3)
        with torch.set_grad_enabled(wanted):
            found.append(gradients(rnn, x) if wanted else list(rnn(x)))
    for a, b in zip(*found, strict=True):
        assert torch.equal(getattr(a, "data", a), getattr(b, "data", b))
    assert not engine


@pytest.mark.parametrize("B", [63, 64])
def test_a_large_single_step_is_the_engine_s(B: int, engine: list[str]) -> None:
    x = torch.randn(1, B, 4)
    for a, b in zip(*(gradients(rnn, x) for rnn in twins(4, 256)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert bool(engine) == (B == 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"num_layers": 2, "dropout": 0.5}], ids=str)
def test_a_few_steps_under_autocast_are_a_plain_call(
    options: dict[str, Any], dtype: torch.dtype, engine: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the fast path, with the input in any dtype that `nn.RNN` takes there."""
    if dtype is not torch.float64:  # which doesn't fit, and is refused
        monkeypatch.delattr(module, "is_left_to_nn_rnn")
    found: list[Any] = []
    for rnn in twins(4, 6, **options):
        x = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
        torch.manual_seed(3)
        try:
            found.append(under_autocast(rnn, x))
        except RuntimeError as error:
            found.append([str(error)])
    assert not engine
    if dtype is torch.float64:
        assert [type(one[0]) for one in found] == [str, str]
    else:
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("steps", [2, 12])
def test_foreign_tensors_at_any_length(steps: int, engine: list[str]) -> None:
    for x in (torch.randn(steps, 3, 4).as_subclass(Loud), torch.randn(steps, 3, 4, dtype=torch.complex64)):
        a, b = (rnn.to(x.dtype)(x)[0] for rnn in twins(4, 6))
        assert type(a) is type(b)
        assert torch.equal(a, b)
    assert not engine


SPARSE: dict[str, Callable[[Tensor], Tensor]] = {
    "coo": Tensor.to_sparse,
    "csr": Tensor.to_sparse_csr,
    "csc": Tensor.to_sparse_csc,
    "bsr": lambda w: w.to_sparse_bsr((2, 2)),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("steps", [1, 12])
@pytest.mark.parametrize(
    ("name", "layout"), [*(("ih", kind) for kind in SPARSE), ("hh", "csr"), ("hh", "csc")]
)
def test_a_sparse_weight(name: str, layout: str, steps: int, wanted: bool) -> None:
    """As of a pruned network; PyTorch multiplies by recurrent ones of two kinds."""
    found = []
    for rnn in twins(4, 6):
        weight = SPARSE[layout](rnn.get_parameter(f"weight_{name}_l0").detach())
        setattr(rnn, f"weight_{name}_l0", nn.Parameter(weight, requires_grad=wanted))
        grads = gradients(rnn, torch.randn(steps, 3, 4, generator=torch.Generator().manual_seed(1)))
        with torch.no_grad():
            found.append([*grads, rnn(torch.ones(steps, 3, 4))[0]])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("steps", [1, 12])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "dropout": 0.5}], ids=str)
def test_a_sparse_state(options: dict[str, Any], steps: int) -> None:
    found = []
    for rnn in twins(4, 6, **options):
        hx = torch.eye(3, 6).expand(rnn.num_layers, 3, 6).to_sparse()
        torch.manual_seed(1)
        try:
            found.append(gradients(rnn, torch.ones(steps, 3, 4), hx))
        except NotImplementedError:
            found.append([])
    assert bool(found[0]) == bool(found[1])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("lengths", [[3, 3], [3, 2]], ids=str)
def test_nested_tensors_of_the_older_kind(lengths: list[int]) -> None:
    """`nn.RNN` takes what they hold for steps, all of one batch size."""
    found: list[Any] = []
    for rnn in twins(4, 6):
        try:
            found.append(rnn(torch.nested.nested_tensor([torch.ones(n, 4) for n in lengths]))[0])
        except RuntimeError as error:
            found.append(str(error))
    assert torch.equal(*found) if lengths == [3, 3] else found[0] == found[1]


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("form", ["padded", "batch_first", "unbatched", "packed", "grad"])
def test_complex_numbers_are_a_plain_call(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(module, "is_left_to_nn_rnn")
    x: Any = torch.randn(5, 3, 4, dtype=torch.complex64)
    x = {"unbatched": x[:, 0], "packed": packed(x, [2, 5, 3])}.get(form, x)
    found = []
    for rnn in twins(4, 6, num_layers=2, batch_first=form == "batch_first", dtype=torch.complex64):
        if form == "grad":
            found.append(grad(lambda x, rnn=rnn: rnn(x)[0].abs().sum())(x))
        else:
            output = rnn(x)[0]
            found.append(getattr(output, "data", output))
    assert torch.equal(*found)


def test_what_nn_rnn_cannot_do_is_ours(engine: list[str]) -> None:
    rnn, x = ManualRNN(4, 6), torch.randn(5, 4, 3, 4)
    found = vmap(lambda x: rnn(x)[0])(x)
    torch.testing.assert_close(found, torch.stack([rnn(each)[0] for each in x]))
    with use_kernel("native"):
        rnn.requires_grad_(False).weight_hh_l0.requires_grad_()
        rnn(x[0])
    assert engine


def test_a_weight_that_is_computed_is_read_once() -> None:
    """Spectral normalisation takes a step of its power iteration whenever it is read in training."""
    reads = 0

    class Counted(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            nonlocal reads
            reads += 1
            return w

    counted = ManualRNN(4, 6)
    nn.utils.parametrize.register_parametrization(counted, "weight_hh_l0", Counted())
    reads = 0
    counted(torch.randn(4, 3, 4))
    assert reads == 1


@pytest.mark.parametrize(("steps", "runs"), [(1, "aten"), (4, "native"), (11, "native")])
def test_explain_kernel_says_so(steps: int, runs: str) -> None:
    rnn, x = ManualRNN(4, 6), torch.randn(steps, 3, 4)
    assert f"{runs:9} runs" in explain_kernel(rnn, x)
    rnn.weight_hh_l0.requires_grad_(False)
    assert f"{runs:9} runs" in explain_kernel(rnn, x)
    wanted = f"{'aten' if steps <= 10 else 'native':9} runs"
    for hx in (torch.zeros(1, 3, 6), torch.zeros(3, 6)):  # a leaf, and a view of one
        hx.requires_grad_()
        assert wanted in explain_kernel(rnn, x, hx if hx.dim() == 3 else hx[None])
    learned = torch.zeros(1, 1, 6, requires_grad=True)
    assert f"{runs:9} runs" in explain_kernel(rnn, x, learned.expand(1, 3, 6))
    assert wanted in explain_kernel(rnn, x.requires_grad_())
    with torch.no_grad():
        assert "native    runs" in explain_kernel(rnn, x)


@pytest.mark.parametrize("change", ["hx", "weight", "batch_first"])
def test_what_does_not_fit_is_told_in_our_words(change: str) -> None:
    rnn, hx = ManualRNN(4, 6), torch.randn(1, 3, 6)
    rnn.weight_hh_l0.requires_grad_(False)
    if change == "weight":
        rnn.weight_hh_l0 = nn.Parameter(torch.randn(5, 6), requires_grad=False)
    if change == "batch_first":
        rnn.batch_first = None  # type: ignore[assignment]
    if change == "hx":
        hx = hx.double()
    with pytest.raises((RuntimeError, ValueError, TypeError), match=r"weight_hh_l0|batch_first|hx"):
        rnn(torch.randn(3, 3, 4), hx)


@pytest.mark.parametrize("form", ["padded", "batch_first", "packed", "autocast", "no_grad"])
@pytest.mark.parametrize("amx", [True, False])
def test_wide_bfloat16_with_amx(amx: bool, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's operation where it is faster, to the last bit; elsewhere the engine."""
    monkeypatch.setattr(aten, "has_amx", lambda: amx)
    rnns: list[Any] = list(twins(4, 512, batch_first=form == "batch_first"))
    x: Any = torch.randn(12, 8, 4)
    if form != "autocast":
        rnns, x = [rnn.bfloat16() for rnn in rnns], x.bfloat16()
    if form == "batch_first":
        x = x.transpose(0, 1)
    if form == "packed":
        x = packed(x, [12] * 8)
    found = []
    for rnn in rnns:
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=form == "autocast"),
            torch.set_grad_enabled(form != "no_grad"),
        ):
            output, h_n = rnn(x)
        found.append([getattr(output, "data", output), h_n])
    assert all(map(torch.equal, *found)) == amx
    if form != "autocast":
        assert f"{'aten' if amx else 'native':9} runs" in explain_kernel(rnns[1], x)
