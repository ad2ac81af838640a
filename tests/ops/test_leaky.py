r"""`LeakyRNN`: the engine's leak on every kernel, its `alpha`, and what has to go on as Python's steps.

Layouts, `vmap`, second derivatives and compiled graphs are tested with the recurrences of one's own
(test_own_recurrence.py), further transforms in tests/beyond/ and tests/module/test_derivatives.py.
"""

import copy
import io
import pickle
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from helpers import (
    LOOPS,
    assert_as_accurate,
    assert_same,
    assert_same_results,
    gradients,
    kernels_for,
    packed,
)
from internals import OPS, KernelName, native, plain_network
from loop import PHI, Loop
from torch import Tensor, nn
from torch.export import Dim
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from manual_rnn import LeakyRNN, ManualRNN, explain_kernel, export_standalone, swap_rnn, use_kernel
from manual_rnn.inspect import step_jacobians, trace

LENGTHS = [5, 3, 3, 1]
ROW = torch.tensor([0.05, 0.3, 0.5, 0.9, 1.0, 0.0, 0.2])  # one for each of 7 units
ALPHAS = pytest.mark.parametrize("alpha", [0.2, 1, ROW], ids=["number", "none leaks", "row"])
KERNELS = [name for name in kernels_for(torch.float32) if name not in ("aten", "triton")]
BOTH_WAYS: dict[str, Any] = {"num_layers": 2, "bidirectional": True}


