r"""`torch.nn.RNN` replaced by `ManualRNN`, as for libraries that look it up: every door stays open."""

import contextlib
import copy
import io
import pickle
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import LeakyRNN
from helpers import assert_same, gradients, packed
from torch import Tensor, fx, nn

import manual_rnn
from manual_rnn import ManualRNN, patch_rnn, swap_rnn, use_kernel

sys.path.insert(0, str(Path(__file__).parents[1] / "house"))
# These two print that a ManualRNN is no nn.RNN, and that `swap_rnn(model, to=nn.RNN)` gives an RNN.
OTHERWISE = {".github/docs/limits.md", ".github/docs/engineer.md"}
PAGES = [page for page in __import__("test_readme")._runs() if page.id not in OTHERWISE]

BUILTIN = nn.RNN
PLACES: list[Any] = [torch.nn, torch.nn.modules, torch.nn.modules.rnn]
DEPRECATED = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")


@pytest.fixture
def patched() -> Iterator[None]:
    with patch_rnn():
        yield
    assert all(place.RNN is BUILTIN for place in PLACES)


def test_every_name_is_replaced_and_put_back() -> None:
    with patch_rnn() as patch:
        assert isinstance(patch, patch_rnn)
        assert all(place.RNN is ManualRNN for place in PLACES)
        with patch_rnn(LeakyRNN):
            assert type(nn.RNN(3, 4)) is LeakyRNN
        assert all(place.RNN is ManualRNN for place in PLACES)
    assert all(place.RNN is BUILTIN for place in PLACES)


def test_as_a_plain_call_it_lasts_until_it_is_undone() -> None:
    patch = patch_rnn()
    try:
        assert type(nn.RNN(3, 4)) is ManualRNN
    finally:
        patch.undo()
    assert nn.RNN is BUILTIN
    nn.RNN = ManualRNN  # type: ignore
    patch.undo()  # again: nothing is left to put back
    assert nn.RNN is ManualRNN
    nn.RNN = BUILTIN  # type: ignore


def test_an_error_in_the_block_undoes_it_too() -> None:
    with pytest.raises(ZeroDivisionError), patch_rnn():
        _ = 1 / 0
    assert nn.RNN is BUILTIN


def test_it_says_when_to_call_it() -> None:
    assert "before the import" in (patch_rnn.__doc__ or "")


@pytest.mark.parametrize("wrong", [nn.LSTM, BUILTIN, "tanh", nn.Linear])
def test_nothing_but_a_manual_rnn(wrong: Any) -> None:
    with pytest.raises(TypeError, match="ManualRNN or a subclass"):
        patch_rnn(wrong)
    assert nn.RNN is BUILTIN


