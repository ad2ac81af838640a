r"""Networks of every form as functions of tensors: by the operators `network`, `network_vjp`, by a loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from internals import OPS
from loop import recurrence
from pairwise import pairwise
from torch import Tensor
from torch.func import vjp

__all__ = ["FORMS", "SIZES", "Form", "draw", "every_form", "judge", "named", "network", "split", "vjp_of"]

SIZES = torch.tensor([3, 2, 2, 1])
H, I = 3, 2  # noqa: E741
Values = dict[str, Tensor]


class Form(NamedTuple):
    """What a network is beside its numbers; a kernel, or none for the overload without its name."""

    packed: bool = False
    phi: str = "tanh"
    L: int = 1
    D: int = 1
    bias: bool = True
    hx: bool = True
    kernel: str | None = None

    @property
    def sizes(self) -> Tensor | None:
        return SIZES if self.packed else None


FORMS = [
    Form(*row)
    for row in pairwise(
        (False, True),
        ("tanh", "relu"),
        (1, 2),
        (1, 2),
        (True, False),
        (True, False),
        (None, "default", "torch"),
    )
]
every_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form)))


def draw(form: Form) -> list[Tensor]:
    """Input, `hx` if there is one, and weights."""
    torch.manual_seed(3)
    rows, D = (8,) if form.packed else (4, 3), form.D
    shapes: list[tuple[int, ...]] = [(*rows, I), *([(form.L * D, 3, H)] if form.hx else [])]
    for layer in range(form.L):
        shapes += [(H, D * H if layer else I), (H, H), *([(H,), (H,)] if form.bias else [])] * D
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def split(form: Form, tensors: Any) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    x, *rest = tensors
    return (x, rest[0], list(rest[1:])) if form.hx else (x, None, list(rest))


def network(form: Form, save: bool = False) -> Callable[..., tuple[Tensor, ...]]:
    """The operator as a function of tensors, to output, `h_n` and perhaps states."""

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        how = form.sizes, form.phi, form.D == 2, form.bias, save
        arguments = *split(form, tensors), *how
        found = (
            OPS.network(*arguments) if form.kernel is None else OPS.network.kernel(*arguments, form.kernel)
        )
        return *found[:2], *found[2]

    return run


def judge(form: Form) -> Callable[..., tuple[Tensor, ...]]:
    """Output and `h_n` by a loop."""

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        x, hx, weights = split(form, tensors)
        hx = x.new_zeros(form.L * form.D, 3, H) if hx is None else hx
        each, last = 4 if form.bias else 2, []
        for layer in range(form.L):
            states = []
            for d in range(form.D):
                at = layer * form.D + d
                w_ih, w_hh, *biases = weights[at * each : (at + 1) * each]
                z = x @ w_ih.mT + sum(biases)
                h = recurrence("elman", z, hx[at], w_hh, form.sizes, form.phi, bool(d))
                states.append(h)
                ends = ([0, 1, 2] if d else [7, 6, 2]) if form.packed else (0 if d else -1)
                last.append(h[ends])
            x = torch.cat(states, -1)
        return x, torch.stack(last)

    return run


def vjp_of(form: Form) -> tuple[Callable[..., tuple[Tensor, ...]], Callable[..., Any], list[Tensor]]:
    """The operator `network_vjp` as a function of cotangents, input, `hx`, matrices and states; by autograd
    of the loop as one of the cotangents; and what the first is given."""
    tensors = draw(form)
    x, hx, weights = split(form, tensors)
    output, h_n, *states = network(form._replace(kernel=None), save=True)(*tensors)
    c, c_last = torch.randn_like(output), torch.randn_like(h_n)
    each = 4 if form.bias else 2
    matrices = [w for at, w in enumerate(weights) if at % each < 2]
    need = [True, form.hx, *[True] * len(weights)]

    def run(c: Tensor, c_last: Tensor, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        h0, rest = (rest[0], rest[1:]) if form.hx else (None, rest)
        given = need, x, h0, list(rest[: len(matrices)]), list(rest[len(matrices) :]), c, c_last
        how = form.sizes, form.phi, form.D == 2
        found = (
            OPS.network_vjp(*given, *how)
            if form.kernel is None
            else OPS.network_vjp.kernel(*given, *how, form.kernel)
        )
        return tuple(found)

    def by_loop(c: Tensor, c_last: Tensor) -> Any:
        _, pull, *_ = vjp(judge(form), *tensors)
        return pull((c, c_last))

    return run, by_loop, [c, c_last, x, *([hx] if hx is not None else []), *matrices, *states]


def named(values: Any) -> Values:
    return {str(i): value.detach() for i, value in enumerate(torch.utils._pytree.tree_leaves(values))}