def networks(alpha: Any = ROW, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Loop, LeakyRNN]:
    """A judge and a leaky network with the same weights."""
    torch.manual_seed(0)
    row = alpha.to(dtype) if isinstance(alpha, Tensor) else alpha
    loop, ours = (
        Loop(3, 7, dtype=dtype, alpha=row, **options),
        LeakyRNN(3, 7, dtype=dtype, alpha=alpha, **options),
    )
    ours.load_state_dict(loop.state_dict(), strict=False)
    return loop, ours


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("phi", "kernel", "form"), list(product(PHI, KERNELS, ("padded", "packed", "batch_first")))
)
def test_results_and_every_gradient(phi: str, kernel: KernelName, form: str) -> None:
    """In float64 to the last digits, in float32 about as exact as a loop of PyTorch's operations."""
    options = {**BOTH_WAYS, "nonlinearity": phi, "batch_first": form == "batch_first"}
    x, hx = torch.randn(*((4, 5) if form == "batch_first" else (5, 4)), 3) * 2, torch.randn(4, 4, 7)
    pack = partial(packed, lengths=LENGTHS) if form == "packed" else lambda x: x
    runs: dict[str, Any] = {}
    weights = networks(dtype=torch.float32, **options)[0].state_dict()
    for dtype in (torch.float64, torch.float32):
        given = x.to(dtype).requires_grad_(), hx.to(dtype).requires_grad_()
        for name, rnn in zip(("loop", "ours"), networks(dtype=dtype, **options), strict=True):
            rnn.load_state_dict(weights, strict=False)
            with use_kernel(kernel):
                runs[f"{name} {dtype}"] = gradients(rnn, *given, pack)
    exact = runs["loop torch.float64"]
    assert_same(runs["ours torch.float64"], exact)
    assert_as_accurate(runs["ours torch.float32"], runs["loop torch.float32"], exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("phi", ["tanh", "softplus"])
def test_half_precision(dtype: torch.dtype, phi: str) -> None:
    loop, ours = networks(0.25, dtype, nonlinearity=phi)
    x = torch.randn(9, 20, 3).to(dtype).requires_grad_()
    exact = gradients(copy.deepcopy(loop).double(), x.detach().double().requires_grad_())
    assert_as_accurate(gradients(ours, x), gradients(loop, x), exact)


@pytest.mark.parametrize("steps_in", ["engine", "python"])
def test_a_small_alpha_loses_no_digits(steps_in: str) -> None:
    """The slopes aren't read off the states, of which little is new at a step."""
    loop, ours = networks(1e-3, torch.float32)
    if steps_in == "python":
        ours.alpha.requires_grad_()
    x = torch.randn(300, 4, 3, requires_grad=True)
    exact = gradients(copy.deepcopy(loop).double(), x.detach().double().requires_grad_())
    found = gradients(ours, x)
    assert_as_accurate(found, gradients(loop, x), exact)


@ALPHAS
def test_alpha_is_a_buffer(alpha: Any) -> None:
    rnn = LeakyRNN(3, 7, alpha=alpha, dtype=torch.float64)
    given = isinstance(alpha, Tensor)
    assert ("alpha" in rnn.state_dict()) == given
    assert [name for name, _ in rnn.named_buffers()] == ["alpha"]
    assert torch.equal(rnn.alpha, torch.as_tensor(alpha, dtype=torch.float64).expand(7))
    assert rnn.half().alpha.dtype == torch.float16
    assert repr(rnn) == f"LeakyRNN(3, 7, alpha={(7,) if given else f'{alpha:.4g}'})"
    if given:
        alpha[0] = 0.05  # a copy
        other = LeakyRNN(3, 7, alpha=torch.zeros(7), dtype=torch.float16)
        other.load_state_dict(rnn.state_dict())
        assert torch.equal(other.alpha, rnn.alpha)


@pytest.mark.parametrize(
    ("alpha", "error", "words"),
    [
        (1.5, ValueError, "between 0 and 1, got 1.5"),
        (torch.tensor([0.5, -0.1, 0.2]), ValueError, "between 0 and 1"),
        (torch.full((2,), 0.5), ValueError, r"of shape \(3,\), got torch.float32 of shape \(2,\)"),
        (torch.ones(3, dtype=torch.int64), ValueError, "got torch.int64"),
        ("0.2", TypeError, "expected a number or a tensor, got str"),
        (None, TypeError, "got NoneType"),
        (True, TypeError, "got bool"),
    ],
)
def test_another_alpha_is_refused(alpha: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        LeakyRNN(2, 3, alpha=alpha)


def test_checkpoints_go_into_nn_rnn_and_back() -> None:
    builtin, rnn = nn.RNN(3, 7, **BOTH_WAYS), LeakyRNN(3, 7, alpha=0.2, **BOTH_WAYS)
    rnn.load_state_dict(builtin.state_dict())
    builtin.load_state_dict(rnn.state_dict())
    plain = LeakyRNN(3, 7, alpha=1, **BOTH_WAYS)
    plain.load_state_dict(builtin.state_dict())
    x = torch.randn(5, 2, 3)
    assert_same_results(plain(x), builtin(x))


def test_it_is_no_nn_rnn() -> None:
    rnn = LeakyRNN(3, 7, alpha=0.2)
    with pytest.raises(TypeError, match="expected ManualRNN itself, got LeakyRNN"):
        rnn.to_builtin()
    with pytest.raises(TypeError, match="has an __init__ of its own"):
        swap_rnn(nn.Sequential(nn.RNN(3, 7)), to=LeakyRNN)
    x = torch.randn(5, 2, 3)
    for name in ("aten", "triton"):
        assert "can't run here: it knows no leak" in explain_kernel(rnn, x)
        with use_kernel(name), pytest.raises(RuntimeError, match="can't run here: it knows no leak"):
            rnn(x)
    assert "native    runs: the fastest that can" in explain_kernel(rnn, x)


def test_a_plain_call_is_one_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.has_aten_node:
        pytest.skip("no compiler, or another torch")
    calls: list[Any] = []
    run: Any = plain_network.cudnn_rnn

    def watched(*args: Any) -> Any:
        calls.append(args)
        return run(*args)

    monkeypatch.setattr(plain_network, "cudnn_rnn", watched)
    rnn = LeakyRNN(3, 7, alpha=0.2)
    rnn(torch.randn(5, 2, 3))
    rnn(packed(torch.randn(5, 4, 3), LENGTHS))
    assert len(calls) == 2


@pytest.mark.parametrize("kernel", ["default", "reference"])
def test_copies_hold_the_same_network(kernel: KernelName) -> None:
    loop, rnn = networks(ROW)
    file = io.BytesIO()
    torch.save(rnn, file)
    file.seek(0)
    x = random(5, 2, 3)
    for other in (
        copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn)), torch.load(file, weights_only=False),
    ):  # fmt: skip
        with use_kernel(kernel):
            assert_same(gradients(other, x), gradients(loop, x))


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("kernel", KERNELS)
def test_no_step_and_one(steps: int, kernel: KernelName) -> None:
    loop, rnn = networks(**BOTH_WAYS)
    x, hx = random(steps, 2, 3), random(4, 2, 7)
    with use_kernel(kernel):
        found = rnn(x, hx)
    assert_same_results(found, loop(x, hx), 1e-12)
    (found_grad,) = torch.autograd.grad(found[1].sin().sum(), hx)
    (expected,) = torch.autograd.grad(loop(x, hx)[1].sin().sum(), hx)
    assert_same({"hx": found_grad}, {"hx": expected})


@pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l1", "every weight", "input"])
def test_gradients_in_part(frozen: str) -> None:
    x, hx = random(5, 2, 3), random(4, 2, 7)
    runs = []
    for rnn in networks(**BOTH_WAYS):
        for name, p in rnn.named_parameters():
            p.requires_grad_(name != frozen and frozen != "every weight")
        given = x.detach() if frozen == "input" else x
        runs.append(gradients(rnn, given, hx if frozen != "input" else hx.detach()))
    assert_same(runs[1], runs[0])


def per_member(rnn: nn.Module, state: dict[str, Tensor], x: Tensor) -> Tensor:
    return functional_call(rnn, state, (x,))[0].square().sum()


@pytest.mark.parametrize("form", ["all of it", "alpha alone", "weights alone"])
def test_ensembles(form: str) -> None:
    """Members that differ in weights, in `alpha`, or in both, with the gradient of each."""
    members = [LeakyRNN(3, 7, alpha=torch.rand(7), dtype=torch.float64, **BOTH_WAYS) for _ in range(3)]
    rnn, x = members[0], random(3, 5, 2, 3).detach()
    weights, buffers = stack_module_state(members)  # type: ignore[arg-type]
    weights = {name: w.detach() for name, w in weights.items()}
    if form == "alpha alone":
        weights = {name: w[:1].expand_as(w) for name, w in weights.items()}
    if form == "weights alone":
        buffers = {"alpha": rnn.alpha.expand(3, 7)}
    mapped = {**weights, **buffers}
    if form == "alpha alone":
        shared = {name: w[0] for name, w in weights.items()}
        run = lambda alpha, x: per_member(rnn, {**shared, "alpha": alpha}, x)  # noqa: E731
        found = vmap(grad(run, argnums=1))(buffers["alpha"], x)
    else:
        found = vmap(grad(lambda state, x: per_member(rnn, state, x), argnums=1))(mapped, x)
    for number in range(3):
        state = {name: value[number] for name, value in mapped.items()}
        leaf = x[number].clone().requires_grad_()
        (expected,) = torch.autograd.grad(by_loop(state, leaf).square().sum(), leaf)
        assert_same({"x": found[number]}, {"x": expected})


def by_loop(state: dict[str, Tensor], x: Tensor) -> Tensor:
    loop = Loop(3, 7, dtype=torch.float64, alpha=state["alpha"], **BOTH_WAYS)
    return functional_call(loop, {name: w for name, w in state.items() if name != "alpha"}, (x,))[0]


def test_gradients_of_each_sample() -> None:
    _, rnn = networks(**BOTH_WAYS)
    weights, x = {name: p.detach() for name, p in rnn.named_parameters()}, random(4, 5, 1, 3).detach()
    found = vmap(grad(partial(per_member, rnn)), (None, 0))(weights, x)
    for number in range(4):
        leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
        result = by_loop({**leaves, "alpha": rnn.alpha}, x[number]).square().sum()
        expected = dict(zip(leaves, torch.autograd.grad(result, list(leaves.values())), strict=True))
        assert_same({name: g[number] for name, g in found.items()}, expected)


