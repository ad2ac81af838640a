r"""A child made by fork, of a parent that has used OpenMP, runs what its parent ran, with as many threads."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import kernels_for
from internals import native

SIZES = [(3, 2, 2, 3), (1, 1, 64, 512), (50, 32, 32, 64), (20, 64, 64, 512)]  # (T, B, I, H)
SCRIPT = """
import os, signal, sys, torch
from manual_rnn import ManualRNN, use_kernel

torch.set_num_threads(2)
kernel, *sizes = sys.argv[1:]

def train():
    gradients = []
    for size in sizes:
        T, B, I, H = map(int, size.split(","))
        torch.manual_seed(0)
        rnn, x = ManualRNN(I, H), torch.randn(T, B, I)
        with use_kernel(kernel):
            output, h_n = rnn(x)
            (output.sum() + h_n.sum()).backward()
        gradients += [p.grad for p in rnn.parameters()]
    return gradients

def forked(run):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends one that hangs
        os._exit(0 if run() else 1)
    return os.waitpid(child, 0)[1] == 0

expected = train()
same = lambda: all(map(torch.equal, train(), expected)) and torch.get_num_threads() == 2
assert forked(same), "in a child"
assert forked(lambda: same() and forked(same)), "in a child's child"
assert same(), "in the parent, afterwards"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.skipif(native.unavailable is not None, reason="the C tells OpenMP of a fork")
@pytest.mark.parametrize("kernel", ["default", *kernels_for(torch.float32)])
def test_a_child_goes_on_where_its_parent_was(kernel: str) -> None:
    sizes = [",".join(map(str, size)) for size in SIZES]
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT, kernel, *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
