r"""How the source of training hangs together: who imports whom, and what its README lists."""

import ast
import inspect
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from training_runs import QUIET, WARNINGS, CommandLine

import manual_rnn
import training
from training.tasks import TASKS
from training.twins import Twins

pytestmark = WARNINGS
FOLDERS = [Path(package.__path__[0]) for package in (manual_rnn, training)]
FILES = [path for folder in FOLDERS for path in folder.glob("*.py") if not path.stem.startswith("__")]
README = (FOLDERS[1] / "README.md").read_text()


def imports(folder: Path) -> dict[str, set[str]]:
    """For each module of a package the modules beside it that it imports, be it in a function."""
    modules = {path.stem: ast.parse(path.read_text()) for path in folder.glob("*.py")}
    found = {}
    for own, tree in modules.items():
        names = {name for node in ast.walk(tree) for name in imported(node, folder.name)}
        found[own] = {name.split(".")[0] for name in names} & modules.keys() - {"__init__"}
    return found


def imported(node: ast.AST, package: str) -> set[str]:
    """The names that a statement imports from ``package``, without it."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = f"{package}.{node.module or ''}".rstrip(".") if node.level else node.module
        names = [f"{module}.{alias.name}" for alias in node.names]
    return {name.removeprefix(f"{package}.") for name in names if name.startswith(f"{package}.")}


def test_imports_go_in_no_circle() -> None:
    found = imports(Path(training.__path__[0]))
    assert {"report", "compare"} <= found["callbacks"]
    TopologicalSorter(found).prepare()


@pytest.mark.parametrize(
    "back",
    [
        "def f():\n    from house.report import f",
        "if TYPE_CHECKING:\n    from house.report import f",
        "from . import report",
        "from .report import f",
        "from house import report",
        "import house.report as other",
    ],
)
def test_a_circle_would_be_found(tmp_path: Path, back: str) -> None:
    folder = tmp_path / "house"
    folder.mkdir()
    (folder / "report.py").write_text("from house.curves import draw")
    (folder / "curves.py").write_text(back)
    with pytest.raises(CycleError):
        TopologicalSorter(imports(folder)).prepare()


def test_no_two_files_have_nearly_one_name() -> None:
    names = [path.stem.removesuffix("s") for path in FILES]
    assert {name for name in names if names.count(name) > 1} == set()


@pytest.mark.parametrize("path", sorted(FOLDERS[1].glob("*.py")), ids=lambda path: path.name)
def test_no_function_has_the_name_of_another_file(path: Path) -> None:
    own = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert own & {other.stem for other in FILES if other != path} == set()


def table(heading: str) -> list[list[str]]:
    """The cells, without backticks, of the first table of a section of the README, its header left out."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert rows is not None
    return [[cell.strip(" `") for cell in row.split("|")[1:-1]] for row in rows[0].splitlines()[2:]]


def test_the_readme_lists_every_option_of_the_twins_with_its_default() -> None:
    parameters = list(inspect.signature(Twins).parameters.values())
    set_by_the_task = ("input_size", "output_size", "metric", "scored_steps")
    expected = [[p.name, str(p.default)] for p in parameters if p.name not in set_by_the_task]
    assert [row[:2] for row in table("Options")] == expected


def test_the_readme_lists_every_task_with_its_length() -> None:
    rows = {row[0]: row[2] for row in table("Tasks and configs")}
    assert list(rows) == list(TASKS)
    for name, options in rows.items():
        length = inspect.signature(TASKS[name]).parameters.get("length")
        assert (f"`length` {length.default}" in f"`{options}") if length else "length" not in options


def test_the_readme_lists_every_config_and_every_file() -> None:
    told = " ".join(row[3] for row in table("Tasks and configs"))
    configs = {path.stem for path in (FOLDERS[1] / "configs").glob("*.yaml")}
    assert set(re.findall(r"\w+", told)) & configs == configs
    files = set(re.findall(r"\]\((\w+\.py)\)", README))
    assert files == {path.name for path in FOLDERS[1].glob("*.py")} - {"__init__.py"}


def test_the_readme_is_short_and_so_is_every_file() -> None:
    assert len(README.splitlines()) <= 150
    lengths = {path.name: len(path.read_text().splitlines()) for path in FOLDERS[1].glob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 250} == {}


def test_the_task_of_the_readme_trains_as_written(cli: CommandLine) -> None:
    """Its block is a file of ten lines, and the command is the one that stands above it."""
    section = README.split("## A task of your own")[1]
    command, block = (
        re.search(r"`python -m training (.*)`", section),
        re.search(r"```python\n(.*?)```", section, re.S),
    )
    assert command is not None
    assert block is not None
    assert len([line for line in block[1].splitlines() if line.strip()]) <= 10
    Path("echo.py").write_text(block[1])
    sys.modules.pop("echo", None)
    out = cli(*command[1].split(), QUIET, small=[])
    sys.modules.pop("echo", None)
    assert "Echo: solved after" in out
    assert "equal to nn.RNN's to round-off" in out
