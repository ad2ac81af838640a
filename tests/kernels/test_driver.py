r"""The engine as C alone, without Python: `driver.c`, which runs under an emulator too."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ENGINE = HERE.parents[1] / "manual_rnn" / "kernels" / "csrc"
COMPILER = shutil.which("cc")


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C compiler here")
def test_the_engine_without_python(tmp_path: Path) -> None:
    sources = [
        str(HERE / "driver.c"),
        *(
            str(ENGINE / f"{name}.c")
            for name in ("cpu_variants", "plan", "layer", "layer_backward", "memory", "schedule")
        ),
    ]
    program = tmp_path / "driver"
    compile_ = [str(COMPILER), "-O1", "-fopenmp", "-I", str(ENGINE), *sources, "-lm", "-o", str(program)]
    subprocess.run(compile_, check=True, capture_output=True, timeout=200)
    done = subprocess.run([program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("type") % 4 == 0, "a line for each type"
    assert done.stdout.startswith(("avx512", "avx2", "plain")), done.stdout
