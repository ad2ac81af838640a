r"""`.data` replaced between the orders of differentiation: every order is of the numbers of the forward pass.

SAM, EMA and `vector_to_parameters` replace it, and a server that reloads weights; `nn.RNN` has kept the
numbers.
"""

from typing import Any

import pytest
import torch
from helpers import assert_same, kernels_for, packed, twins
from internals import KernelName
from torch import Tensor, nn

from manual_rnn import use_kernel

EVERY_KERNEL = pytest.mark.parametrize("kernel", ["default", *kernels_for(torch.float64)])
NAMES = [
    "input",
    "hx",
    *(f"{kind}_l{layer}" for kind in ("weight_ih", "weight_hh", "bias_hh") for layer in (0, 1)),
]


def second_derivatives(rnn: nn.Module, name: str, when: str, form: str) -> dict[str, Tensor]:
    """First and second derivatives by all leaves, one of which gets other numbers before either."""
    torch.manual_seed(1)
    x, hx = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3, 2), (4, 3, 3)))
    leaves = {"input": x, "hx": hx, **dict(rnn.named_parameters())}
    given: Any = x if form == "padded" else packed(x, [2, 4, 1])
    output, h_n = rnn(given, hx)
    output = output if isinstance(output, Tensor) else output.data
    value = output.sin().sum() + h_n.cos().sum()

    def replace() -> None:
        leaves[name].data = torch.zeros_like(leaves[name])

    if when == "before the first":
        replace()
    first = torch.autograd.grad(value, list(leaves.values()), create_graph=True)
    if when == "before the second":
        replace()
    second = torch.autograd.grad(torch.stack([g.sin().sum() for g in first]).sum(), list(leaves.values()))
    names = [f"{order} by {name}" for order in ("first", "second") for name in leaves]
    return dict(zip(names, [*(g.detach() for g in first), *second], strict=True))


@EVERY_KERNEL
@pytest.mark.parametrize(("when", "form"), [("before the first", "packed"), ("before the second", "padded")])
@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(name: str, when: str, form: str, kernel: KernelName) -> None:
    builtin, manual = twins(2, 3, num_layers=2, bidirectional=True, dtype=torch.float64)
    with use_kernel(kernel):
        found = second_derivatives(manual, name, when, form)
    assert_same(found, second_derivatives(builtin, name, when, form))
