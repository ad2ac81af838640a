r"""The operators `network` and `network_vjp` under every rule that they have; autograd's loop judges them."""

from typing import Any

import pytest
import torch
from forms import FORMS, Form, draw, every_form, judge, named, network, split, vjp_of
from helpers import assert_same
from internals import OPS
from pairwise import pairwise
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jvp, vjp, vmap


@every_form
def test_values_and_derivatives_to_the_second(form: Form) -> None:
    results: Any = []
    for run in (network(form), judge(form)):
        leaves = [x.requires_grad_() for x in draw(form)]
        out = run(*leaves)
        value = out[0].sin().sum() + out[1].cos().sum()
        first = torch.autograd.grad(value, leaves, create_graph=True)
        second = torch.autograd.grad(
            torch.cat([g.sin().flatten() for g in first]).sum(), leaves, materialize_grads=True
        )
        results.append(named([*out[:2], *first, *second]))
    assert_same(*results)


@every_form
def test_the_gradients_and_theirs(form: Form) -> None:
    """`network_vjp` by autograd of the loop; its own derivative by the cotangents, which it is linear in."""
    run, by_loop, given = vjp_of(form)
    assert_same(named(run(*given)), named(by_loop(*given[:2])))
    cotangents = [torch.randn_like(g) for g in run(*given)]
    _, pull, *_ = vjp(lambda *c: run(*c, *given[2:]), *given[:2])
    _, expected, *_ = vjp(by_loop, *given[:2])
    assert_same(named(pull(tuple(cotangents))), named(expected(tuple(cotangents))))
    pushed = jvp(lambda *c: run(*c, *given[2:]), tuple(given[:2]), tuple(map(torch.sin, given[:2])))[1]
    assert_same(named(pushed), named(by_loop(*map(torch.sin, given[:2]))))


@every_form
def test_tangents_and_hessians(form: Form) -> None:
    args = draw(form)
    tangents = tuple(map(torch.cos, args))
    at = 1 + form.hx + 1  # the first W_hh
    results: Any = []
    for run in (network(form), judge(form)):
        pushed = jvp(run, tuple(args), tangents)
        out, pull, *_ = vjp(run, *args)
        one = lambda w, run=run: run(*args[:at], w, *args[at + 1 :])[1].sum()  # noqa: E731
        twice = jvp(lambda w, one=one: jvp(one, (w,), (w.sin(),))[1], (args[at],), (tangents[at],))
        results.append(named([pushed, pull(tuple(o.sin() for o in out)), hessian(one)(args[at]), twice]))
    assert_same(*results)


@every_form
def test_a_pull_may_be_called_after_its_transform_and_within_another(form: Form) -> None:
    args = draw(form)
    at = 1 + form.hx + 1  # the first W_hh
    results: Any = []
    for run in (network(form), judge(form)):
        loss = lambda w, run=run: run(*args[:at], w, *args[at + 1 :])[0].sin().sum()  # noqa: E731
        second = lambda w, loss=loss: vjp(grad(loss), w)[1](w.cos())[0]  # noqa: E731
        third = grad(lambda w, second=second: second(w).sin().sum())
        leaf = args[at].clone().requires_grad_()
        (recorded,) = torch.autograd.grad(second(leaf).sin().sum(), leaf)
        results.append(named([second(args[at]), third(args[at]), recorded]))
    assert_same(*results)


def mapped_arguments(args: list[Tensor], mapped: tuple[int, ...]) -> tuple[list[Tensor], list[int | None]]:
    """Three of each that is mapped, along an axis that differs from one to the next."""
    args = list(args)
    for i in mapped:
        args[i] = torch.stack([args[i] * (1 + k / 3) for k in range(3)], dim=i % args[i].dim())
    return args, [i % (x.dim() - 1) if i in mapped else None for i, x in enumerate(args)]


def assert_maps(run: Any, alone: Any, args: list[Tensor], mapped: tuple[int, ...]) -> None:
    args, dims = mapped_arguments(args, mapped)
    found = vmap(run, tuple(dims))(*args)
    of = lambda k: [a if d is None else a.select(d, k) for a, d in zip(args, dims, strict=True)]  # noqa: E731
    expected = [torch.stack(each) for each in zip(*(alone(*of(k)) for k in range(3)), strict=True)]
    assert_same(named(found), named(expected))


SUBSETS = [tuple(i for i in range(6) if n >> i & 1) for n in range(1, 64)]  # input, hx, four weights
VJP_SUBSETS = [
    tuple(i for i in range(7) if n >> i & 1) for n in range(1, 128)
]  # c, c_last, x, hx, two matrices, states


