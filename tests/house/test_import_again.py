r"""Importing works again: after a reload, a purge, an import that broke off, from a torch.package, and under
another name. What was there before keeps working, and what is new works too.

Each case is a process of its own, since it leaves the package in a state that other tests shouldn't meet.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

HEAD = f"""
import copy, importlib, io, shutil, sys, warnings
from pathlib import Path
import torch
from torch import nn
from torch.func import grad, vmap
from torch.package import PackageExporter, PackageImporter

sys.path.insert(0, {str(ROOT)!r})
warnings.simplefilter("error")
builtin, x = nn.RNN(3, 4), torch.randn(5, 2, 3)

def check(package, rnn):
    '''It runs, by its kernels and operators, gets derivatives, compiles, and is known to the functions.'''
    rnn.load_state_dict(builtin.state_dict())
    expected = builtin(x)[0]
    with package.use_kernel("torch"):
        assert torch.allclose(rnn(x)[0], expected, atol=1e-6)
    with package.use_kernel("reference"):
        assert torch.equal(rnn(x)[0], expected)
    batches = torch.stack([x, 2 * x])
    assert torch.allclose(vmap(lambda x: rnn(x)[0])(batches)[0], expected, atol=1e-6)
    found = vmap(grad(lambda x: rnn(x)[0].sum()))(batches)[0]
    leaf = x.clone().requires_grad_()
    assert torch.allclose(found, torch.autograd.grad(builtin(leaf)[0].sum(), leaf)[0], atol=1e-6)
    torch._dynamo.reset()
    run = torch.compile(lambda x: rnn(x)[0], fullgraph=True, backend="eager")
    assert torch.allclose(run(x), expected, atol=1e-6)
    assert "runs: the fastest" in package.explain_kernel(rnn, x)
    assert torch.equal(copy.deepcopy(rnn).to_builtin()(x)[0], expected)
    both = nn.ModuleList([package.swap_rnn(copy.deepcopy(builtin)), copy.deepcopy(rnn)])
    assert all(type(each) is nn.RNN for each in package.swap_rnn(both, to=nn.RNN))

def ours():
    return [name for name in sys.modules if name.split(".")[0] == "manual_rnn"]
"""

RELOAD = """
import manual_rnn, manual_rnn.inspect
old, rounds = manual_rnn.ManualRNN(3, 4), 0
class Own(manual_rnn.ManualRNN):
    def step(self, gates, hidden, weight_hh):
        return super().step(gates, hidden, weight_hh) * 0.5
own = Own(3, 4)
before = own(x)[0]
for name in {order}(ours()):
    with manual_rnn.use_kernel("torch"):
        importlib.reload(sys.modules[name])
        assert manual_rnn.kernels.requested_kernel() == "torch"
    assert manual_rnn.kernels.requested_kernel() == "default", name
    check(manual_rnn, old)
    check(manual_rnn, manual_rnn.ManualRNN(3, 4))
    assert torch.equal(own(x)[0], before), name
    manual_rnn.inspect.trace(old, x)
    rounds += 1
assert rounds > 15
importlib.reload(manual_rnn)
check(manual_rnn, manual_rnn.ManualRNN(3, 4))
torch.save(manual_rnn.ManualRNN(3, 4), io.BytesIO())
"""

PURGE = """
import manual_rnn as first
old = first.ManualRNN(3, 4)
for name in ours():
    del sys.modules[name]
import manual_rnn as second
assert second is not first
check(first, old)
check(second, second.ManualRNN(3, 4))
check(first, first.ManualRNN(3, 4))
assert "runs: the fastest" in second.explain_kernel(old, x)
assert type(second.swap_rnn(copy.deepcopy(old), to=nn.RNN)) is nn.RNN
"""

BROKEN_OFF = """
import builtins
real, define, calls = builtins.__import__, torch.library.register_fake, []
names = '''
validation kernels nonlinearities selection native ops recurrences registration layer swap
'''.split()
for broken in names:
    def stop(name, *args, **kwargs):
        if name.split(".")[-1] == broken or broken in (args[2] or () if len(args) > 2 else ()):
            raise KeyError(broken)
        return real(name, *args, **kwargs)
    builtins.__import__ = stop
    try:
        import manual_rnn
    except KeyError:
        calls.append(broken)
    finally:
        builtins.__import__ = real
    for name in ours() if names.index(broken) % 2 else []:
        del sys.modules[name]
