r"""The layer as an operator, in every form, under every rule that it has: the judge is autograd's loop."""

from itertools import product
from typing import Any

import pytest
import torch
from helpers import assert_same
from internals import OPS, layer
from loop import recurrence
from pairwise import pairwise
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jvp, vjp, vmap

SIZES = torch.tensor([3, 2, 2, 1])
ours: Any = layer
HOW = list(product([None, SIZES], ["tanh", "relu"], [False, True]))
ids = lambda how: f"{'padded' if how[0] is None else 'packed'}-{how[1]}-{'back' if how[2] else 'forth'}"  # noqa: E731
every_way = pytest.mark.parametrize("how", HOW, ids=ids)


def draw(how: Any, bias: bool = True) -> list[Tensor | None]:
    torch.manual_seed(3)
    rows = (4, 3) if how[0] is None else (8,)
    shapes = [(*rows, 2), (3, 5), (5, 2), (5, 5), *([(5,), (5,)] if bias else [])]
    drawn: list[Tensor | None] = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    return drawn if bias else [*drawn, None, None]


def judged(
    how: Any, x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, *biases: Any
) -> tuple[Tensor, Tensor]:
    z = x @ w_ih.mT
    for bias in biases:
        z = z if bias is None else z + bias
    h, reverse = recurrence("elman", z, h0, w_hh, *how), how[2]
    if how[0] is None:
        return h, h[0 if reverse else -1]
    return h, h[[0, 1, 2] if reverse else [7, 6, 2]]


def operator(how: Any) -> Any:
    return lambda *tensors: OPS.layer(*tensors, *how, "default")


def judge(how: Any) -> Any:
    return lambda *tensors: judged(how, *tensors)


def named(values: Any) -> dict[str, Tensor]:
    return {str(i): value.detach() for i, value in enumerate(torch.utils._pytree.tree_leaves(values))}


@every_way
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("entrance", ["operator", "function"])
def test_values_and_derivatives_to_the_second(how: Any, bias: bool, entrance: str) -> None:
    results: Any = []
    function: Any = (
        operator(how) if entrance == "operator" else lambda *tensors: ours(*tensors, *how, "default")
    )
    for run in (function, judge(how)):
        args = [x if x is None else x.requires_grad_() for x in draw(how, bias)]
        leaves = [x for x in args if x is not None]
        out = run(*args)
        value = out[0].sin().sum() + out[1].cos().sum()
        first = torch.autograd.grad(value, leaves, create_graph=True)
        second = torch.autograd.grad(
            torch.stack([g.sin().sum() for g in first]).sum(), leaves, materialize_grads=True
        )
        results.append(named([*out, *first, *second]))
    assert_same(*results)


SUBSETS = [tuple(i for i in range(6) if n >> i & 1) for n in range(1, 64)]


@pytest.mark.parametrize(
    ("mapped", "packed", "phi", "reverse"),
    pairwise(SUBSETS, [False, True], ["tanh", "relu"], [False, True]),
    ids=str,
)
def test_vmap_over_any_of_them(mapped: tuple[int, ...], packed: bool, phi: str, reverse: bool) -> None:
    how = SIZES if packed else None, phi, reverse
    args: list[Any] = draw(how)
    for i in mapped:
        args[i] = torch.stack([args[i] * (1 + k / 3) for k in range(3)], dim=i % args[i].dim())
    dims = tuple(i % (args[i].dim() - 1) if i in mapped else None for i in range(6))
    found = vmap(operator(how), dims)(*args)
    of = lambda k: [a if d is None else a.select(d, k) for a, d in zip(args, dims, strict=True)]  # noqa: E731
    expected = [torch.stack(each) for each in zip(*(judged(how, *of(k)) for k in range(3)), strict=True)]
    assert_same(named(found), named(expected))


@every_way
def test_tangents_and_hessians(how: Any) -> None:
    args: list[Any] = draw(how)
    tangents = [torch.cos(x) for x in args if x is not None]
    results: Any = []
    for run in (operator(how), judge(how)):
        pushed = jvp(run, tuple(args), tuple(tangents))
        out, pull, *_ = vjp(run, *args)
        one = lambda w, run=run: run(*args[:3], w, *args[4:])[1].sum()  # noqa: E731
        twice = jvp(lambda w, one=one: jvp(one, (w,), (w.sin(),))[1], (args[3],), (tangents[3],))
        results.append(named([pushed, pull(tuple(o.sin() for o in out)), hessian(one)(args[3]), twice]))
    assert_same(*results)


@every_way
def test_gradcheck_and_opcheck(how: Any) -> None:
    args = [x.requires_grad_() for x in draw(how) if x is not None]
    assert gradcheck(operator(how), args, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(operator(how), args)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # of opcheck, 2.14 on
@every_way
def test_opcheck(how: Any) -> None:
    args = [x.requires_grad_() for x in draw(how) if x is not None]
    torch.library.opcheck(OPS.layer.default, (*args, *how, "default"))


@pytest.mark.parametrize("wrong", range(6))
def test_nothing_broadcasts(wrong: int) -> None:
    args: list[Any] = draw(HOW[0])
    args[wrong] = args[wrong][..., :1]
    with pytest.raises(ValueError, match=r"layer: expected .*, got "):
        OPS.layer(*args, *HOW[0], "default")


def test_complex_numbers_are_refused_by_the_operator() -> None:
    args = [None if x is None else x.to(torch.complex128) for x in draw(HOW[0])]
    with pytest.raises((RuntimeError, TypeError), match="real numbers"):
        OPS.layer(*args, *HOW[0], "default")