@pytest.mark.parametrize(("name", "blocks"), PAGES)
@pytest.mark.usefixtures("patched")
def test_every_page(
    name: str, blocks: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """READMEs and the pages beside them print what they print without the patch. Dynamo is told to take what
    stands under the name of `nn.RNN`."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for code, printed in blocks:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), torch._dynamo.config.patch(allow_rnn=True):
            exec(compile(code, name, "exec"), names)
        assert out.getvalue() == printed, code


class Client(nn.Module):
    """A model that builds its network by class."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.rnn: Any = nn.RNN(3, 4, **options)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.rnn(x)[0])
        return found


def clients() -> tuple[Client, Client]:
    """With an `nn.RNN`, built before the patch, and with what the patch builds."""
    assert nn.RNN is ManualRNN
    assert patch_rnn.original is BUILTIN
    with contextlib.ExitStack() as stack:
        for place in PLACES:
            stack.callback(setattr, place, "RNN", ManualRNN)
            place.RNN = BUILTIN
        torch.manual_seed(3)
        builtin = Client()
    torch.manual_seed(3)
    manual = Client()
    assert (type(builtin.rnn), type(manual.rnn)) == (BUILTIN, ManualRNN)
    return builtin, manual


@pytest.mark.usefixtures("patched")
def test_same_numbers() -> None:
    builtin, manual = clients()
    x = torch.randn(5, 2, 3)
    assert torch.allclose(manual(x), builtin(x), atol=1e-6)
    control, ours = builtin.rnn, manual.rnn
    inputs = x.requires_grad_(), torch.randn(1, 2, 4, requires_grad=True)
    assert_same(gradients(ours, *inputs), gradients(control, *inputs), 1e-5)
    rows = packed(x, [5, 2])
    assert torch.allclose(ours(rows)[0].data, control(rows)[0].data, atol=1e-6)


@pytest.mark.usefixtures("patched")
@DEPRECATED
def test_torchscript() -> None:
    builtin, manual = clients()
    x, longer = torch.randn(5, 2, 3), torch.randn(9, 4, 3)
    traced = torch.jit.trace(manual, (x,))
    assert torch.allclose(traced(longer), builtin(longer), atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(copy.deepcopy(manual))
    assert torch.allclose(scripted(longer), builtin(longer), atol=1e-6)


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize(
    "dynamo", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["older", "newer"]
)
@pytest.mark.filterwarnings("ignore")  # torch's own, of its exporters
def test_onnx(dynamo: bool) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    builtin, manual = clients()
    x, file = torch.randn(5, 2, 3), io.BytesIO()
    if dynamo:
        model = torch.onnx.export(manual.eval(), (x,), dynamo=True, verbose=False).model_proto  # type: ignore
    else:
        torch.onnx.export(manual.eval(), (x,), file, dynamo=False)  # type: ignore[arg-type]
        model = onnx.load_from_string(file.getvalue())
    assert "RNN" in [node.op_type for node in model.graph.node]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.tensor(found), builtin(x), atol=1e-6)


@pytest.mark.usefixtures("patched")
def test_fx() -> None:
    builtin, manual = clients()
    traced: Any = fx.symbolic_trace(manual)
    control = fx.symbolic_trace(builtin)
    assert [node.op for node in traced.graph.nodes] == [node.op for node in control.graph.nodes]
    x = torch.randn(5, 2, 3)
    assert torch.allclose(traced(x), builtin(x), atol=1e-6)
    again: Any = pickle.loads(pickle.dumps(traced))
    assert torch.equal(again(x), traced(x))


@pytest.mark.usefixtures("patched")
def test_a_builtin_built_before_is_swapped_and_converted() -> None:
    builtin, manual = clients()
    x = torch.randn(5, 2, 3)
    expected = builtin(x)
    for rnn in (builtin.rnn, manual.rnn):
        made = ManualRNN.from_builtin(rnn)
        assert type(made) is ManualRNN
        assert made.weight_hh_l0 is rnn.weight_hh_l0
    back = manual.rnn.to_builtin()
    assert type(back) is BUILTIN
    assert torch.equal(back(x)[0], builtin.rnn(x)[0])
    swapped = swap_rnn(copy.deepcopy(builtin))
    assert type(swapped.rnn) is ManualRNN
    assert torch.allclose(swapped(x), expected, atol=1e-6)
    assert type(swap_rnn(swapped, to=BUILTIN).rnn) is BUILTIN


@pytest.mark.usefixtures("patched")
def test_expanded_weights_and_kernels() -> None:
    builtin, manual = clients()
    x = torch.randn(4, 5, 3)
    for kernel in ("reference", "aten", "torch"):
        with use_kernel(kernel):
            assert torch.allclose(manual(x), builtin(x), atol=1e-6)


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's, where a graph breaks
def test_compiled_as_a_builtin_is_or_in_one_graph(allowed: bool) -> None:
    builtin, manual = clients()
    x = torch.randn(5, 2, 3)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=allowed):
        run = torch.compile(manual, fullgraph=allowed, backend="eager")
        assert torch.allclose(run(x), builtin(x), atol=1e-6)


@pytest.mark.usefixtures("patched")
def test_a_pickled_builtin_is_read_as_what_is_there_now(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        for place in PLACES:
            stack.callback(setattr, place, "RNN", ManualRNN)
            place.RNN = BUILTIN
        builtin = nn.RNN(3, 4)
        torch.save(builtin, tmp_path / "rnn.pt")
    found = torch.load(tmp_path / "rnn.pt", weights_only=False)
    assert type(found) is ManualRNN
    x = torch.randn(5, 2, 3)
    assert torch.allclose(found(x)[0], builtin(x)[0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["manual_rnn", "a stand-in"])
def test_the_package_finds_the_original_wherever_it_is_imported(first: str) -> None:
    """After a purge of the package under a patch, and after somebody else's class."""
    import subprocess

    patch = (
        "import manual_rnn; manual_rnn.patch_rnn()"
        if first == "manual_rnn"
        else ("class Other(nn.RNN): pass\nnn.RNN = nn.modules.RNN = nn.modules.rnn.RNN = Other")
    )
    script = f"""
import sys, torch
from torch import nn
before = nn.RNN
{patch}
for name in [name for name in sys.modules if name.split(".")[0] == "manual_rnn"]:
    del sys.modules[name]
import manual_rnn
rnn = manual_rnn.ManualRNN(3, 4)
assert type(rnn.to_builtin()) is before
assert type(manual_rnn.ManualRNN.from_builtin(before(3, 4))) is manual_rnn.ManualRNN
torch.jit.trace(rnn, (torch.randn(5, 2, 3),))
"""
    root = Path(manual_rnn.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
