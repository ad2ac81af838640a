r"""Whoever reads the saved tensors of a graph, as torchviz does, meets tensors and nothing else."""

from contextlib import nullcontext, suppress

import pytest
import torch
from helpers import kernels_for, nodes
from internals import OPS, KernelName
from situations import AROUND
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.func import grad, vmap

from manual_rnn import ManualRNN, use_kernel

KERNELS = pytest.mark.parametrize("kernel", ["default", *kernels_for(torch.float64)])


def read(*roots: Tensor) -> list[str]:
    """The names of the nodes that offer saved tensors, each of which is read as torchviz reads it."""
    found = []
    for node in nodes(*roots):
        if hasattr(node, "saved_tensors"):
            found.append(node.name())
            for t in node.saved_tensors:
                assert isinstance(t, Tensor), node.name()
                assert t.size() is not None
        for name in dir(node):
            if name.startswith("_saved_"):
                getattr(node, name)
    return found


@KERNELS
@pytest.mark.parametrize("frozen", ["", "input", "weight_hh_l0", "weight_ih_l0", "all"])
@pytest.mark.parametrize("given", [False, True], ids=["", "hx"])
@pytest.mark.parametrize("T", [1, 4])
def test_of_every_node(T: int, given: bool, frozen: str, kernel: KernelName) -> None:
    rnn = ManualRNN(3, 4, 2, dtype=torch.float64)
    for name, p in rnn.named_parameters():
        p.requires_grad_(frozen not in (name, "all"))
    x = torch.randn(T, 2, 3, dtype=torch.float64, requires_grad=frozen != "input")
    hx = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True) if given else None
    with use_kernel(kernel):
        output, h_n = rnn(x, hx)
        read(output, h_n)
        leaves = [p for p in (x, hx, *rnn.parameters()) if p is not None and p.requires_grad]
        for results in ([output], [h_n], [output, h_n]):
            value = torch.stack([result.sin().sum() for result in results]).sum()
            grads = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
            second = torch.stack([g.sum() for g in grads if g is not None]).sum()
            if second.requires_grad:
                read(second)
                third = torch.autograd.grad(second.sin(), leaves, create_graph=True, allow_unused=True)
                read(*(g for g in third if g is not None and g.requires_grad))


def test_the_nodes_of_ours_are_among_them() -> None:
    rnn = ManualRNN(3, 4, dtype=torch.float64)
    rnn.bias_ih_l0.requires_grad_(False)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    with use_kernel("torch"):
        output = rnn(x)[0]
        grads = torch.autograd.grad(output.sum(), x, create_graph=True)
    found = read(output, *grads)
    assert any("Network" in name and "Vjp" not in name for name in found)
    assert any("LinearRecurrence" in name for name in found)


@pytest.mark.parametrize("mode", ["function mode", "dispatch mode", "device cpu"])
@pytest.mark.parametrize("kernel", ["default", "native", "torch", "aten", "reference"])
def test_a_mode_changes_nothing_of_what_is_saved(kernel: KernelName, mode: str) -> None:
    """A checkpoint that is recomputed outside of the mode counts what was saved in it."""
    rnn, x = ManualRNN(3, 4, num_layers=2, bidirectional=True), torch.randn(3, 2, 3)
    found = []
    for around in (nullcontext, AROUND[mode]):
        saved: list[torch.Size] = []

        def note(t: Tensor, saved: list[torch.Size] = saved) -> Tensor:
            saved.append(t.shape)
            return t

        with use_kernel(kernel), saved_tensors_hooks(note, lambda t: t), around():
            rnn(x)
        found.append(saved)
    assert found[0] == found[1] != []


@pytest.mark.parametrize("at", range(1, 6))
@pytest.mark.parametrize("steps", [4, 30])
@pytest.mark.users_lengths
def test_an_error_of_a_hook_is_raised(steps: int, at: int) -> None:
    """And nothing else runs in the place of what it stopped."""
    count, x = 0, torch.randn(steps, 2, 3, requires_grad=True)

    def pack(t: Tensor) -> Tensor:
        nonlocal count
        count += 1
        if count == at:
            raise RuntimeError("of the hook")
        return t

    rnn = ManualRNN(3, 4)
    with saved_tensors_hooks(pack, lambda t: t), suppress(RuntimeError):
        rnn(x)
        assert count < at
    assert count <= at


def test_copies_are_differentiated_and_mapped() -> None:
    """Though nothing but a graph calls them, below autograd."""
    x = torch.randn(3, 2)
    (found,) = vmap(OPS.copies)([x])
    assert torch.equal(found, x)
    assert torch.equal(grad(lambda x: OPS.copies([x])[0].sum())(x), torch.ones(3, 2))
