r"""`torch.func` and dual numbers through the module, against the same transform of the judge."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from helpers import assert_same
from loop import LAYOUTS, OTHERS, Loop, as_function, build, case_id, met_in_pairs
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from manual_rnn import ManualRNN

Function = Callable[[Tensor], Tensor]


def direction(like: Tensor) -> Tensor:
    """Numbers without pattern, and drawn from no generator, which `vmap` would object to."""
    return torch.arange(1.0, like.numel() + 1, dtype=like.dtype).square().cos().view(like.shape)


def scalar(f: Function) -> Function:
    """A curved function of all outputs, so that no derivative of it is zero by symmetry."""
    return lambda x: ((y := f(x)).sin() * direction(y)).sum()


def with_dual_numbers(f: Function, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(x, direction(x)))).tangent
    assert tangent is not None, "the tangent got lost"
    return tangent


def third(f: Function, x: Tensor) -> Tensor:
    """The third derivative along two directions."""
    along = lambda g: lambda x: jvp(g, (x,), (direction(x),))[1]  # noqa: E731
    return along(along(grad(scalar(f))))(x)


def third_in_reverse(f: Function, x: Tensor) -> Tensor:
    """The same, by reverse mode alone."""
    along = lambda g: lambda x: (g(x) * direction(x)).sum()  # noqa: E731
    return grad(along(grad(along(grad(scalar(f))))))(x)


TRANSFORMS: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "grad": lambda f, x: grad(scalar(f))(x),
    "vjp": lambda f, x: vjp(f, x)[1](direction(f(x)))[0],
    "jvp": lambda f, x: jvp(f, (x,), (direction(x),))[1],
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "hessian": lambda f, x: hessian(scalar(f))(x),
    "hessian in reverse": lambda f, x: jacrev(jacrev(scalar(f)))(x),
    "hessian forward": lambda f, x: jacfwd(jacfwd(scalar(f)))(x),
    "reverse over forward": lambda f, x: jacrev(jacfwd(scalar(f)))(x),
    "third derivative": third,
    "third derivative in reverse": third_in_reverse,
    "dual numbers": with_dual_numbers,
    "dual numbers without grad": torch.no_grad()(with_dual_numbers),
    "jvp without grad": lambda f, x: torch.no_grad()(jvp)(f, (x,), (direction(x),))[1],
    "jvp over samples": lambda f, x: vmap(lambda x: jvp(f, (x,), (direction(x),))[1])(
        torch.stack([x, 2 * x])
    ),
}


ROWS = met_in_pairs(TRANSFORMS, LAYOUTS) + [
    (transform, LAYOUTS[n % len(LAYOUTS)], network)
    for n, (network, transform) in enumerate(product(OTHERS, TRANSFORMS))
]


@pytest.mark.parametrize(("transform", "layout", "network"), ROWS, ids=case_id)
def test_transform(transform, layout, network):
    found, expected = (
        TRANSFORMS[transform](*as_function(build(kind, network), network, layout))
        for kind in (ManualRNN, Loop)
    )
    assert expected.abs().max() > 1e-3
    assert_same({transform: found}, {transform: expected})
