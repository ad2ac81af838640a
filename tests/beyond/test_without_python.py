r"""The engine beside a package of AOTInductor in a C++ program, which has no Python."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from internals import native
from torch.export import export

from manual_rnn import ManualRNN

COMPILER = shutil.which("g++")
TORCH = Path(torch.__file__).parent
HEADER = TORCH / "include" / "torch" / "csrc" / "inductor" / "aoti_package" / "model_package_loader.h"
SOURCE = Path(__file__).with_name("without_python.cpp")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(native.unavailable is not None, reason=str(native.unavailable)),
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here"),
    pytest.mark.skipif(not HEADER.exists(), reason="this torch came without its headers"),
]


def build(program: Path) -> None:
    include = [f"-I{TORCH / 'include'}", f"-I{TORCH / 'include' / 'torch' / 'csrc' / 'api' / 'include'}"]
    libraries = [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-Wl,--no-as-needed"]
    libraries += ["-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    command = [str(COMPILER), "-std=c++20", *include, str(SOURCE), *libraries, "-o", str(program)]
    subprocess.run(command, check=True, timeout=200)


@pytest.mark.filterwarnings("ignore")  # torch's own, on what it deprecates
def test_a_program_in_cpp_runs_the_network(tmp_path: Path) -> None:
    rnn = ManualRNN(3, 5, 2, bidirectional=True).eval().requires_grad_(False)
    x, hx = torch.linspace(-1, 1, 72).view(6, 4, 3), torch.linspace(-1, 1, 80).view(4, 4, 5)
    exported = export(rnn, (x, hx))
    assert "manual_rnn.network" in str(exported.graph)
    package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "rnn.pt2"))
    build(tmp_path / "program")
    linked = subprocess.run(["ldd", tmp_path / "program"], capture_output=True, text=True, check=True).stdout
    assert "libpython" not in linked
    assert "libtorch_python" not in linked
    command = [str(tmp_path / "program"), str(native.LIBRARY), str(package)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found = torch.tensor([float(line) for line in done.stdout.split()])
    torch.testing.assert_close(found, torch.cat([y.flatten() for y in rnn(x, hx)]), rtol=0, atol=1e-6)
    without = subprocess.run([command[0], "/nonexistent.so", command[2]], capture_output=True, timeout=100)
    assert without.returncode, "the numbers are the engine's"
