r"""The code of every page runs and prints what the page says; links, pictures and commands lead somewhere.

In a README each block stands alone, to be copied. Under `.github/docs` the blocks of a page run one after the
other, in one namespace.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = {"build", "dist", "node_modules", "runs", "venv"}
OURS = {".github", ".packaging"}  # of the folders whose names begin with a dot
SLOW = {".github/docs/tutorial.md", ".github/docs/deployment.md"}
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)|<img[^>]* src=\"(?!https?:)([^\"]+)\"")
Blocks = list[tuple[str, str]]


def _pages() -> Iterator[Path]:
    for path in sorted(ROOT.rglob("*.md")):
        folders = path.relative_to(ROOT).parts[:-1]
        if not any(f in ENVIRONMENTS or (f.startswith(".") and f not in OURS) for f in folders):
            yield path


PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in _pages()}
BLOCKS: dict[str, Blocks] = {name: BLOCK.findall(text) for name, text in PAGES.items()}


def _runs() -> Iterator[Any]:
    for name, blocks in BLOCKS.items():
        if name.startswith(".github/docs/") and blocks:
            yield pytest.param(name, blocks, id=name, marks=[pytest.mark.slow] * (name in SLOW))
        else:
            for i, block in enumerate(blocks):
                yield pytest.param(name, [block], id=f"{name}-block{i}")


@pytest.mark.parametrize(("name", "blocks"), list(_runs()))
def test_blocks_print_what_the_page_says(
    name: str, blocks: Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    threads = torch.get_num_threads()
    try:
        for code, printed in blocks:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(code, name, "exec"), names)
            assert out.getvalue() == printed, code
    finally:
        torch.set_num_threads(threads)


def test_there_are_blocks_and_most_print() -> None:
    blocks = [block for page in BLOCKS.values() for block in page]
    assert len(blocks) >= 40
    assert sum(bool(printed) for _, printed in blocks) >= 30
    assert {name for name, page in BLOCKS.items() if page} >= {
        "README.md", ".packaging/DESCRIPTION.md", ".github/CONTRIBUTING.md", "manual_rnn/README.md",
        "manual_rnn/kernels/README.md", "training/README.md",
        *(f".github/docs/{page}.md" for page in ("deployment", "engineer", "limits", "researcher", "student",
                                                 "tutorial")),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(PAGES))
def test_every_block_of_code_is_found(name: str) -> None:
    """None hides behind another indent or spelling."""
    fences = re.findall(
        r"^[ \t]*(?:```|~~~)\s*(?:python|py|pycon)\b", PAGES[name], re.MULTILINE | re.IGNORECASE
    )
    assert len(fences) == len(BLOCKS[name])


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 160
    for page in ("student", "researcher", "engineer", "tutorial", "limits", "deployment"):
        assert f".github/docs/{page}.md" in PAGES["README.md"]


def test_ci_runs_the_test_command() -> None:
    commands = re.findall(r"^pip install .*$", PAGES["README.md"], re.MULTILINE)
    assert len(commands) >= 2
    tested = next(command for command in commands if "pytest" in command)
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    install, test = tested.replace("pip install", "pip install -q").split(" && ")
    assert lines.index(install) < lines.index("mypy") < lines.index(test)


@pytest.mark.parametrize("name", list(PAGES))
def test_commands_name_what_is_there(name: str) -> None:
    """Modules that are run, tests and scripts, in blocks of shell and in the text."""
    for module in re.findall(r"python -m ((?:manual_rnn|training)[\w.]*)", PAGES[name]):
        assert find_spec(module) is not None, module
    for path in re.findall(r"(?<![\w/.])((?:\.ci|tests)/[\w./-]+\w)", PAGES[name]):
        assert (ROOT / path.partition("::")[0]).exists(), path


@pytest.mark.parametrize("name", list(PAGES))
def test_every_picture_and_link_is_there(name: str) -> None:
    for found in LINK.findall(PAGES[name]):
        path, _, anchor = "".join(found).partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), path
        if anchor:
            assert anchor in _anchors(target.read_text()), f"{path}#{anchor}"


def _anchors(text: str) -> set[str]:
    """Of the headings, as a forge makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_changelog_has_the_form_that_people_know() -> None:
    heads = re.findall(r"^(##+) (.*)$", PAGES[".github/CHANGELOG.md"], re.MULTILINE)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert {title for level, title in heads if level == "###"} <= kinds
    versions = [title for level, title in heads if level == "##"]
    assert versions[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", version) for version in versions[1:])


def test_the_description_of_the_package_stands_alone() -> None:
    """A package index has no repository around it, in which a link could lead somewhere."""
    assert not LINK.findall(PAGES[".packaging/DESCRIPTION.md"])


def test_the_pages_say_nothing_of_what_is_gone() -> None:
    gone = "whole.py by_layers layer_rule sight.py keeping exchange.c called.c job.c why_not entrance.py"
    for name in PAGES.keys() - {".github/CHANGELOG.md"}:
        assert [word for word in gone.split() if word in PAGES[name]] == [], name
