r"""What a type checker sees of the package as the README installs it, from a folder of another project."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import manual_rnn

ROOT = Path(__file__).parents[2]
CLIENT = """
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from manual_rnn import ManualRNN, swap_rnn, use_kernel
from manual_rnn.inspect import trace

def see(packed: PackedSequence) -> None:
    x = torch.zeros(5, 2, 3)
    reveal_type(nn.RNN(3, 4).forward(x))
    reveal_type(nn.RNN(3, 4).forward(packed))
    reveal_type(ManualRNN(3, 4).forward(x))
    reveal_type(ManualRNN(3, 4).forward(packed))
    reveal_type(trace(ManualRNN(3, 4), x).h_n)
    reveal_type(swap_rnn(nn.Linear(2, 2)))
    with use_kernel("torch"):
        pass
    use_kernel("cudnn")
"""


def test_the_version_is_written_once() -> None:
    """And read from there."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", manual_rnn.__version__)
    assert manual_rnn.__version__ not in (ROOT / "pyproject.toml").read_text()


@pytest.mark.slow
@pytest.mark.skipif(int(version("setuptools").split(".")[0]) < 77, reason="pyproject.toml wants it")
def test_an_editable_install_is_a_path_that_mypy_follows(tmp_path: Path) -> None:
    """Import hooks, the other way to install, are nothing that a type checker could follow."""
    source = tmp_path / "source"
    leave = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "build", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=leave)
    build = f"import backend; print(backend.build_editable({str(tmp_path)!r}))"
    no_compiler = {**os.environ, "CC": "false", "PYTHONPATH": str(source / ".packaging")}  # nor is it wanted
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=source, env=no_compiler, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        assert not [name for name in wheel.namelist() if "finder" in name]
        paths = [name for name in wheel.namelist() if name.endswith(".pth")]
        assert Path(wheel.read(paths[0]).decode().strip()) == source
        assert f"manual_rnn-{manual_rnn.__version__}" in done.stdout
        venv.create(tmp_path / "venv")
        site = next((tmp_path / "venv").rglob("site-packages"))
        wheel.extractall(site)
    (site / "torch.pth").write_text(sysconfig.get_path("purelib"))
    client = tmp_path / "client" / "client.py"
    client.parent.mkdir()
    client.write_text(CLIENT)
    python = tmp_path / "venv" / "bin" / "python"
    command = [sys.executable, "-m", "mypy", "--python-executable", str(python), str(client)]
    said = subprocess.run(command, cwd=client.parent, capture_output=True, text=True).stdout
    types = re.findall(r'Revealed type is "(.*)"', said)
    assert types[:2] == types[2:4], said  # those of nn.RNN
    assert [types[0].count("Tensor"), "PackedSequence" in types[1]] == [2, True], said
    assert [each.split(".")[-1] for each in types[4:]] == ["Tensor", "Linear"], said
    assert said.count(": error:") == 1, said
    assert 'Argument 1 to "use_kernel" has incompatible type "Literal[\'cudnn\']"' in said
