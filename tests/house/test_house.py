r"""How the source hangs together: who imports whom, what of torch's inside is used where, and nothing
optional is loaded unasked.

Read from the syntax tree, so imports inside functions count, and those under `TYPE_CHECKING` too.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import manual_rnn
from manual_rnn import inspect, pictures

PUBLIC = (inspect, pictures)  # and what `manual_rnn` itself exports
ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "manual_rnn"
TRAINING = sorted((ROOT / "training").glob("*.py"))

# Who may import whom. A folder's name stands for all of it; "ops" for what its __init__ offers.
HOUSE = {
    "__init__": "export explain functional kernels leaky module patch swap",
    "__main__": "",  # what `manual_rnn` exports
    "benchmark": "benchmark kernels",  # and what `manual_rnn` exports
    "pictures": "inspect module validation",
    "training": "training",  # the laboratory's place in an editable install
    "swap": "module convert parameters validation",
    "patch": "module convert parameters",
    "export": "validation ops",
    "leaky": "module own_names validation",
    "explain": "module delegation fast_path layout ops kernels validation override parameters",
    "inspect": "tracing validation",
    "tracing": (
        "module ops validation override parameters kernels.reference kernels.nonlinearities "
        "kernels.time_order kernels.interface"
    ),
    "module": "compiled_call delegation fast_path parameters layout validation onnx convert ops kernels "
    "override own_names torch_internals",
    "delegation": "parameters weights kernels override torch_internals",
    "own_names": "",
    "fast_path": "parameters weights ops kernels override own_names torch_internals",
    "compiled_call": "fast_path own_names parameters ops kernels torch_internals",
    "override": "own_names parameters validation torch_internals kernels.nonlinearities",
    "parameters": "construction own_names validation weights torch_internals kernels.nonlinearities "
    "kernels.aten kernels.interface",
    "construction": "",
    "weights": "kernels.interface",
    "layout": "validation parameters ops kernels.time_order torch_internals",
    "onnx": "ops kernels.nonlinearities kernels.interface",
    "ops": "ops kernels validation torch_internals",
    "kernels": "kernels torch_internals",
    "validation": "weights torch_internals kernels.interface",
    "torch_internals": "torch_internals",
    "convert": "validation parameters weights override own_names kernels.nonlinearities",
    "functional": "",  # stands alone, to be read alone
}
# Within a folder, from the top down: a file imports from the storeys below its own.
STOREYS = {
    "ops": [
        "__init__",
        "rnn",
        "custom_step plain_network",
        "cudnn",
        "higher_order layer",
        "registration decomposition",
        "autograd_rules vmap_rules",
        "network",
        "network_vjp",
        "composed",
        "recurrences",
        "leaky_recurrence",
        "saved_tensors operator_checks profiler fake_rules",
        "dispatch",
        "flop_formulas",
    ],
    "kernels": [
        "__init__",
        "native triton_launch aten reference",
        "torch_loop triton_kernel",
        "interface selection time_order nonlinearities",
    ],
    "torch_internals": ["__init__", "autograd compiling", "active cudnn", "find"],
}
# The inside of torch is asked in torch_internals/, and there only, but for these.
INSIDE = PACKAGE / "torch_internals"
PRIVATE = {
    (
        "parameters.py",
        "torch.nn.Module._replicate_for_data_parallel",
    ): "that of `nn.RNNBase` copies its cache",
    ("onnx.py", "_dynamo_marked_constant"): "Dynamo has no public way to call a function untraced",
}
OPTIONAL = """
pytorch_lightning lightning matplotlib rich jsonargparse onnx onnxscript onnxruntime sklearn tensorboard jax
opacus triton
""".split()  # noqa: SIM905

FILES = sorted(PACKAGE.rglob("*.py"))
EACH_FILE = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def name_of(path: Path) -> str:
    """The file of the house, or the folder, that a path belongs to."""
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


def file_of(name: str) -> Path:
    """The file in which an imported name stands."""
    at = PACKAGE
    for part in name.split("."):
        if (at / f"{part}.py").is_file():
            return at / f"{part}.py"
        if not (at / part).is_dir():
            break
        at = at / part
    return at / "__init__.py"


def private_names(path: Path) -> set[str]:
    """What a file uses of torch by a name with an underscore in front, as dotted names."""
    tree = ast.parse(path.read_text())
    known: dict[str, str] = {}
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.split(".")[0]
                known[alias.asname or root] = alias.name if alias.asname else root
                used.add(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                used.add(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            used.add(dotted(node, known))
    torchs = {name for name in used if name.split(".")[0] == "torch"}
    found = {name for name in torchs if any(map(is_private, name.split(".")))}
    found = {name for name in found if not any(other.startswith(f"{name}.") for other in found)}
    return found | {name for name in used if name.startswith("_dynamo")}


def is_private(part: str) -> bool:
    return part.startswith("_") and not part.endswith("__")


def dotted(node: ast.Attribute, known: dict[str, str]) -> str:
    """`torch._C._x` for that chain of attributes; of another root, the last attribute alone."""
    parts: list[str] = []
    at: ast.expr = node
    while isinstance(at, ast.Attribute):
        parts.append(at.attr)
        at = at.value
    if isinstance(at, ast.Name) and at.id in known:
        return ".".join([known[at.id], *reversed(parts)])
    return node.attr


def test_the_checks_below_can_fail(tmp_path: Path) -> None:
    """What they look for is found, inside functions too."""
    assert {"validation", "parameters.RNNBase"} <= set(imports(PACKAGE / "module.py", "manual_rnn"))
    assert "kernels.time_order.Walk" in set(imports(PACKAGE / "kernels" / "reference.py", "manual_rnn"))
    assert "benchmark.cases.Case" in set(imports(PACKAGE / "benchmark" / "plots.py", "manual_rnn"))
    assert "benchmark.plots.plot_time_by_steps" in set(
        imports(PACKAGE / "benchmark" / "__main__.py", "manual_rnn")
    )
    assert file_of("kernels.time_order.Walk") == PACKAGE / "kernels" / "time_order.py"
    assert file_of("kernels.use_kernel") == PACKAGE / "kernels" / "__init__.py"
    assert file_of("validation") == PACKAGE / "validation.py"
    spoiled = tmp_path / "spoiled.py"
    spoiled.write_text(
        "import torch, os\nimport torch._dynamo as d\nfrom torch.autograd import function as f, forward_ad\n"
        "from torch._functorch import vmap\n"
        "def g(x):\n    os._exit\n    x._private\n    g._dynamo_disable = True\n"
        "    return torch._C._x(), f._y, d.z, forward_ad._level, torch.Tensor.__add__\n"
    )
    assert private_names(spoiled) == {
        "torch._C._x",
        "torch._dynamo.z",
        "torch._functorch.vmap",
        "torch.autograd.forward_ad._level",
        "torch.autograd.function._y",
        "_dynamo_disable",
    }
    assert any(private_names(path) for path in INSIDE.glob("*.py"))


def test_every_file_has_a_place() -> None:
    assert {name_of(path) for path in FILES} == set(HOUSE)
    for folder, storeys in STOREYS.items():
        files = {path.stem for path in FILES if name_of(path) == folder}
        assert files == {name for storey in storeys for name in storey.split()}


@EACH_FILE
def test_a_file_imports_whom_it_may(path: Path) -> None:
    own = name_of(path)
    allowed = HOUSE[own].split() + (manual_rnn.__all__ if own == "benchmark" else [])
    for name in imports(path, "manual_rnn"):
        assert any(f"{name}.".startswith(f"{prefix}.") for prefix in allowed), f"{own} imports {name}"
        through = file_of(name).parent.name == "ops" and file_of(name).stem != "__init__"
        assert own == "ops" or not through, f"{own} imports {name}, past the __init__"


@pytest.mark.parametrize(
    "path", [path for path in FILES if name_of(path) in STOREYS], ids=lambda p: f"{p.parent.name}/{p.name}"
)
def test_within_a_folder_imports_point_down(path: Path) -> None:
    folder = name_of(path)
    storey = {name: depth for depth, names in enumerate(STOREYS[folder]) for name in names.split()}
    for name in imports(path, "manual_rnn"):
        to = file_of(name)
        if to.parent == path.parent:
            assert storey[to.stem] > storey[path.stem], f"{folder}/{path.name} imports {name}"


def test_every_folder_is_installed() -> None:
    names = [f'"manual_rnn.{path.parent.name}"' for path in PACKAGE.glob("*/__init__.py")]
    settings = (ROOT / "pyproject.toml").read_text()
    assert [name for name in names if name not in settings] == []


def test_the_reference_imports_no_other_kernel() -> None:
    """Whoever reads it reads the equation, and needs nothing of what makes it fast."""
    found = {file_of(name).stem for name in imports(PACKAGE / "kernels" / "reference.py", "manual_rnn")}
    assert found <= {"interface", "nonlinearities", "time_order"}


def test_no_circle() -> None:
    graph = {path: {file_of(name) for name in imports(path, "manual_rnn")} - {path} for path in FILES}
    list(TopologicalSorter(graph).static_order())
    graph[PACKAGE / "validation.py"] = {PACKAGE / "module.py"}
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    "path",
    [path for path in [*FILES, *TRAINING] if path.parent != INSIDE],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_inside_of_torch_is_asked_in_one_folder(path: Path) -> None:
    place = path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT).as_posix()
    excepted = {name for file, name in PRIVATE if file == place}
    assert private_names(path) - excepted == set(), "belongs into torch_internals/"
    assert excepted - private_names(path) == set(), "an exception nobody needs any more"


def test_every_exception_has_a_file_and_a_reason() -> None:
    assert all((PACKAGE / file).is_file() and reason for (file, _), reason in PRIVATE.items())


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.name)
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
    for path in FILES:
        assert "training" not in {name.split(".")[0] for name in imports(path, "training")}
        assert "import training" not in path.read_text()


def test_these_names_are_public() -> None:
    """Whoever adds one, or takes one away, changes the list."""
    assert {module.__name__: module.__all__ for module in (manual_rnn, *PUBLIC)} == {
        "manual_rnn": [
            "KernelName", "LeakyRNN", "ManualRNN", "bidirectional_rnn_forward", "decompositions",
            "explain_kernel", "export_standalone", "patch_rnn", "rnn_forward", "swap_rnn", "use_kernel",
        ],
        "manual_rnn.inspect": [
            "Pass", "Trace", "eigenvalues", "gradient_norms", "lyapunov_exponents", "saturation",
            "spectral_radius", "step_jacobians", "trace",
        ],
        "manual_rnn.pictures": [
            "eigenvalue_picture", "gradient_picture", "state_picture", "write_pictures",
        ],
    }  # fmt: skip
    assert all(name in (manual_rnn.__doc__ or "") for name in ("inspect", "pictures", "__all__"))


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