@pytest.mark.parametrize("way", ["parameter", "buffer", "grad", "grad within grad", "jvp", "grad over vmap"])
def test_a_derivative_by_alpha_is_never_dropped(way: str) -> None:
    """Python takes the steps then."""
    loop, rnn = networks()
    x, row = random(5, 2, 3).detach(), ROW.double().clamp(0.1, 0.9)

    def value(alpha: Tensor) -> Tensor:
        return functional_call(rnn, {"alpha": alpha}, (x,))[0].sin().sum()

    def judged(alpha: Tensor) -> Tensor:
        loop.leak = alpha
        return loop(x)[0].sin().sum()

    leaf = row.clone().requires_grad_()
    (expected,) = torch.autograd.grad(judged(leaf), leaf)
    if way == "parameter":
        rnn.alpha = nn.Parameter(row)
        (found,) = torch.autograd.grad(rnn(x)[0].sin().sum(), rnn.alpha)
    elif way == "buffer":
        rnn.alpha.copy_(row).requires_grad_()
        (found,) = torch.autograd.grad(rnn(x)[0].sin().sum(), rnn.alpha)
    elif way == "grad":
        found = grad(value)(row)
    elif way == "grad within grad":  # the outer one by alpha, the inner one by the input
        inner = lambda alpha, x: functional_call(rnn, {"alpha": alpha}, (x,))[0].sin().sum()  # noqa: E731
        outer = lambda alpha: grad(inner, argnums=1)(alpha, x).square().sum()  # noqa: E731
        found, leaf = grad(outer)(row), row.clone().requires_grad_()
        again = x.clone().requires_grad_()
        loop.leak = leaf
        (slope,) = torch.autograd.grad(loop(again)[0].sin().sum(), again, create_graph=True)
        (expected,) = torch.autograd.grad(slope.square().sum(), leaf)
    elif way == "jvp":
        tangent = torch.randn(7, dtype=torch.float64)
        found, expected = jvp(value, (row,), (tangent,))[1], (expected * tangent).sum()
    else:
        over = lambda alpha: vmap(lambda x: functional_call(rnn, {"alpha": alpha}, (x,))[0])(x)  # noqa: E731
        found = grad(lambda alpha: over(alpha).sin().sum())(row)
        loop.leak, leaf = leaf, leaf
        each = torch.stack([loop(one)[0] for one in x]).sin().sum()
        (expected,) = torch.autograd.grad(each, leaf)
    assert_same({"alpha": found}, {"alpha": expected})


def test_alpha_that_is_edited_before_backward_is_noticed() -> None:
    for kernel in ("default", "torch"):
        rnn = LeakyRNN(3, 7, alpha=ROW)
        with use_kernel(kernel):  # type: ignore[arg-type]
            output, _ = rnn(torch.randn(5, 2, 3))
        rnn.alpha.mul_(0.5)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


def test_alpha_of_another_shape_is_refused() -> None:
    rnn = LeakyRNN(3, 7, alpha=0.2)
    rnn.alpha = torch.full((6,), 0.2)
    with pytest.raises(RuntimeError, match=r"alpha must have shape \(7,\), got \(6,\)"):
        rnn(torch.randn(5, 2, 3))


