r"""What `test_triton.py` runs in a process of its own: the kernel in Triton's interpreter, on a CPU.

The interpreter multiplies in full float32 whatever the precision, takes programs one after another, and
multiplies the bits of bfloat16 as integers (3.7.1), so that float16 stands for both.
"""

import copy
from typing import Any

import pytest
import torch
from helpers import PHI, assert_as_accurate, assert_same, error, gradients, packed, twins
from internals import OPS, elman, kernels, linear_recurrence, native, triton_launch
from test_infinities import problem, values_and_gradients
from torch import Tensor
from torch.func import functional_call, grad, hessian, stack_module_state, vmap

from manual_rnn import ManualRNN, use_kernel

BOUND = {torch.float32: 3e-6, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on a CPU pass for tensors on a card that can all, and memory comes filled with NaN."""
    monkeypatch.setattr(triton_launch, "DEVICE", "cpu")
    monkeypatch.setattr(triton_launch, "_why_not_on", lambda *_: None)
    empty = Tensor.new_empty

    def poisoned(x: Tensor, *shape: Any, **how: Any) -> Tensor:
        found = empty(x, *shape, **how)
        return found.fill_(torch.nan) if found.is_floating_point() else found

    monkeypatch.setattr(Tensor, "new_empty", poisoned)


def draw(shape: tuple[int, ...], dtype: torch.dtype, form: str) -> Tensor:
    """Random numbers, transposed in memory where `form` says so."""
    if form == "transposed":
        return torch.randn(*shape[:-2], shape[-1], shape[-2], dtype=dtype).mT
    return torch.randn(shape, dtype=dtype)


@PHI
@pytest.mark.parametrize("form", ["plain", "transposed"])
@pytest.mark.parametrize("sizes", [None, [18, 17, 2]], ids=str)
@pytest.mark.parametrize("members", [(), (2,)], ids=str)
@pytest.mark.parametrize(
    ("H", "dtype"), [(1, torch.float32), (20, torch.float32), (17, torch.float16)], ids=str
)
def test_both_recurrences(
    H: int, dtype: torch.dtype, members: tuple[int, ...], sizes: Any, form: str, nonlinearity: str
) -> None:
    T, B, sizes = 3, 18, sizes and torch.tensor(sizes)
    rows = (T, B) if sizes is None else (int(sizes.sum()),)
    x, h0 = draw((*members, *rows, H), dtype, form), draw((*members, B, H), dtype, form)
    m = draw((*members, H, H), dtype, form) / H**0.5
    for reverse in (False, True):
        how = sizes, nonlinearity, reverse
        h = triton_launch.elman(x, h0, m, *how)
        y = triton_launch.linear_recurrence(x, h, m, *how)
        judge, exact = kernels.KERNELS["torch"], [t.double() for t in (x, h0, m, h)]
        assert error(h, judge.elman(*exact[:3], *how)) < BOUND[dtype]
        assert error(y, judge.linear_recurrence(exact[0], exact[3], exact[2], *how)) < BOUND[dtype]
        assert h.dtype == y.dtype == dtype
        assert h.is_contiguous()


@PHI
@pytest.mark.parametrize("lengths", [None, [4, 3, 1], [1, 4, 3]], ids=str)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}], ids=str)
def test_a_module_and_every_gradient(options: dict[str, Any], lengths: Any, nonlinearity: str) -> None:
    builtin, manual = twins(3, 18, nonlinearity=nonlinearity, **options)
    input, hx = torch.randn(4, 3, 3, requires_grad=True), torch.randn(len(builtin.all_weights), 3, 18)
    pack = (lambda x: packed(x, lengths)) if lengths else (lambda x: x)
    exact = gradients(copy.deepcopy(builtin).double(), input.double(), hx.double(), pack)
    with use_kernel("triton"):
        found = gradients(manual, input, hx, pack)
    assert_as_accurate(found, gradients(builtin, input, hx, pack), exact)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's
def test_infinities_go_where_they_go_in_nn_rnn() -> None:
    for seed in range(40):
        rnn, *given = problem(seed)
        expected = values_and_gradients(rnn, *given)
        with use_kernel("triton"):
            found = values_and_gradients(ManualRNN.from_builtin(rnn), *given)
        for place, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True), f"{seed=} {place=}"


def test_small_states_keep_their_digits() -> None:
    z, h0, w = torch.logspace(-30, 1, 64).reshape(1, 4, 16), torch.zeros(4, 16), torch.eye(16)
    off = triton_launch.elman(z, h0, w, None, "tanh", False) / torch.tanh(z.double()) - 1
    assert off.abs().max() < 4 * torch.finfo(torch.float32).eps


def test_transforms() -> None:
    """Per-sample gradients, a Hessian, an ensemble: as by the `torch` kernel in float64."""
    rnns = [ManualRNN(2, 3) for _ in range(3)]
    weights = {name: p.detach() for name, p in rnns[0].named_parameters()}
    stacked = {name: p.detach() for name, p in stack_module_state(rnns)[0].items()}  # type: ignore[arg-type]
    samples = torch.randn(3, 4, 1, 2)

    def run(weights: Any, x: Tensor) -> Tensor:
        return functional_call(rnns[0], weights, x)[0].sin().sum()

    for call in (
        lambda w, x, each: vmap(grad(run), in_dims=(None, 0))(w, x),
        lambda w, x, each: hessian(run)(w, x[0])["weight_hh_l0"],
        lambda w, x, each: vmap(grad(run))(each, x),
    ):
        with use_kernel("triton"):
            found = call(weights, samples, stacked)
        with use_kernel("torch"):
            w, each = ({name: p.double() for name, p in group.items()} for group in (weights, stacked))
            exact = call(w, samples.double(), each)
        assert_same({name: x.double() for name, x in found.items()}, exact, 1e-6)


def test_derivatives_of_the_recurrences() -> None:
    leaves = [torch.randn(shape) / 2 for shape in ((3, 2, 3), (2, 3), (3, 3))]

    def second(kernel: str, dtype: torch.dtype, run: Any, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        tensors = [x.to(dtype).requires_grad_() for x in tensors]
        value = run(*tensors, None, "tanh", True, kernel).sin().sum()
        first = torch.autograd.grad(value, tensors, create_graph=True)
        return torch.autograd.grad([g.square().sum() for g in first], tensors)

    for run, tensors in ((elman, leaves), (linear_recurrence, [leaves[0], leaves[0].tanh(), leaves[2]])):
        exact = second("torch", torch.float64, run, tensors)
        for found, right in zip(second("triton", torch.float32, run, tensors), exact, strict=True):
            assert error(found, right) < 1e-5


def test_a_compiled_and_an_exported_module() -> None:
    rnn, input = ManualRNN(3, 4), torch.randn(5, 2, 3)
    expected = rnn(input)[0]
    with use_kernel("triton"):
        program = torch.export.export(rnn, (input,)).module()
        compiled = torch.compile(rnn, backend="aot_eager", fullgraph=True)
        found = compiled(input)[0], program(input)[0]
    for output in found:
        assert_same({"output": output.detach()}, {"output": expected.detach()}, 1e-6)


def test_the_default_takes_it_before_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    z, h0, w = torch.randn(2, 3, 4), torch.randn(3, 4), torch.randn(4, 4)
    assert kernels.choose("default", z, h0, w) is native
    monkeypatch.setattr(native, "unsupported_reason", lambda *_: "not here")
    assert kernels.choose("default", z, h0, w) is triton_launch  # after its self-test
    how = None, "tanh", False
    assert error(OPS.elman(z, h0, w, *how, "default"), elman(z, h0, w, *how, "torch")) < 1e-6