assert len(calls) > 5, calls
for stops in range(1, 4):  # between the registrations of an operator
    left = [stops]
    def register_fake(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise MemoryError
        return define(*args, **kwargs)
    torch.library.register_fake = register_fake
    for name in ours():
        del sys.modules[name]
    try:
        import manual_rnn
    except MemoryError:
        calls.append(stops)
    torch.library.register_fake = define
import manual_rnn
check(manual_rnn, manual_rnn.ManualRNN(3, 4))
"""

PACKAGE = """
warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # torch.package's own
file = sys.argv[1]
if sys.argv[2] == "write":
    import manual_rnn
    rnn = manual_rnn.ManualRNN(3, 4)
    rnn.load_state_dict(builtin.state_dict())
    with PackageExporter(file) as exporter:
        exporter.intern("manual_rnn.**")
        exporter.extern("torch.**")
        if sys.argv[3] == "whole":
            exporter.save_source_string("main", "import manual_rnn")
        exporter.save_pickle("model", "model.pkl", rnn)
        exporter.save_pickle("model", "expected.pkl", rnn(x)[0])
        exporter.save_pickle("model", "x.pkl", x)
if sys.argv[2] == "first":
    import manual_rnn
importer = PackageImporter(file)
rnn = importer.load_pickle("model", "model.pkl")
given, expected = importer.load_pickle("model", "x.pkl"), importer.load_pickle("model", "expected.pkl")
assert torch.allclose(rnn(given)[0], expected, atol=1e-6)
assert torch.allclose(vmap(lambda x: rnn(x)[0])(given[None])[0], expected, atol=1e-6)
if sys.argv[3] == "part":  # of what a pickled object needs the package's own __init__ is no part
    sys.exit()
packed = importer.import_module("manual_rnn")
assert type(rnn) is packed.ManualRNN
assert "a torch.package holds no compiled code" in packed.explain_kernel(rnn, x)
check(packed, rnn)
import manual_rnn
assert manual_rnn.ManualRNN is not packed.ManualRNN
check(manual_rnn, manual_rnn.ManualRNN(3, 4))
check(packed, rnn)
again = PackageImporter(file)
check(again.import_module("manual_rnn"), again.load_pickle("model", "model.pkl"))
"""

COPY = """
folder = Path(sys.argv[1])
shutil.copytree(Path(sys.path[0], "manual_rnn"), folder / "other_rnn")
sys.path.insert(0, str(folder))
import manual_rnn, other_rnn
assert Path(other_rnn.__file__).is_relative_to(folder)
for package in (manual_rnn, other_rnn):
    check(package, package.ManualRNN(3, 4))
with manual_rnn.use_kernel("reference"):
    asked = manual_rnn.kernels.requested_kernel(), other_rnn.kernels.requested_kernel()
    assert asked == ("reference", "default")
"""


def run(script: str, *args: object) -> None:
    command = [sys.executable, "-c", HEAD + script, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("order", ["sorted", "list", "reversed"])
def test_every_file_may_be_loaded_again(order: str) -> None:
    run(RELOAD.replace("{order}", order))


def test_forgotten_and_imported_again() -> None:
    run(PURGE)


def test_an_import_that_broke_off() -> None:
    run(BROKEN_OFF)


@pytest.mark.parametrize("what", ["whole", "part"])
def test_in_a_torch_package(what: str, tmp_path: Path) -> None:
    """In the process that wrote it, in one that has the package already, and in one that hasn't."""
    for moment in ("write", "first", "later"):
        run(PACKAGE, tmp_path / "model.pt", moment, what)


def test_two_copies_under_different_names(tmp_path: Path) -> None:
    run(COPY, tmp_path)
