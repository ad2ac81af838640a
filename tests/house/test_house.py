r"""How the source hangs together: imports point one way, and nothing optional is loaded unasked."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import manual_rnn
from manual_rnn import inspect, pictures

PUBLIC = (inspect, pictures)  # and what `manual_rnn` itself exports
ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "manual_rnn"

# A module imports those before it only; a folder counts as one module.
LOWEST_FIRST = """
checks convert functional modes rows kernels ops recurrence fused layer layout onnx base module swap explain
inspect pictures benchmark
""".split()  # noqa: SIM905
FORBIDDEN = {
    "functional": set(LOWEST_FIRST),  # stands alone, to be read alone
    "kernels": set(LOWEST_FIRST) - {"kernels"},
    "module": {"functional", "kernels", "ops", "recurrence", "fused"},  # knows no mathematics
}
OPTIONAL = """
pytorch_lightning lightning matplotlib rich jsonargparse onnx onnxscript onnxruntime sklearn tensorboard jax
opacus
""".split()  # noqa: SIM905


def name_of(path: Path) -> str:
    """The module, or the folder, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, package: str) -> Iterator[str]:
    """Everything that a file imports from `package`, as dotted names without it."""
    here = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(here[: len(here) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, [above, node.module]))
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix(f"{package}.") for name in names if name.startswith(f"{package}."))


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_imports_are_found() -> None:
    """So that the tests below can fail."""
    assert {"checks", "layout.plan", "rows.Walk"} <= set(imports(PACKAGE / "module.py", "manual_rnn"))
    assert "kernels.torch_loop.steps" in set(imports(PACKAGE / "kernels" / "reference.py", "manual_rnn"))
    assert "cases.Case" not in set(imports(PACKAGE / "benchmark" / "plots.py", "manual_rnn"))
    assert "benchmark.cases.Case" in set(imports(PACKAGE / "benchmark" / "plots.py", "manual_rnn"))


def test_every_module_has_a_place() -> None:
    assert {name_of(path) for path in FILES} == set(LOWEST_FIRST)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = name_of(path)
    below = set(LOWEST_FIRST[: LOWEST_FIRST.index(own)]) | ({own} if path.parent != PACKAGE else set())
    below |= set(manual_rnn.__all__) if own == "benchmark" else set()
    found = {name.split(".")[0] for name in imports(path, "manual_rnn")}
    assert found <= below - FORBIDDEN.get(own, set()), f"{own} imports {sorted(found - below)}"


@pytest.mark.parametrize("path", sorted((ROOT / "training").glob("*.py")), ids=lambda path: path.name)
def test_training_uses_public_names_only(path: Path) -> None:
    public = set(manual_rnn.__all__) | {f"{m.__name__}.{name}" for m in PUBLIC for name in m.__all__}
    assert set(imports(path, "manual_rnn")) <= {name.removeprefix("manual_rnn.") for name in public}
    names = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "manual_rnn"
    }
    assert names <= set(manual_rnn.__all__)


def test_manual_rnn_never_imports_training() -> None:
    for path in [PACKAGE / "__init__.py", *FILES]:
        assert "training" not in {name.split(".")[0] for name in imports(path, "training")}
        assert "import training" not in path.read_text()


def test_public_names_exist() -> None:
    assert manual_rnn.__all__ == sorted(manual_rnn.__all__)
    assert all(hasattr(manual_rnn, name) for name in manual_rnn.__all__)


def fresh(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", script]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


TRAIN = f"""
import sys

sys.modules.update(dict.fromkeys({OPTIONAL}))  # None: to import it raises
try:
    import matplotlib
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("nothing is blocked")

import torch
from manual_rnn import ManualRNN

torch.manual_seed(0)
rnn, input = ManualRNN(3, 8, 2, bidirectional=True), torch.randn(6, 4, 3)
optimizer, losses = torch.optim.SGD(rnn.parameters(), lr=0.1), []
for _ in range(20):
    optimizer.zero_grad()
    loss = rnn(input)[0].square().mean()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0] / 2, losses
"""


@pytest.mark.slow
def test_without_optional_packages_it_imports_and_trains() -> None:
    done = fresh(TRAIN)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_importing_it_loads_nothing_optional() -> None:
    """Beyond what `import torch` has loaded."""
    done = fresh(
        "import sys, torch; before = set(sys.modules)\n"
        "import manual_rnn\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    assert done.returncode == 0, done.stderr
    loaded = set(ast.literal_eval(done.stdout))
    assert "manual_rnn" in loaded
    assert not loaded & set(OPTIONAL)
