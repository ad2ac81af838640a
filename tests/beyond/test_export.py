r"""`torch.export`: a program whose length and batch stay open, one op per layer and direction."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same, twins
from internals import OPS
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

UNSEEN = [(7, 2), (1, 1), (2, 6), (60, 4)]
DIMS: dict[str, tuple[Any, Any]] = {
    "named": (Dim("T"), Dim("B")),
    "DYNAMIC": (Dim.DYNAMIC, Dim.DYNAMIC),
    "AUTO": (Dim.AUTO, Dim.AUTO),
}
FLAT_WEIGHTS = pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights:UserWarning")
BOTH_WAYS = {"num_layers": 2, "bidirectional": True}


def arguments(rnn: Any, T: int, B: int, given: bool) -> tuple[Tensor, ...]:
    shape = (B, T, 3) if rnn.batch_first else (T, B, 3)
    hx = torch.randn(rnn.num_layers * (1 + rnn.bidirectional), B, 4, dtype=torch.float64)
    return torch.randn(shape, dtype=torch.float64), *([hx] if given else [])


def exported(rnn: Any, dims: str = "DYNAMIC", given: bool = True, strict: bool = False) -> ExportedProgram:
    T, B = DIMS[dims]
    shapes = {0: B, 1: T} if rnn.batch_first else {0: T, 1: B}
    return export(
        rnn,
        arguments(rnn, 5, 3, given),
        dynamic_shapes=(shapes, *([{1: B}] if given else [])),
        strict=strict,
    )


def assert_runs_as(program: nn.Module, builtin: nn.RNN, given: bool = True) -> None:
    for T, B in UNSEEN:
        args = arguments(builtin, T, B, given)
        found, expected = (
            dict(zip(("output", "h_n"), rnn(*args), strict=True)) for rnn in (program, builtin)
        )
        assert_same(found, expected)


def ops(program: ExportedProgram) -> list[Any]:
    return [node.target for node in program.graph.nodes if "manual_rnn" in str(node.target)]


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("dims", DIMS)
def test_length_and_batch_stay_open(dims: str, strict: bool, given: bool) -> None:
    builtin, manual = twins(3, 4, dtype=torch.float64, batch_first=given)
    program = exported(manual, dims, given, strict)
    assert ops(program) == [OPS.network.default]
    assert_runs_as(program.module(), builtin, given)


@pytest.mark.parametrize(
    "options",
    [
        BOTH_WAYS,
        {"bidirectional": True, "batch_first": True, "nonlinearity": "relu"},
        {"num_layers": 2, "bias": False, "batch_first": True},
    ],
    ids=["both ways", "relu", "no bias"],
)
def test_one_op_for_all_layers_and_directions(options: dict[str, Any]) -> None:
    builtin, manual = twins(3, 4, dtype=torch.float64, **options)
    program = exported(manual, given=False)
    assert ops(program) == [OPS.network.default]
    assert_runs_as(program.module(), builtin, given=False)


def test_unbatched() -> None:
    builtin, manual = twins(3, 4, dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64)
    program = export(manual, (x,), dynamic_shapes=({0: Dim.DYNAMIC},)).module()
    x = torch.randn(8, 3, dtype=torch.float64)
    assert_same({"output": program(x)[0]}, {"output": builtin(x)[0]})


def test_a_program_trains() -> None:
    builtin, manual = twins(3, 4, dtype=torch.float64, **BOTH_WAYS)
    program = exported(manual).module()
    x, hx = arguments(builtin, 7, 2, given=True)
    rnns: Any = program, builtin
    for rnn in rnns:
        output, h_n = rnn(x, hx)
        (output.sin().sum() + h_n.cos().sum()).backward()
    found, expected = ({k: v.grad for k, v in rnn.named_parameters()} for rnn in rnns)
    assert_same(found, expected)


def test_a_program_keeps_tangents() -> None:
    _, manual = twins(3, 4, dtype=torch.float64)
    manual.requires_grad_(False)
    program, (x,) = exported(manual, given=False).module(), arguments(manual, 7, 2, given=False)
    tangent = torch.randn_like(x)
    found, expected = (
        torch.func.jvp(lambda x, rnn=rnn: rnn(x)[0], (x,), (tangent,)) for rnn in (program, manual)
    )
    assert_same({"tangent": found[1]}, {"tangent": expected[1]})
    assert expected[1].abs().max() > 0


@FLAT_WEIGHTS
@pytest.mark.parametrize("dims", ["named", "DYNAMIC"])
def test_builtin_rnn_cannot_leave_the_length_open(dims: str) -> None:
    builtin, _ = twins(3, 4, dtype=torch.float64)
    with pytest.raises(Exception, match=r"specialized it to be a constant|inferred a static shape"):
        exported(builtin, dims)


@FLAT_WEIGHTS
def test_builtin_rnn_freezes_the_length() -> None:
    builtin, _ = twins(3, 4, dtype=torch.float64)
    program = exported(builtin, "AUTO").module()
    with pytest.raises(AssertionError, match=r"size\(\)\[0\] == 5"):
        program(*arguments(builtin, 7, 2, given=True))


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch.export's own, up to 2.12
def test_save_and_load() -> None:
    builtin, manual = twins(3, 4, dtype=torch.float64, **BOTH_WAYS)
    file = io.BytesIO()
    torch.export.save(exported(manual), file)
    file.seek(0)
    assert_runs_as(torch.export.load(file).module(), builtin)


READER = """
import sys, torch
{preamble}
program = torch.export.load(sys.argv[1]).module()
x = torch.ones(9, 2, 3, dtype=torch.float64)
torch.save(program(x)[0], sys.argv[2])
"""


def read_elsewhere(preamble: str, program: Path, output: Path) -> subprocess.CompletedProcess:
    code = READER.format(preamble=preamble)
    return subprocess.run([sys.executable, "-c", code, program, output], capture_output=True, text=True)


@pytest.mark.slow
def test_another_process(tmp_path: Path) -> None:
    """It has to import manual_rnn, which brings the op; one that doesn't is told which op is missing."""
    builtin, manual = twins(3, 4, dtype=torch.float64)
    program, output = tmp_path / "rnn.pt2", tmp_path / "output.pt"
    torch.export.save(exported(manual, given=False), program)
    assert read_elsewhere("import manual_rnn", program, output).returncode == 0
    expected, _ = builtin(torch.ones(9, 2, 3, dtype=torch.float64))
    assert_same({"output": torch.load(output)}, {"output": expected})
    without = read_elsewhere("", program, output)
    assert without.returncode != 0
    assert "manual_rnn" in without.stderr
