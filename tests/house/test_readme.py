r"""The code of every README runs and prints what the README says; CI runs the README's commands."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = {"build", "dist", "node_modules", "runs", "venv"}
READMES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in sorted(ROOT.rglob("README.md"))
    if not any(part.startswith(".") or part in ENVIRONMENTS for part in path.relative_to(ROOT).parts)
}
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)
BLOCKS = [
    pytest.param(name, code, printed, id=f"{name}-block{i}")
    for name, text in READMES.items()
    for i, (code, printed) in enumerate(BLOCK.findall(text))
]


@pytest.mark.parametrize(("name", "code", "printed"), BLOCKS)
def test_block_prints_what_it_says(
    name: str, code: str, printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, name, "exec"), {"__name__": "readme"})
    assert out.getvalue() == printed


def test_there_are_blocks_and_most_print() -> None:
    blocks = BLOCK.findall(READMES["README.md"])
    assert len(blocks) >= 5
    assert sum(bool(printed) for _, printed in blocks) >= 4
    assert len(BLOCKS) >= len(blocks)


@pytest.mark.parametrize("name", READMES)
def test_every_block_of_code_is_found(name: str) -> None:
    """None hides behind another indent or spelling."""
    fences = re.findall(
        r"^[ \t]*(?:```|~~~)\s*(?:python|py|pycon)\b", READMES[name], re.MULTILINE | re.IGNORECASE
    )
    assert len(fences) == len(BLOCK.findall(READMES[name]))


def test_ci_runs_the_test_command() -> None:
    commands = re.findall(r"^pip install .*$", READMES["README.md"], re.MULTILINE)
    assert len(commands) >= 2
    tested = next(command for command in commands if "pytest" in command)
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    install, test = tested.replace("pip install", "pip install -q").split(" && ")
    assert lines.index(install) < lines.index("mypy") < lines.index(test)


@pytest.mark.parametrize("name", READMES)
def test_every_picture_and_link_is_there(name: str) -> None:
    for path in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", READMES[name]):
        assert ((ROOT / name).parent / path).exists(), path
