r"""Programs without operators of this package: they run where it can't be imported, with the same numbers."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import BY_HAND
from helpers import LOOPS, PHI, assert_same, assert_same_results, gradients, twins
from internals import OPS
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.nn.utils.rnn import PackedSequence

from manual_rnn import ManualRNN, decompositions, export_standalone

BOUND = {torch.float32: 2e-6, torch.float64: 1e-12}
REVERSE = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
OPEN = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
SIZES = torch.tensor([3, 2, 1]), torch.tensor([2, 2, 1, 1])


def targets(program: ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def loops(program: ExportedProgram) -> bool:
    """Whether there is a loop in it; of this package there may be nothing."""
    assert not any("manual_rnn" in name for name in targets(program))
    return "scan" in targets(program)


class OfRows(nn.Module):
    """A packed batch by its parts, as an exported program takes it."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, data: Tensor, batch_sizes: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
        output, h_n = self.rnn(PackedSequence(data, batch_sizes), hx)
        return output.data, h_n


LOADER = """
import sys
sys.modules["manual_rnn"] = None  # an import of it raises
import torch
for name in sys.argv[1:]:
    found = {load}
    torch.save(found(*torch.load(name + ".args")), name + ".found")
"""


def run_elsewhere(folder: Path, cases: dict[str, tuple[Any, ...]], load: str) -> dict[str, Any]:
    """What the programs saved as `<name>.pt2` give in a process without this package."""
    for name, args in cases.items():
        torch.save(args, folder / f"{name}.args")
    command = [sys.executable, "-W", "ignore", "-c", LOADER.format(load=load), *cases]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: torch.load(folder / f"{name}.found") for name in cases}


def cases(dtype: torch.dtype) -> Iterator[tuple[str, nn.Module, ExportedProgram, tuple[Tensor, ...]]]:
    """Name, twin, program, and arguments to run it on, of another length where that is open."""
    x, longer = torch.randn(5, 2, 3, dtype=dtype), torch.randn(9, 7, 3, dtype=dtype)
    builtin, manual = twins(3, 4, dtype=dtype, nonlinearity="relu", bidirectional=True, bias=False)
    yield "fixed", builtin, export_standalone(manual, (x,)), (x,)
    builtin, manual = twins(3, 4, 2, dtype=dtype, bidirectional=True, batch_first=True)
    program = export_standalone(manual, (x,), dynamic_shapes=OPEN)
    yield "open", builtin, program, (longer,)
    builtin, manual = twins(3, 4, dtype=dtype, bidirectional=True)
    args, others = (
        (torch.randn(6, 3, dtype=dtype), sizes, torch.randn(2, int(sizes[0]), 4, dtype=dtype))
        for sizes in SIZES
    )
    shapes = {0: Dim.DYNAMIC}, {0: Dim.DYNAMIC}, {1: Dim.DYNAMIC}
    program = export_standalone(OfRows(manual), args, dynamic_shapes=shapes, strict=True)
    yield "packed", OfRows(builtin), program, others


@LOOPS
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch.export's own, up to 2.12
def test_a_process_without_this_package(tmp_path: Path) -> None:
    args, expected = {}, {}
    for dtype in BOUND:
        for kind, builtin, program, given in cases(dtype):
            name = f"{kind} {dtype}"
            assert loops(program) == (kind != "fixed")
            torch.export.save(program, tmp_path / f"{name}.pt2")
            args[name], expected[name] = given, builtin(*given)
    found = run_elsewhere(tmp_path, args, 'torch.export.load(name + ".pt2").module()')
    for name, right in expected.items():
        assert_same_results(found[name], right, BOUND[right[0].dtype])


@LOOPS
@pytest.mark.slow
def test_a_compiled_package(tmp_path: Path) -> None:
    builtin, manual = twins(3, 4)
    shapes = ({0: Dim("T", min=2, max=64), 1: Dim("B", min=1, max=16)},)
    program = export_standalone(manual.requires_grad_(False), (torch.randn(5, 2, 3),), dynamic_shapes=shapes)
    torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "rnn.pt2"))
    x = torch.randn(9, 3, 3)
    found = run_elsewhere(tmp_path, {"rnn": (x,)}, 'torch._inductor.aoti_load_package(name + ".pt2")')
    assert_same_results(found["rnn"], builtin(x))


