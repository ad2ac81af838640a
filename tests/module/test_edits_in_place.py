r"""Edits in place, of what came out and of what went in: noticed, or without consequence."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from helpers import KERNELS, PHI, error, packed, twins
from internals import KernelName, elman, saved_tensors
from loop import NETWORKS, build, sample
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, vjp

from manual_rnn import ManualRNN, use_kernel


def level_of(form: str) -> AbstractContextManager[Any]:
    return forward_ad.dual_level() if form == "dual" else nullcontext()


@pytest.mark.users_lengths
@pytest.mark.parametrize(
    "form", ["padded", "batch_first", "unbatched", "packed", "recorded", "no_grad", "dual"]
)
@pytest.mark.parametrize("steps", [1, 5, 12])
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2}, {"bidirectional": True}, {"num_layers": 2, "dropout": 0.5}], ids=str
)
def test_results_can_be_detached_in_place(options: dict[str, Any], steps: int, form: str) -> None:
    """Where `nn.RNN` returns no view, of which torch detaches none."""
    batch_first = form in ("batch_first", "recorded", "no_grad", "dual")
    x: Any = torch.randn(*((3, steps) if batch_first else (steps, 3)), 4, requires_grad=form == "recorded")
    if form in ("unbatched", "packed"):
        x = x[:, 0] if form == "unbatched" else packed(x, [steps] * 3)
    detached: list[list[bool]] = []
    for rnn in twins(4, 6, batch_first=batch_first, **options):
        with torch.set_grad_enabled(form != "no_grad"), level_of(form):
            output, h_n = rnn(forward_ad.make_dual(x, torch.ones_like(x)) if form == "dual" else x)
        results = [output if isinstance(output, Tensor) else output.data, h_n]
        detached.append([])
        for result in results:
            try:
                detached[-1].append(not result.detach_().requires_grad)
            except RuntimeError:
                detached[-1].append(False)
    assert detached[0] == detached[1]


@KERNELS
@PHI
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"bidirectional": True},
        {"bidirectional": True, "batch_first": True},
        {"num_layers": 2, "bidirectional": True},
    ],
    ids=str,
)
def test_editing_the_output_in_place_survives(
    options: dict[str, Any], nonlinearity: str, kernel: KernelName
) -> None:
    """As with `nn.RNN` on a CPU, though a fused kernel differentiates by its output."""
    builtin, manual = twins(4, 6, nonlinearity=nonlinearity, **options)
    input = torch.randn(5, 3, 4, requires_grad=True)

    def run(rnn: nn.Module) -> list[Tensor]:
        output, h_n = rnn(input)
        output.mul_(2)
        return list(torch.autograd.grad(output.sum() + h_n.square().sum(), [input, *rnn.parameters()]))

    expected = run(builtin)
    with use_kernel(kernel):
        assert max(map(error, run(manual), expected)) < 1e-6


@KERNELS
def test_editing_h_n_in_place_survives(kernel: KernelName) -> None:
    builtin, manual = twins(4, 6)
    input = torch.randn(5, 3, 4, requires_grad=True)
    found = []
    for rnn in (builtin, manual):
        with use_kernel(kernel):
            output, h_n = rnn(input)
        h_n.mul_(3)
        found.append(torch.autograd.grad(output.sum() + h_n.sum(), [input, *rnn.parameters()]))
    assert max(map(error, *found)) < 2e-6


@KERNELS
@pytest.mark.parametrize("form", ["padded", "packed", "functional"])
@pytest.mark.parametrize("wanted", ["input", "weight_ih_l0", "bias_ih_l0"])
def test_hx_may_be_edited_where_its_numbers_are_not_read(wanted: str, form: str, kernel: KernelName) -> None:
    """A buffer that takes `h_n`, and a gradient of something else: a node checks all that it has saved."""
    found: list[Tensor] = []
    x, h0 = torch.randn(9, 3, 4), torch.randn(1, 3, 6)
    for rnn in twins(4, 6):
        leaf, hx = x.clone().requires_grad_(wanted == "input"), h0.clone()
        given = packed(leaf, [9, 9, 9]) if form == "packed" else leaf
        with use_kernel(kernel):
            weights: dict[str, Tensor] = dict(rnn.named_parameters())
            output, h_n = (
                functional_call(rnn, weights, (given, hx)) if form == "functional" else rnn(given, hx)
            )
        hx.copy_(h_n.detach())
        output = output.data if form == "packed" else output
        found += torch.autograd.grad(output.sum(), weights.get(wanted, leaf))
    assert error(*found) < 2e-6


@KERNELS
@pytest.mark.parametrize("edited", ["input", "weight_hh_l0", "weight_ih_l1"])
def test_editing_an_argument_before_backward_raises(edited: str, kernel: KernelName) -> None:
    for rnn in twins(4, 6, 2):
        arguments = {"input": torch.randn(5, 3, 4), "hx": torch.randn(2, 3, 6)}
        with use_kernel(kernel):
            output, _ = rnn(**arguments)
        with torch.no_grad():
            (arguments | dict(rnn.named_parameters()))[edited].zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


@KERNELS
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("wanted", [(), ("input",), ("hx",), ("input", "hx")], ids=str)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("copied", [True, False])
def test_an_edit_of_any_argument_before_backward_does_what_it_does_with_nn_rnn(
    copied: bool,
    options: dict[str, Any],
    wanted: tuple[str, ...],
    steps: int,
    kernel: KernelName,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step of an optimizer, say, which edits all weights: it raises, or changes no gradient. Also where the
    weights are too many numbers to be copied. `hx` is always copied, so its edit may change nothing though
    `nn.RNN` raises."""
    if not copied:
        monkeypatch.setattr(saved_tensors, "FEW", 0)
    builtin, manual = twins(4, 6, **options)
    states = builtin.num_layers * (1 + builtin.bidirectional)
    given = {"input": torch.randn(steps, 3, 4), "hx": torch.randn(states, 3, 6)}
    for edited in [*given, *dict(builtin.named_parameters())]:
        found: list[Any] = []
        for rnn in (builtin, manual):
            arguments = {name: x.clone().requires_grad_(name in wanted) for name, x in given.items()}
            tensors = arguments | dict(rnn.named_parameters())
            before = tensors[edited].detach().clone()
            with use_kernel(kernel):
                output, _ = rnn(**arguments)
            with torch.no_grad():
                tensors[edited].add_(1)
            inputs = [x for x in tensors.values() if x.requires_grad]
            try:
                found.append(torch.autograd.grad(output.sum(), inputs))
            except RuntimeError as reason:
                found.append("inplace" in str(reason))
            with torch.no_grad():
                tensors[edited].copy_(before)
        if edited == "hx" and isinstance(found[1], tuple):
            arguments = {name: x.clone().requires_grad_(name in wanted) for name, x in given.items()}
            inputs = [x for x in [*arguments.values(), *builtin.parameters()] if x.requires_grad]
            found[0] = torch.autograd.grad(builtin(**arguments)[0].sum(), inputs)
        assert [type(f) for f in found] == [type(found[0])] * 2, f"{edited}: {found[1]}"
        if isinstance(found[0], tuple):
            assert max(map(error, *found)) < 2e-6, edited
        else:
            assert found == [True, True], edited


