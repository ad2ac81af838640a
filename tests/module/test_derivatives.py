r"""Derivatives through the module: numeric checks of every mode; arguments that ask for gradients in part."""

from itertools import combinations
from typing import Any

import pytest
import torch
from helpers import Operators, assert_same, packed, twins
from internals import native
from loop import CASES, NETWORKS, Loop, as_function, build, case_id, sample, wrap
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.functional import hvp, jacobian

from manual_rnn import ManualRNN, use_kernel

PARTS = [part for size in (1, 2) for part in combinations(("input", "hx", "weights"), size)]


@pytest.mark.parametrize(("network", "layout"), CASES, ids=case_id)
def test_gradcheck_in_every_mode(network, layout):
    function, vector = as_function(build(ManualRNN, network), network, layout)
    vector.requires_grad_()
    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(function, (vector,), fast_mode=layout != "batched", **modes)
    assert gradgradcheck(
        function, (vector,), fast_mode=True, check_fwd_over_rev=True, check_batched_grad=True
    )


@pytest.mark.parametrize("network", NETWORKS[:2], ids=case_id)
def test_gradgradcheck_entry_by_entry(network):
    function, vector = as_function(build(ManualRNN, network), network, "batched")
    vector.requires_grad_()
    assert gradgradcheck(function, (vector,), check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize(("network", "layout"), CASES, ids=case_id)
def test_third_derivative_by_autograd(network, layout):
    found, expected = (
        _third(*as_function(build(kind, network), network, layout)) for kind in (ManualRNN, Loop)
    )
    assert expected.abs().max() > 1e-3
    assert_same({"third": found}, {"third": expected})


def _third(function, vector):
    """Thrice along ones with `create_graph`."""
    vector.requires_grad_()
    value = function(vector).sin().sum()
    for _ in range(3):
        (slope,) = torch.autograd.grad(value, vector, create_graph=True)
        value = slope.sum()
    return slope


@pytest.mark.parametrize("network", NETWORKS, ids=case_id)
def test_hessian_vector_product(network):
    found, expected = (
        hvp(lambda v, f=function: f(v).sin().sum(), vector, torch.ones_like(vector))[1]
        for function, vector in (
            as_function(build(kind, network), network, "batched") for kind in (ManualRNN, Loop)
        )
    )
    assert_same({"hvp": found}, {"hvp": expected})


@pytest.mark.parametrize("part", PARTS, ids="+".join)
@pytest.mark.parametrize("layout", ["batched", "packed"])
@pytest.mark.parametrize("network", [NETWORKS[0], NETWORKS[-2]], ids=case_id)
def test_tangents_of_a_part(network, layout, part):
    """Dual numbers on some of input, `hx` and weights, with and without grad mode."""
    found, expected = (_tangents(kind, network, layout, part) for kind in (ManualRNN, Loop))
    assert all(tangent.abs().max() > 1e-3 for tangent in expected.values())
    assert_same(found, expected)


def _tangents(kind, network, layout, part):
    rnn = build(kind, network).requires_grad_(False)
    input, hx = sample(network, layout)
    tangents = {}
    for mode in (torch.enable_grad(), torch.no_grad()):
        with mode, forward_ad.dual_level():
            dual = lambda x: forward_ad.make_dual(x, torch.linspace(1, 2, x.numel()).to(x).view(x.shape))  # noqa: E731
            weights = {k: dual(p) if "weights" in part else p for k, p in rnn.named_parameters()}
            x, h = dual(input) if "input" in part else input, dual(hx) if "hx" in part else hx
            output, h_n = torch.func.functional_call(rnn, weights, (wrap(x, layout), h))
            output = output.data if layout == "packed" else output
            for name, value in {"output": output, "h_n": h_n}.items():
                tangent = forward_ad.unpack_dual(value).tangent
                assert tangent is not None, f"{name} lost its tangent"
                tangents[f"{name} {type(mode).__name__}"] = tangent
    return tangents


@pytest.mark.parametrize("part", PARTS, ids="+".join)
@pytest.mark.parametrize("layout", ["batched", "packed"])
@pytest.mark.parametrize("network", [NETWORKS[0], NETWORKS[-2]], ids=case_id)
def test_gradients_of_a_part(network, layout, part):
    """First and second derivatives by just some of input, `hx` and weights."""
    found, expected = (_second(kind, network, layout, part) for kind in (ManualRNN, Loop))
    assert_same(found, expected)


def _second(kind, network, layout, part):
    rnn = build(kind, network).requires_grad_("weights" in part)
    input, hx = (
        x.requires_grad_(name in part)
        for x, name in zip(sample(network, layout), ("input", "hx"), strict=True)
    )
    output, h_n = rnn(wrap(input, layout), hx)
    value = (output.data if layout == "packed" else output).sin().sum() + h_n.cos().sum()
    leaves = {"input": input, "hx": hx, **dict(rnn.named_parameters())}
    leaves = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    first = torch.autograd.grad(value, list(leaves.values()), create_graph=True)
    second = torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), list(leaves.values()))
    names = [f"{order} {name}" for order in ("first", "second") for name in leaves]
    return dict(zip(names, [*(g.detach() for g in first), *second], strict=True))


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("steps", [3, 12, 40])
def test_second_derivative_by_the_first_states_alone(steps: int, options: dict[str, Any]) -> None:
    """The second backward pass has a cotangent of the states, and multiplies nothing else with theirs."""
    x, cotangent = torch.randn(steps, 3, 4, dtype=torch.float64), None
    found = []
    for rnn in twins(4, 6, dtype=torch.float64, **options):
        rnn.requires_grad_(False)
        hx = torch.ones(4 if options else 1, 3, 6, dtype=torch.float64, requires_grad=True)
        output, h_n = rnn(x, hx)
        cotangent = torch.randn_like(output) if cotangent is None else cotangent
        (first,) = torch.autograd.grad((output * cotangent).sum() + h_n.sin().sum(), hx, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), hx)
        found.append({"first": first.detach(), "second": second})
    assert_same(found[1], found[0])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("steps", [1, 3, 9])