@pytest.mark.parametrize(
    ("mapped", "packed", "phi", "kernel"),
    pairwise(SUBSETS, (False, True), ("tanh", "relu"), (None, "default", "torch")),
    ids=str,
)
def test_vmap_over_any_of_them(mapped: tuple[int, ...], packed: bool, phi: str, kernel: str | None) -> None:
    form = Form(packed, phi, kernel=kernel)
    assert_maps(network(form), judge(form), draw(form), mapped)


@pytest.mark.parametrize(
    ("mapped", "packed", "kernel"), pairwise(VJP_SUBSETS, (False, True), (None, "default", "torch")), ids=str
)
def test_vmap_over_any_of_its_gradients(mapped: tuple[int, ...], packed: bool, kernel: str | None) -> None:
    """One after the other by the operator itself, which the tests above judge."""
    run, _, given = vjp_of(Form(packed, kernel=kernel))
    assert_maps(run, run, given, mapped)


@pytest.mark.parametrize("kernel", [None, "torch"])
@pytest.mark.parametrize("packed", [False, True])
def test_vmap_of_vmap_of_derivatives(packed: bool, kernel: str | None) -> None:
    """Members of members, of two layers in two directions: their values and the gradient of one weight."""
    form = Form(packed, L=2, D=2, kernel=kernel)
    args = draw(form)
    scales = torch.linspace(0.5, 1.5, 6, dtype=torch.float64).view(2, 3)
    results = []
    for run in (network(form), judge(form)):
        loss = lambda w, s, run=run: run(args[0] * s, args[1], w, *args[3:])[0].sin().sum()  # noqa: E731
        slope = torch.func.grad(loss)
        results.append(named([vmap(vmap(slope))(scales[..., None, None] * args[2], scales)]))
    found, expected = results
    assert_same(found, expected)


@pytest.mark.parametrize("form", [FORMS[0], FORMS[1], Form(True, kernel="torch"), Form(L=2)], ids=str)
def test_gradcheck(form: Form) -> None:
    args = [x.requires_grad_() for x in draw(form)]
    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(network(form), args, fast_mode=True, **modes)
    assert gradgradcheck(
        network(form), args, fast_mode=True, check_fwd_over_rev=True, check_batched_grad=True
    )
    run, _, given = vjp_of(form)
    if form.phi == "tanh":  # relu's slope has jumps, at states of 0
        leaves = [x.detach().requires_grad_() for x in given]
        assert gradcheck(run, leaves, fast_mode=True, check_forward_ad=True)
        assert gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # of opcheck, 2.14 on
@every_form
def test_opcheck(form: Form) -> None:
    form = form._replace(hx=form.hx or form.packed)  # no trace knows the batch of packed rows alone
    tensors = [x.requires_grad_() for x in draw(form)]
    x, hx, weights = split(form, tensors)
    more = () if form.kernel is None else (form.kernel,)
    overload = "kernel" if more else "default"
    how = form.sizes, form.phi, form.D == 2
    torch.library.opcheck(getattr(OPS.network, overload), (x, hx, weights, *how, form.bias, True, *more))
    _, _, (c, c_last, *rest) = vjp_of(form)
    count = 2 * form.L * form.D
    matrices, states = rest[1 + form.hx :][:count], rest[1 + form.hx :][count:]
    need = [True, form.hx, *[at % 3 > 0 for at in range(len(weights))]]
    given = [t.detach().requires_grad_() for t in matrices], [t.detach() for t in states]
    torch.library.opcheck(getattr(OPS.network_vjp, overload), (need, x, hx, *given, c, c_last, *how, *more))


@pytest.mark.parametrize("wrong", range(6))
@pytest.mark.parametrize("kernel", [None, "default", "torch"])
def test_nothing_broadcasts(kernel: str | None, wrong: int) -> None:
    args = draw(Form())
    args[wrong] = args[wrong][..., :1]
    with pytest.raises((ValueError, RuntimeError), match=r"expected .*got "):
        network(Form(kernel=kernel))(*args)


def test_complex_numbers_are_refused_by_the_operator() -> None:
    args = [x.to(torch.complex128) for x in draw(Form())]
    for kernel, words in ((None, "expected"), ("default", "real numbers")):
        with pytest.raises((RuntimeError, TypeError), match=words):
            network(Form(kernel=kernel))(*args)