@pytest.mark.parametrize("edited", ["weight_hh_l0", "hx", "output", "cotangent", "first gradient"])
def test_edits_between_the_orders_are_noticed(edited):
    """What the graph of a gradient saves: weights, h0, states, the cotangent, the result of `linear`."""
    torch.manual_seed(0)
    z, h0, w, c = torch.randn(3, 2, 3), torch.randn(2, 3), torch.randn(3, 3), torch.randn(3, 2, 3)
    args = [x.requires_grad_() for x in (z, h0, w, c)]
    own_h0, own_w, own_c = h0.clone(), w.clone(), c.clone()
    h = elman(z, own_h0, own_w, None, "tanh", False, "torch")
    first = torch.autograd.grad(h, args[:3], own_c, create_graph=True)
    value = torch.stack([g.sin().sum() for g in first]).sum()
    victim = {
        "weight_hh_l0": own_w,
        "hx": own_h0,
        "output": h,
        "cotangent": own_c,
        "first gradient": first[0],
    }
    with torch.no_grad():
        victim[edited].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, args)


@pytest.mark.parametrize("transform", ["grad", "vjp"])
def test_an_edit_in_place_under_a_transform(transform):
    """The numbers of the edited program, as `nn.RNN` gives them."""

    def edited(rnn):
        def value(x: Tensor) -> Tensor:
            output, _ = rnn(x)
            output.mul_(2)
            return output.sin().sum()

        return value

    x, found = sample(NETWORKS[0], "batched")[0], []
    for f in (edited(build(kind, NETWORKS[0])) for kind in (nn.RNN, ManualRNN)):
        pull = grad(f) if transform == "grad" else lambda x, f=f: vjp(f, x)[1](x.new_ones(()))[0]
        found.append(pull(x))
    assert error(*found) < 1e-12
