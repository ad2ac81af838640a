r"""Every row of the table of nonlinearities: by name, as a function and as a module of PyTorch, on every
kernel that claims it, against the loop with PyTorch's own function.

Derivatives of the recurrences are in test_operators.py, transforms in tests/beyond/.
"""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from helpers import LOOPS, assert_as_accurate, assert_same, error, gradients, kernels_for, packed
from internals import OPS, KernelName, native, plain_network
from loop import PHI, Loop
from torch import Tensor, nn
from torch.export import Dim

from manual_rnn import ManualRNN, explain_kernel, export_standalone, swap_rnn, use_kernel
from manual_rnn.kernels.aten import NONLINEARITIES as NN_RNN
from manual_rnn.kernels.nonlinearities import PHI as ROWS

EACH = pytest.mark.parametrize("name", ROWS)
NEW = [name for name in ROWS if name not in NN_RNN]
SAME = [(name, same) for name, row in ROWS.items() for same in (*row.functions, row.module)]
LENGTHS = [5, 3, 3, 1]
ANOTHER: dict[str, nn.Module] = {  # of the same class, with other settings
    "softplus": nn.Softplus(beta=2),
    "hardtanh": nn.Hardtanh(-2, 2),
    "leaky_relu": nn.LeakyReLU(0.3),
    "relu": nn.ReLU(inplace=True),
}


def named(x: Any) -> str:
    """As a test is called, in every process alike."""
    return x if isinstance(x, str) else getattr(x, "__name__", type(x).__name__)


def test_the_judge_knows_every_row() -> None:
    assert PHI.keys() == ROWS.keys()
    assert len({row.code for row in ROWS.values()}) == len({row.mode for row in ROWS.values()}) == len(ROWS)


def networks(phi: Any, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Loop, ManualRNN]:
    """A judge and a network of ours with its weights."""
    torch.manual_seed(0)
    name = phi if isinstance(phi, str) else next(name for name, same in SAME if same is phi)
    loop = Loop(3, 17, nonlinearity=name, dtype=dtype, **options)
    ours = ManualRNN(3, 17, nonlinearity=phi, dtype=dtype, **options)
    ours.load_state_dict(loop.state_dict())
    return loop, ours


@pytest.mark.parametrize(
    ("name", "kernel", "form"),
    [(n, k, f) for n, k, f in product(ROWS, kernels_for(torch.float32), ("padded", "packed")) if
     k != "aten" or n in NN_RNN],
)  # fmt: skip
def test_results_and_every_gradient(name: str, kernel: KernelName, form: str) -> None:
    """In float64 to the last digits, in float32 about as exact as PyTorch's own function step by step."""
    options = {"num_layers": 2, "bidirectional": True}
    x, hx = torch.randn(5, 4, 3) * 2, torch.randn(4, 4, 17)
    pack = partial(packed, lengths=LENGTHS) if form == "packed" else lambda x: x
    runs: dict[str, Any] = {}
    for dtype in (torch.float64, torch.float32):
        given = x.to(dtype).requires_grad_(), hx.to(dtype).requires_grad_()
        loop, ours = networks(name, dtype, **options)
        ours.load_state_dict(networks(name, torch.float32, **options)[0].state_dict())
        loop.load_state_dict(ours.state_dict())
        with use_kernel(kernel):
            runs[f"ours {dtype}"] = gradients(ours, *given, pack)
        runs[f"loop {dtype}"] = gradients(loop, *given, pack)
    exact = runs["loop torch.float64"]
    assert_same(runs["ours torch.float64"], exact)
    assert_as_accurate(runs["ours torch.float32"], runs["loop torch.float32"], exact)