@pytest.mark.parametrize("length", ["fixed", pytest.param("open", marks=LOOPS)])
def test_a_program_trains(length: str) -> None:
    builtin, manual = twins(3, 4, 2, dtype=torch.float64, bidirectional=True)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    shapes = None if length == "fixed" else ({0: Dim.DYNAMIC},)
    program = export_standalone(manual, (x,), dynamic_shapes=shapes)
    assert loops(program) == (length == "open")
    assert_same(gradients(program.module(), x), gradients(builtin, x))


T, B = Dim.AUTO, Dim.AUTO
PADDED: dict[
    str, Any
] = {  # shapes of the tensors of an operator, traced and run, and the sizes that stay open
    "elman": ([(5, 3, 4), (3, 4), (4, 4)], [(9, 2, 4), (2, 4), (4, 4)], [{0: T, 1: B}, {0: B}, {}]),
    "ensemble": (
        [(2, 5, 3, 4), (2, 3, 4), (2, 4, 4)],
        [(2, 9, 6, 4), (2, 6, 4), (2, 4, 4)],
        [{1: T, 2: B}, {1: B}, {}],
    ),
    "linear": (
        [(5, 3, 4), (5, 3, 4), (4, 4)],
        [(9, 2, 4), (9, 2, 4), (4, 4)],
        [{0: T, 1: B}, {0: T, 1: B}, {}],
    ),
}
PACKED: dict[str, Any] = {  # six rows of three sequences, then six of two
    "elman": ([(6, 4), (3, 4), (4, 4)], [(6, 4), (2, 4), (4, 4)], [{}, {0: B}, {}]),
    "ensemble": ([(2, 6, 4), (2, 3, 4), (2, 4, 4)], [(2, 6, 4), (2, 2, 4), (2, 4, 4)], [{}, {1: B}, {}]),
    "linear": ([(6, 4), (6, 4), (4, 4)], [(6, 4), (6, 4), (4, 4)], [{}, {}, {}]),
}


def second_derivative(rnn: nn.Module, x: Tensor) -> Tensor:
    (first,) = torch.autograd.grad(rnn(x)[0].sin().sum(), x, create_graph=True)
    return torch.autograd.grad(first.square().sum(), x)[0]


def test_a_program_of_fixed_length_has_second_derivatives() -> None:
    builtin, manual = twins(3, 4, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    program = export_standalone(manual, (x,)).module()
    assert_same({"x": second_derivative(program, x)}, {"x": second_derivative(builtin, x)})


@LOOPS
@pytest.mark.pins_torch
@pytest.mark.parametrize("transform", ["grad", "hessian", "jacfwd"])
def test_what_a_loop_can_not_do_raises(transform: str) -> None:
    """A second derivative by autograd alone is wrong without a word, as the page on deployment says."""
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    program = export_standalone(ManualRNN(3, 4, dtype=torch.float64), (x,), dynamic_shapes=OPEN).module()
    with pytest.raises(KeyError, match="TransformType"):
        getattr(torch.func, transform)(lambda x: program(x)[0].sum())(x)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        program(torch.autograd.forward_ad.make_dual(x, x))


@LOOPS
@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # Dynamo's own, of gates
@pytest.mark.parametrize("kind", BY_HAND, ids=lambda kind: kind.__name__)
def test_a_recurrence_of_your_own_is_a_loop(kind: type[ManualRNN]) -> None:
    """In training, so that chance is drawn at each step as without the loop, and has the same gradients."""
    rnn = kind(3, 4, bidirectional=True, dtype=torch.float64)
    program = export_standalone(rnn, (torch.randn(5, 2, 3, dtype=torch.float64),), dynamic_shapes=OPEN)
    assert loops(program)
    for T, B in ((9, 3), (2, 4)):
        x = torch.randn(T, B, 3, dtype=torch.float64, requires_grad=True)
        assert_same(gradients(program.module(), x), gradients(rnn, x))


class Ensemble(nn.Module):
    """Networks that differ in weights, each on the whole input."""

    def __init__(self, rnns: list[ManualRNN]) -> None:
        super().__init__()
        self.base = rnns[0]
        self.weights = {k: w.detach() for k, w in torch.func.stack_module_state(rnns)[0].items()}  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda own: torch.func.functional_call(self.base, own, (x,))[0])(self.weights)