def test_many_cotangents_at_once() -> None:
    x = random(5, 2, 3)
    results = []
    for rnn in networks():
        output = rnn(x)[0]
        many = torch.eye(4, dtype=torch.float64) @ torch.randn(
            4, output.numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        batch = many.view(4, *output.shape)
        (found,) = (
            torch.autograd.grad(output, x, batch, is_grads_batched=isinstance(rnn, LeakyRNN))
            if (isinstance(rnn, LeakyRNN))
            else (torch.stack([torch.autograd.grad(output, x, c, retain_graph=True)[0] for c in batch]),)
        )
        results.append({"x": found})
    assert_same(results[1], results[0])


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch.export's own, up to 2.12
def test_one_graph_and_one_program_for_all_lengths() -> None:
    torch._dynamo.reset()
    loop, rnn = networks(**BOTH_WAYS)
    x, hx = random(5, 2, 3), random(4, 2, 7)
    compiled = copy.deepcopy(rnn)
    compiled.compile(fullgraph=True, backend="aot_eager")
    assert_same(gradients(compiled, x, hx), gradients(loop, x, hx))
    shapes = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
    program = torch.export.export(rnn, (x.detach(),), dynamic_shapes=shapes)
    assert [node.target for node in program.graph.nodes if "manual_rnn" in str(node.target)] == [
        OPS.network.default
    ]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    longer = random(9, 3, 3)
    for loaded in (program.module(), torch.export.load(file).module()):
        assert_same_results(loaded(longer), loop(longer), 1e-12)
        (found,) = torch.autograd.grad(loaded(longer)[0].sin().sum(), longer)
        (expected,) = torch.autograd.grad(loop(longer)[0].sin().sum(), longer)
        assert_same({"x": found}, {"x": expected})


@pytest.mark.parametrize(
    "form", ["fixed", pytest.param("open", marks=LOOPS), pytest.param("packed", marks=LOOPS)]
)
def test_a_program_of_pytorchs_operations(form: str) -> None:
    loop, rnn = networks(**BOTH_WAYS)
    x = random(5, 4, 3).detach()
    if form == "packed":
        given = packed(x, LENGTHS), random(4, 4, 7).detach()
        program = export_standalone(rnn, given)
        assert_same({"data": program.module()(*given)[0].data}, {"data": loop(*given)[0].data})
        return
    shapes = ({0: Dim.DYNAMIC},) if form == "open" else None
    program = export_standalone(rnn, (x,), dynamic_shapes=shapes)
    assert "manual_rnn" not in str(program.graph)
    longer = x if form == "fixed" else random(8, 4, 3).detach()
    assert_same_results(program.module()(longer), loop(longer), 1e-12)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # of opcheck, 2.14 on
def test_operators() -> None:
    """`opcheck` of both, with `alpha` and an ensemble of it."""
    torch.manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    alpha, G = ROW[1:4].double(), 2
    for group in ((), (G,)):
        a = alpha.expand(*group, 3).contiguous()
        weights = [draw(*group, 3, 2), draw(*group, 3, 3), draw(*group, 3), draw(*group, 3)]
        given = draw(*group, 4, 2, 2), draw(*group, 1, 2, 3), weights, None, "tanh", False, True, True
        torch.library.opcheck(OPS.network.default, (*given, a))
        torch.library.opcheck(OPS.network.kernel, (*given, "torch", a))
        _, _, states = OPS.network(*given, a)
        assert len(states) == 2
        need, kept = [True] * 6, [s.detach() for s in states]
        cotangents = draw(*group, 4, 2, 3), draw(*group, 1, 2, 3)
        vjp = need, *given[:2], weights[:2], kept, *cotangents, None, "tanh", False, a
        torch.library.opcheck(OPS.network_vjp.default, vjp, test_utils=("test_schema", "test_faketensor"))


def test_shapes_that_do_not_fit() -> None:
    x, weights = torch.randn(4, 2, 2), [torch.randn(3, 2), torch.randn(3, 3)]
    for wrong in (torch.ones(2), torch.ones(1, 3), torch.ones(()), torch.ones(3, dtype=torch.float64)):
        with pytest.raises((RuntimeError, ValueError), match=r"alpha|shapes"):
            OPS.network(x, None, weights, None, "tanh", False, False, True, wrong)
    states = OPS.network(x, None, weights, None, "tanh", False, False, True, torch.ones(3))[2]
    vjp = [True] * 4, x, None, weights, states[:1], states[0], None, None, "tanh", False, torch.ones(3)
    with pytest.raises((RuntimeError, ValueError), match="expected"):
        OPS.network_vjp(*vjp)


def test_a_trace_sees_the_leaky_states() -> None:
    loop, rnn = networks(0.2)
    x = random(5, 1, 3).detach()
    seen = trace(rnn, x)
    assert_same_results((seen.output, seen.h_n), loop(x), 1e-12)
    (run,) = seen.passes
    h = torch.stack(run.walk())[:, 0]
    slope = 1 - torch.stack(run.preactivations)[:, 0].tanh() ** 2
    by_hand = 0.8 * torch.eye(7, dtype=torch.float64) + 0.2 * slope.unsqueeze(-1) * run.weight_hh
    assert run.own_step
    assert h.shape == (5, 7)
    assert_same({"J": step_jacobians(run)}, {"J": by_hand.detach()})


def test_flops_are_those_without_a_leak() -> None:
    counts = []
    for rnn in (ManualRNN(3, 7, **BOTH_WAYS), LeakyRNN(3, 7, alpha=0.2, **BOTH_WAYS)):
        with FlopCounterMode(display=False) as counter:
            rnn(torch.randn(5, 2, 3))[0].sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("checkpointed", [False, True])
def test_autocast_and_checkpoint(checkpointed: bool) -> None:
    rnn, x = LeakyRNN(3, 7, alpha=0.25, **BOTH_WAYS), torch.randn(6, 2, 3, requires_grad=True)
    own = copy.deepcopy(rnn).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        if checkpointed:
            output = torch.utils.checkpoint.checkpoint(rnn, x, use_reentrant=False)[0]
        else:
            output = rnn(x)[0]
    assert output.dtype is torch.bfloat16
    assert_same({"output": output}, {"output": own(x.bfloat16())[0]}, 0)
    output.sum().backward()
    assert x.grad is not None


def test_a_subclass_with_a_step_of_its_own_takes_it() -> None:
    class Noisy(LeakyRNN):
        def step(self, gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Tensor:
            return super().step(gates + 1, hidden, weight_hh)

    rnn, plain, x = Noisy(3, 7, alpha=0.2), LeakyRNN(3, 7, alpha=0.2), torch.randn(5, 2, 3)
    plain.load_state_dict(rnn.state_dict())
    with torch.no_grad():
        plain.get_parameter("bias_hh_l0").add_(1)
    assert_same_results(rnn(x), plain(x))
    with use_kernel("native"), pytest.raises(RuntimeError, match="this recurrence is your own"):
        rnn(x)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_script_holds_pytorchs_operations() -> None:
    loop, rnn = networks()
    x = random(5, 2, 3).detach()
    traced: Any = torch.jit.trace(rnn, (x,))
    assert "manual_rnn::" not in str(traced.inlined_graph)
    assert_same_results(traced(x), loop(x), 1e-12)


class Dale(nn.Module):
    """Units that excite or inhibit, on the connections that a mask leaves."""

    kept: Tensor

    def __init__(self, signs: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", mask * signs)

    def forward(self, weight: Tensor) -> Tensor:
        return weight.abs() * self.kept


class LowRank(nn.Module):
    """The sum of two outer products."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight[:, :2] @ weight[:2]


@pytest.mark.parametrize("kind", ["Dale's law", "low rank"])
def test_constraints_run_in_the_engine(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By parametrization, with the leak, and with the gradient of what is trained."""
    loop, rnn = networks(0.2, nonlinearity="softplus")
    signs, mask = torch.ones(7).double(), (torch.rand(7, 7) < 0.6).double()
    signs[5:] = -1
    constraint = Dale(signs, mask) if kind == "Dale's law" else LowRank()
    for network in (loop, rnn):
        parametrize.register_parametrization(network, "weight_hh_l0", copy.deepcopy(constraint))
    x = random(5, 2, 3)
    assert rnn.weight_hh_l0 is not rnn.parametrizations.weight_hh_l0.original  # type: ignore[union-attr]
    monkeypatch.setattr(ManualRNN, "step", lambda *_: pytest.fail("Python took the steps"))
    monkeypatch.setattr(ManualRNN.step, "_manual_rnn_builtin", True, raising=False)
    assert_same(gradients(rnn, x), gradients(loop, x))
    if kind == "Dale's law":
        weight: Any = rnn.weight_hh_l0
        assert bool((weight[:, 5:] <= 0).all())