@EACH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_number_is_as_exact_as_pytorchs(name: str, dtype: torch.dtype) -> None:
    """Values to a few units in the last place of each, slopes to as much of 1; kinks and infinities too."""
    few = [0.0, -0.0, 1.0, -1.0, 20.0, 19.99, 20.01, torch.inf, -torch.inf, -90.0, -800.0]
    a = torch.cat([torch.linspace(-40, 40, 4001), torch.tensor(few)]).to(dtype)
    z, zero, w = a.view(1, -1, 1), torch.zeros(len(a), 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    found = OPS.elman(z, zero, w, None, name, False).flatten()
    leaf, ulp = a.double().requires_grad_(), torch.finfo(dtype).eps
    exact = PHI[name](leaf)
    tiny = torch.finfo(dtype).tiny
    finite = exact.isfinite()
    off = ((found.double() - exact).abs() / exact.abs().clamp(min=tiny))[finite]
    assert off.max() <= 3 * ulp
    assert torch.equal(found[~finite].double(), exact[~finite])
    (slopes,) = torch.autograd.grad(exact.sum(), leaf)
    states = exact.detach().to(dtype).view_as(z)
    found = OPS.linear_recurrence(torch.ones_like(z), states, w, None, name, False).flatten()
    assert error(found, slopes) <= 3 * ulp


@EACH
def test_further_derivatives(name: str) -> None:
    ours = ManualRNN(1, 2, nonlinearity=name, bidirectional=True, dtype=torch.float64)
    names = [key for key, _ in ours.named_parameters()]

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(ours, dict(zip(names, weights, strict=True)), (x,))[0]

    torch.manual_seed(3)
    x = torch.randn(3, 2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *ours.parameters()), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, (x, *ours.parameters()))