@pytest.mark.parametrize("length", ["fixed", pytest.param("open", marks=LOOPS)])
def test_an_ensemble(length: str) -> None:
    rnns = [ManualRNN(3, 4, bidirectional=True, dtype=torch.float64) for _ in range(3)]
    shapes = None if length == "fixed" else ({0: Dim.DYNAMIC},)
    program = export_standalone(Ensemble(rnns), (torch.randn(5, 2, 3).double(),), dynamic_shapes=shapes)
    assert loops(program) == (length == "open")
    x = torch.randn(5 if length == "fixed" else 9, 2, 3, dtype=torch.float64)
    assert_same({"output": program.module()(x)}, {"output": torch.stack([rnn(x)[0] for rnn in rnns])})


def test_a_program_without_steps() -> None:
    rnn, x = ManualRNN(3, 4, 2, bidirectional=True), torch.randn(0, 2, 3)
    hx = torch.randn(4, 2, 4)
    output, h_n = export_standalone(rnn, (x, hx)).module()(x, hx)
    assert output.shape == (0, 2, 8)
    assert torch.equal(h_n, hx)


class Calls(nn.Module):
    """An operator with its options."""

    def __init__(self, name: str, *options: Any) -> None:
        super().__init__()
        self.run = OPS.linear_recurrence if name == "linear" else OPS.elman
        self.options = options

    def forward(self, tensors: list[Tensor], batch_sizes: Tensor | None) -> Tensor:
        return self.run(*tensors, batch_sizes, *self.options)


def random(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def assert_decomposes(call: Calls, args: Any, others: Any, shapes: Any) -> None:
    program = export(call, args, dynamic_shapes=shapes).run_decompositions(decompositions())
    assert loops(program) == (shapes is not None)
    assert_same({"states": program.module()(*others)}, {"states": call(*others)})


@LOOPS
@PHI
@REVERSE
@pytest.mark.parametrize("name", PADDED)
def test_padded_operators(name: str, reverse: bool, nonlinearity: str) -> None:
    call, (traced, run, axes) = Calls(name, nonlinearity, reverse, "default"), PADDED[name]
    assert_decomposes(call, (random(traced), None), (random(run), None), (axes, None))
    assert_decomposes(call, (random(traced), None), (random(traced), None), None)


@LOOPS
@PHI
@REVERSE
@pytest.mark.parametrize("name", PACKED)
def test_packed_operators(name: str, reverse: bool, nonlinearity: str) -> None:
    call, (traced, run, axes) = Calls(name, nonlinearity, reverse, "default"), PACKED[name]
    args, others = ((random(shapes), sizes) for shapes, sizes in zip((traced, run), SIZES, strict=True))
    assert_decomposes(call, args, others, (axes, {0: T}))


def test_every_operator_has_one() -> None:
    names = {str(op) for op in decompositions()}
    assert names == {
        f"manual_rnn.{name}.{overload}"
        for name in ("elman", "linear_recurrence", "network")
        for overload in ("default", "kernel", "compiled")
    }


def test_a_model_that_holds_no_operator_of_this_package_is_left_alone() -> None:
    program = export_standalone(nn.Linear(3, 4), (torch.randn(2, 3),))
    assert targets(program) == {"aten.linear.default"}


def test_an_open_length_needs_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manual_rnn.ops.decomposition.scan_op", None)
    x = torch.randn(5, 2, 3)
    assert not loops(export_standalone(ManualRNN(3, 4), (x,)))
    with pytest.raises(
        RuntimeError, match="expected a padded input of a fixed number of steps, got a packed one or an open"
    ):
        export_standalone(ManualRNN(3, 4), (x,), dynamic_shapes=({0: Dim.DYNAMIC},))
