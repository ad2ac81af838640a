r"""The README's code runs and prints what the README says; CI runs the README's commands."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)
BLOCKS = BLOCK.findall(README)


@pytest.mark.parametrize(("code", "printed"), BLOCKS, ids=[f"block{i}" for i in range(len(BLOCKS))])
def test_block_prints_what_it_says(code, printed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert out.getvalue() == printed


def test_there_are_blocks_and_most_print():
    assert len(BLOCKS) >= 5
    assert sum(bool(printed) for _, printed in BLOCKS) >= 4


def test_ci_runs_the_test_command():
    commands = re.findall(r"^pip install .*$", README, re.MULTILINE)
    assert len(commands) >= 2
    tested = next(command for command in commands if "pytest" in command)
    assert tested.replace("pip install", "pip install -q") in (ROOT / ".ci" / "run").read_text()


def test_every_picture_is_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).is_file(), path