@pytest.mark.parametrize(("name", "same"), SAME, ids=named)
def test_a_function_that_means_the_same_runs_in_the_engine(
    name: str, same: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit as the name does; the object stays what it was."""
    named, own = (networks(phi, num_layers=2)[1] for phi in (name, same))
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    assert own.nonlinearity is same
    assert list(own.state_dict()) == list(named.state_dict())
    assert ("(nonlinearity)" in repr(own)) == isinstance(same, nn.Module)
    monkeypatch.setattr(ManualRNN, "step", lambda *_: pytest.fail("Python took the steps"))
    monkeypatch.setattr(ManualRNN.step, "_manual_rnn_builtin", True, raising=False)
    for rnn in (own, copy.deepcopy(own), pickle.loads(pickle.dumps(own)), copy.deepcopy(own).eval()):
        assert_same(gradients(rnn, x), gradients(named, x), 0)


def steps_in_python(rnn: ManualRNN) -> bool:
    return "this recurrence is your own" in explain_kernel(rnn, torch.randn(5, 2, 3, dtype=torch.float64))


@pytest.mark.parametrize("name", ANOTHER)
def test_other_settings_are_another_function(name: str) -> None:
    rnn = ManualRNN(3, 4, nonlinearity=ANOTHER[name], bias=False, dtype=torch.float64)
    assert steps_in_python(rnn)
    x, w = torch.randn(1, 2, 3, dtype=torch.float64), rnn.state_dict()["weight_ih_l0"]
    assert torch.allclose(rnn(x)[0][0], ANOTHER[name](x[0] @ w.mT))


@pytest.mark.parametrize("kind", ["hook", "hook of all modules", "subclass", "own forward"])
def test_a_module_that_somebody_watches_runs_as_it_is(kind: str) -> None:
    seen: list[Any] = []

    class Own(nn.Sigmoid):
        def forward(self, input: Tensor) -> Tensor:
            seen.append(input)
            return super().forward(input)

    phi = Own() if kind == "subclass" else nn.Sigmoid()
    rnn = ManualRNN(3, 4, nonlinearity=phi, dtype=torch.float64)
    if kind == "own forward":
        phi.forward = partial(Own.forward, Own())  # type: ignore[method-assign]
    watch: Callable[..., Any] = lambda module, *_: seen.append(0) if module is phi else None  # noqa: E731
    handle = None
    if kind == "hook":
        handle = phi.register_forward_hook(watch)
    elif kind == "hook of all modules":
        handle = nn.modules.module.register_module_forward_hook(watch)
    rnn(torch.randn(5, 2, 3, dtype=torch.float64))
    assert len(seen) == 5
    if handle is not None:
        handle.remove()
        assert not steps_in_python(rnn)


def test_a_nonlinearity_that_is_replaced_is_the_next_call_s() -> None:
    rnn, x = ManualRNN(3, 4, nonlinearity=torch.sigmoid), torch.randn(5, 2, 3)
    before = rnn(x)[0]
    rnn.nonlinearity = torch.tanh
    named = ManualRNN(3, 4)
    named.load_state_dict(rnn.state_dict())
    assert torch.equal(rnn(x)[0], named(x)[0])
    assert not torch.equal(rnn(x)[0], before)


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("kernel", ["aten", "triton"])
def test_a_kernel_that_does_not_know_it_says_so(name: str, kernel: KernelName) -> None:
    rnn, x = ManualRNN(3, 4, nonlinearity=name), torch.randn(5, 2, 3)
    reason = f"can't run here: it knows tanh and relu, got {name}"
    assert f"{kernel:9} {reason}" in explain_kernel(rnn, x)
    with use_kernel(kernel), pytest.raises(RuntimeError, match=reason):
        rnn(x)


@pytest.mark.parametrize("name", NEW)
def test_nn_rnn_has_none_of_them(name: str) -> None:
    rnn = ManualRNN(3, 4, nonlinearity=name)
    assert repr(rnn) == f"ManualRNN(3, 4, nonlinearity={name})"
    for convert in (rnn.to_builtin, partial(swap_rnn, nn.Sequential(rnn), to=nn.RNN)):
        with pytest.raises(TypeError, match=f"expected nonlinearity 'tanh' or 'relu', got {name}"):
            convert()
    with pytest.raises(ValueError, match="Unknown nonlinearity"):
        nn.RNN(3, 4, nonlinearity=name)


@EACH
def test_without_a_compiler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "unavailable", "no compiler")
    monkeypatch.setattr(native, "has_aten_node", False)
    loop, ours = networks(name)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    assert_same(gradients(ours, x), gradients(loop, x))


@pytest.mark.parametrize("phi", [*NEW, torch.sigmoid, ROWS["softplus"].module], ids=named)
def test_one_graph_and_one_program_for_all_lengths(phi: Any) -> None:
    if isinstance(phi, nn.Module) and torch.__version__ < "2.13":
        pytest.skip("its Dynamo can't read what a module has, and breaks the graph")
    torch._dynamo.reset()
    loop, ours = networks(phi, bidirectional=True)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    rnn = copy.deepcopy(ours)
    rnn.compile(fullgraph=True, backend="aot_eager")
    assert_same(gradients(rnn, x), gradients(loop, x))
    program = torch.export.export(ours, (x.detach(),), dynamic_shapes=({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},))
    assert [node.target for node in program.graph.nodes if "manual_rnn" in str(node.target)] == [
        OPS.network.default
    ]
    longer = torch.randn(9, 3, 3, dtype=torch.float64)
    assert_same({"output": program.module()(longer)[0]}, {"output": loop(longer)[0].detach()}, 1e-12)


@EACH
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # since torch 2.15
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traces_hold_pytorchs_operations(name: str) -> None:
    loop, ours = networks(name)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    traced: Any = torch.jit.trace(ours, (x,))
    assert "manual_rnn::" not in str(traced.inlined_graph)
    assert_same({"output": traced(x)[0]}, {"output": loop(x)[0]})


@EACH
@LOOPS
def test_a_program_of_pytorchs_operations(name: str) -> None:
    loop, ours = networks(name)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    program = export_standalone(ours, (x,), dynamic_shapes=({0: Dim.DYNAMIC},))
    longer = torch.randn(9, 2, 3, dtype=torch.float64)
    assert_same({"output": program.module()(longer)[0]}, {"output": loop(longer)[0]})


def test_complex_numbers() -> None:
    torch.manual_seed(0)
    rnn, x = ManualRNN(3, 4, nonlinearity="sigmoid", dtype=torch.complex128), torch.randn(5, 2, 3)
    own = ManualRNN(3, 4, nonlinearity=lambda a: torch.sigmoid(a), dtype=torch.complex128)
    own.load_state_dict(rnn.state_dict())
    assert_same(gradients(rnn, x.to(torch.complex128)), gradients(own, x.to(torch.complex128)))


def test_the_fast_path_takes_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.has_aten_node:
        pytest.skip("no compiler, or another torch")
    calls: list[int] = []

    def watched(*args: Any) -> Any:
        calls.append(args[6])
        return run(*args)

    run: Any = plain_network.cudnn_rnn
    monkeypatch.setattr(plain_network, "cudnn_rnn", watched)
    phis: list[Any] = [*ROWS, *(same for _, same in SAME)]
    for phi in phis:
        ManualRNN(3, 4, nonlinearity=phi)(torch.randn(5, 2, 3))
    assert calls == [row.code for row in ROWS.values()] + [ROWS[name].code for name, _ in SAME]