def test_tangents_of_all_columns_at_once(steps: int, batch_first: bool) -> None:
    """With `batch_first` those of `nn.RNN` are wrong; the other way through the graph judges."""
    rnn = ManualRNN(3, 4, batch_first=batch_first, dtype=torch.float64)
    x = torch.randn(2, steps, 3, dtype=torch.float64)
    for at in (0, 1):
        expected = jacobian(lambda x, at=at: rnn(x)[at], x)
        found = jacobian(lambda x, at=at: rnn(x)[at], x, vectorize=True, strategy="forward-mode")
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.skipif(not native.has_aten_node, reason="no compiler, or another torch")
@pytest.mark.parametrize("layout", ["batched", "batch_first", "packed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("steps", [2, 20])
@pytest.mark.users_lengths
def test_second_derivative_by_weights(
    steps: int, options: dict[str, Any], dtype: torch.dtype, layout: str
) -> None:
    """An inner step of meta-learning brings a cotangent of the states, which C adds to that of the output."""
    shape = (4, steps, 5) if layout == "batch_first" else (steps, 4, 5)
    x = torch.randn(shape, dtype=dtype)
    input = packed(x, [steps, steps, 2, 1]) if layout == "packed" else x
    found = []
    for rnn in twins(5, 6, batch_first=layout == "batch_first", dtype=dtype, **options):
        weights = list(rnn.parameters())
        output, h_n = rnn(input)
        rows = output.data if layout == "packed" else output
        inner = torch.autograd.grad(rows.square().sum() + h_n.sum(), weights, create_graph=True)
        with Operators() as seen:
            outer = torch.autograd.grad(torch.stack([g.square().sum() for g in inner]).sum(), weights)
        found.append({str(at): g for at, g in enumerate([*inner, *outer])})
        if isinstance(rnn, ManualRNN):
            assert "manual_rnn::network_backward" in [operator.name() for operator in seen.ran]
    assert_same(found[1], found[0], 1e-12 if dtype is torch.float64 else 2e-5)


class Severed(torch.autograd.Function):
    """The identity, whose backward pass gives nothing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> None:
        return None


@pytest.mark.parametrize("frozen", ["weight_ih", "no weight"])
@pytest.mark.parametrize("further", [False, True])
@pytest.mark.parametrize("steps", [5, 25])
def test_without_a_cotangent_there_is_no_gradient(steps: int, further: bool, frozen: str) -> None:
    """An optimizer passes over a weight whose `grad` is None, and decays one whose `grad` is zero."""
    for rnn in twins(3, 4, 2, bidirectional=True):
        for name, p in rnn.named_parameters():
            p.requires_grad_(not name.startswith(frozen))
        x = torch.randn(steps, 2, 3, requires_grad=True)
        leaves = [x, *(p for p in rnn.parameters() if p.requires_grad)]
        value = Severed.apply(rnn(x)[0]).sum()
        found = torch.autograd.grad(value, leaves, create_graph=further, allow_unused=True)
        assert found == (None,) * len(leaves)


@pytest.mark.parametrize("kernel", ["default", "torch"])
@pytest.mark.parametrize("wanted", ["no weight", "bias_ih", "weight_hh", ""])
@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("steps", [5, 25])
def test_a_slope_that_is_constant_has_zeros_as_derivative(
    steps: int, batch: int, wanted: str, kernel: Any
) -> None:
    """Of ReLU: its slope doesn't change with the state, and the states have no cotangent in second order."""
    found = []
    for rnn in twins(3, 4, nonlinearity="relu", dtype=torch.float64):
        for name, p in rnn.named_parameters():
            p.requires_grad_(name.startswith(wanted))
        x = torch.ones(steps, batch, 3, dtype=torch.float64, requires_grad=True)
        leaves = [x, *(p for p in rnn.parameters() if p.requires_grad)]
        with use_kernel(kernel):
            first = torch.autograd.grad(rnn(x * 1)[0].sum(), leaves, create_graph=True)
            value = torch.stack([g.sin().sum() for g in first if g.requires_grad]).sum()
            second = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
        found.append({str(at): g for at, g in enumerate(second) if g is not None})
    assert_same(found[1], found[0])
