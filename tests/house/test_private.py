r"""In a torch that lacks a private name, importing works and answers stay right.

One process imports the package anew for each name, which is away during the import only, since torch itself
needs it.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "manual_rnn" / "torch_internals").glob("*.py"))
ELSEWHERE = [  # asked for by attribute
    ("torch.autograd.Function", "_compiled_autograd_key"),
    ("torch.nn.Module", "_replicate_for_data_parallel"),
]
NEEDLESS = {name for _, name in ELSEWHERE}  # without which all kernels run
SCRIPT = """
import importlib, json, pkgutil, sys, torch
from contextlib import contextmanager
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.utils._pytree import tree_leaves

import manual_rnn  # whose operators stand for the life of the process

names, needless = map(json.loads, sys.argv[1:])
torch.manual_seed(0)
builtin, x, v = nn.RNN(3, 4), torch.randn(5, 2, 3), torch.randn(5, 2, 3)
weights = {k: p.detach() for k, p in builtin.named_parameters()}
compiled = torch.compile(lambda rnn, x: rnn(x)[0], backend="aot_eager")

@contextmanager
def away(owner, name):
    if name is None:
        found, sys.modules[owner] = importlib.import_module(owner), None
        yield
        sys.modules[owner] = found
    else:
        holder = pkgutil.resolve_name(owner)
        found = getattr(holder, name)
        delattr(holder, name)
        assert not hasattr(holder, name)
        yield
        setattr(holder, name, found)

def trained(rnn):
    rnn.zero_grad()
    wanted = x.clone().requires_grad_()
    output, h_n = rnn(wanted)
    output.mul_(2)
    (output.square().sum() + h_n.sum()).backward()
    return [output, h_n, wanted.grad, *(p.grad for p in rnn.parameters())]

def under_default_device(rnn):
    with torch.device("cpu"):
        return rnn(x)

def dual(rnn):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(rnn(forward_ad.make_dual(x, v))[0])[1]

def loss(rnn, weights, x):
    return functional_call(rnn, weights, (x,))[1].square().sum()

def per_sample(rnn):
    one = lambda w, x: loss(rnn, w, x)
    if type(rnn) is nn.RNN:  # has no vmap
        return [torch.stack([grad(one)(weights, x[:, b])[k] for b in range(2)]) for k in weights]
    return list(vmap(grad(one), in_dims=(None, 1))(weights, x).values())

PLAIN = [trained, under_default_device, lambda rnn: rnn.double()(x.double()), lambda rnn: rnn.float()(x)]
DERIVED = [
    dual,
    lambda rnn: jvp(lambda x: rnn(x)[0], (x,), (v,))[1],
    lambda rnn: grad(lambda w: loss(rnn, w, x))(weights),
    lambda rnn: grad(lambda x: rnn(x)[0].mul_(2).square().sum())(x),
    lambda rnn: grad(lambda x: grad(lambda x: rnn(x)[0].square().sum())(x).sin().sum())(x),
    per_sample,
]

def same(found, expected):
    for left, right in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)

def refused(situation, rnn, kernel):
    try:
        situation(rnn)
    except RuntimeError as error:
        return f"kernel {kernel!r} can't run here" in str(error) and "lacks" in str(error)
    return False

def check(manual_rnn, needed):
    for kernel in ["default", "native", "torch", "reference"]:  # aten is one sealed call
        rnn = manual_rnn.ManualRNN.from_builtin(builtin)
        with manual_rnn.use_kernel(kernel):
            for situation in [*PLAIN[: 2 if kernel == "native" else 4], *DERIVED]:
                if needed and kernel in ("native", "torch"):
                    assert refused(situation, rnn, kernel)
                else:
                    same(situation(rnn), situation(builtin))
    if (owner, name) == tuple(names[0]):  # Dynamo refuses modules imported anew
        same(compiled(manual_rnn.ManualRNN.from_builtin(builtin), x), builtin(x)[0])

for owner, name in names:
    for loaded in [module for module in sys.modules if module.split(".")[0] == "manual_rnn"]:
        del sys.modules[loaded]
    with away(owner, name):
        import manual_rnn
    try:
        check(manual_rnn, name not in needless)
    except BaseException as error:
        raise AssertionError(f"without {owner}.{name}") from error
print(len(names), "names")
"""


def asked_by_name() -> list[tuple[str, str]]:
    """What `find` is called with in the source."""
    calls = [
        [str(argument.value) for argument in call.args if isinstance(argument, ast.Constant)][:2]
        for source in SOURCES
        for call in ast.walk(ast.parse(source.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "find"
    ]
    kept = (
        "DispatchKeySet",
        "scan",
        "scan_op",
        "_current_level",
        "_unpack_dual",
    )  # which torch itself or the test needs
    return [(owner, name) for owner, name in calls if name not in kept]


@pytest.mark.parametrize("part", range(2))
def test_without_it_answers_stay_right(part: int) -> None:
    names = [*asked_by_name(), *ELSEWHERE][part::2]
    arguments = [json.dumps(each) for each in (names, sorted(NEEDLESS))]
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout == f"{len(names)} names\n", done.stderr


@pytest.mark.pins_torch
def test_every_name_is_one_of_this_torch() -> None:
    """A misspelt one would pass for one that is missing."""
    from manual_rnn.torch_internals import MISSING

    assert not MISSING, torch.__version__
    assert len(asked_by_name()) > 10
