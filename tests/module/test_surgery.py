r"""A network that was operated on, or built by the constructor of `nn.RNNBase`; gradients of gradients of one
step; strides of gradients. `nn.RNN` is the control in each case."""

from collections.abc import Callable
from copy import deepcopy
from itertools import product
from typing import Any

import pytest
import torch
from helpers import KERNELS, assert_same, gradients, twins
from internals import KernelName
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp

from manual_rnn import ManualRNN, use_kernel

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
BOTH = [nn.RNN, ManualRNN]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"bidirectional": True},
    {"bidirectional": True, "bias": False, "nonlinearity": "relu", "batch_first": True},
]


def bound(dtype: torch.dtype) -> float:
    return 1e-12 if dtype == torch.float64 else 1e-5


def count(rnn: Any) -> int:
    """The weights of one layer."""
    return len(rnn._all_weights[0]) * (1 + rnn.bidirectional)


def assign(rnn: Any) -> None:
    rnn._flat_weights = rnn._flat_weights[: count(rnn)]


def delete(rnn: Any) -> None:
    del rnn._flat_weights[count(rnn) :]


def pop(rnn: Any) -> None:
    for _ in range(2 * count(rnn)):
        rnn._flat_weights.pop()


def name(rnn: Any) -> None:
    rnn._flat_weights_names = rnn._flat_weights_names[: count(rnn)]
    rnn._init_flat_weights()


CUTS: list[Callable[[Any], None]] = [assign, delete, pop, name]


@KERNELS
@DTYPES
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cut", CUTS)
def test_layers_taken_off(
    cut: Callable[[Any], None], options: dict[str, Any], dtype: torch.dtype, kernel: KernelName
) -> None:
    found = []
    for rnn in twins(3, 4, 3, **options, dtype=dtype):
        cut(rnn)
        rnn.num_layers = 1
        torch.manual_seed(0)
        x = torch.randn(5, 2, 3, dtype=dtype, requires_grad=True)
        with use_kernel(kernel if isinstance(rnn, ManualRNN) else "default"):
            output, h_n = rnn(x)
            (output.sum() + h_n.sin().sum()).backward()
        grads = {k: p.grad for k, p in rnn.named_parameters() if p.grad is not None}
        assert len(grads) == count(rnn)
        found.append({"output": output, "h_n": h_n, "x": x.grad, **grads})
    assert_same(found[1], found[0], bound(dtype))


def test_too_few_or_too_many_are_refused() -> None:
    for rnn in twins(3, 4, 3):
        rnn._flat_weights = rnn._flat_weights[:4]
        with pytest.raises(RuntimeError, match="weights"):
            rnn(torch.randn(5, 2, 3))
        rnn.num_layers = 2
        with pytest.raises(RuntimeError, match="weights"):
            rnn(torch.randn(5, 2, 3))


def test_other_names_are_refused() -> None:
    rnn = ManualRNN(3, 4, 2)
    for names in (["weight"], rnn._flat_weights_names[:3], rnn._flat_weights_names[4:]):
        with pytest.raises(AttributeError, match="expected _flat_weights_names"):
            rnn._flat_weights_names = names
    assert len(rnn._flat_weights_names) == 8


def based(kind: Any) -> list[Callable[..., Any]]:
    """Subclasses that call the constructor of `nn.RNNBase`."""

    class Plain(kind):  # type: ignore[misc]
        def __init__(self, I: int, H: int, **options: Any) -> None:  # noqa: E741
            nn.RNNBase.__init__(self, "RNN_TANH", I, H, 2, **options)

    class Named(kind):  # type: ignore[misc]
        def __init__(self, I: int, H: int, **options: Any) -> None:  # noqa: E741
            nn.RNNBase.__init__(
                self, mode="RNN_RELU", input_size=I, hidden_size=H, bidirectional=True, bias=False, **options
            )
            self.nonlinearity = "relu"

    return [Plain, Named]


@KERNELS
@DTYPES
@pytest.mark.parametrize("form", [0, 1], ids=["by place", "by name"])
def test_the_constructor_of_the_base(form: int, dtype: torch.dtype, kernel: KernelName) -> None:
    made = []
    for kind in BOTH:
        torch.manual_seed(0)
        made.append(based(kind)[form](3, 4, dtype=dtype))
    builtin, manual = made
    assert_same(manual.state_dict(), builtin.state_dict(), 0)
    assert manual._flat_weights_names == builtin._flat_weights_names
    assert manual.extra_repr() == builtin.extra_repr()
    x = torch.randn(5, 2, 3, dtype=dtype, requires_grad=True)
    for rnn in (manual, deepcopy(manual)):
        with use_kernel(kernel):
            assert_same(gradients(rnn, x), gradients(builtin, x), bound(dtype))


@KERNELS
@DTYPES
@pytest.mark.parametrize("given", [False, True], ids=["", "hx"])
@pytest.mark.parametrize("phi", ["relu", "tanh"])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_gradient_penalty_on_one_step(
    layers: int, phi: str, given: bool, dtype: torch.dtype, kernel: KernelName
) -> None:
    """With ReLU the gradient depends on no input, and is connected to the graph all the same."""
    found = []
    for rnn in twins(3, 4, layers, nonlinearity=phi, dtype=dtype):
        torch.manual_seed(0)
        x = torch.randn(1, 2, 3, dtype=dtype, requires_grad=True)
        hx = torch.randn(layers, 2, 4, dtype=dtype, requires_grad=True) if given else None
        with use_kernel(kernel if isinstance(rnn, ManualRNN) else "default"):
            output, _ = rnn(x, hx)
            (grad,) = torch.autograd.grad(output.sum(), x, create_graph=True)
            assert grad.requires_grad
            (grad**2).sum().backward()
        names = {"x": x, **({} if hx is None else {"hx": hx}), **dict(rnn.named_parameters())}
        found.append({k: torch.zeros_like(t) if t.grad is None else t.grad for k, t in names.items()})
    assert_same(found[1], found[0], bound(dtype))


FORMS: dict[str, Callable[[int, int, int], Tensor]] = {
    "plain": torch.randn,
    "transposed": lambda a, b, c: torch.randn(b, a, c).transpose(0, 1),
    "columns": lambda a, b, c: torch.randn(c, a, b).permute(1, 2, 0),
    "columns of each": lambda a, b, c: torch.randn(a, c, b).permute(0, 2, 1),
    "strided": lambda a, b, c: torch.randn(a, b, 2 * c)[..., ::2],
    "every other": lambda a, b, c: torch.randn(a, 2 * b, c)[:, ::2],
    "narrow": lambda a, b, c: torch.randn(a, b, c + 2)[..., :c],
    "expanded": lambda a, b, c: torch.randn(a, 1, c).expand(a, b, c),
}


@pytest.mark.parametrize("kernel", ["default", "native", "torch"])
@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True}, {"num_layers": 2, "bidirectional": True}], ids=str
)
@pytest.mark.parametrize("form", FORMS)
def test_strides_of_the_gradient_of_the_input(form: str, options: dict[str, Any], kernel: KernelName) -> None:
    """They differ for inputs whose rows are the columns of a matrix in memory, with B = 1 or T = 1 above all.

    Of an axis of size 1 no stride counts.
    """
    for T, B, I in product((1, 2, 5), (1, 2, 4), (1, 3)):  # noqa: E741
        builtin, manual = twins(I, 4, **options)
        x = FORMS[form](*((B, T) if builtin.batch_first else (T, B)), I).requires_grad_()
        grads = []
        for rnn in (builtin, manual):
            with use_kernel(kernel if rnn is manual else "default"):
                grads.append(torch.autograd.grad(rnn(x)[0].sum(), x)[0])
        assert torch.allclose(grads[1], grads[0], atol=1e-5)
        strides = [[s for s, n in zip(g.stride(), g.shape, strict=True) if n > 1] for g in grads]
        assert strides[1] == strides[0], (T, B, I)


def of_a_penalty(rnn: Any, x: Tensor, hx: Tensor) -> list[Tensor]:
    x.requires_grad_()
    (slope,) = torch.autograd.grad(rnn(x, hx)[0].square().sum(), x, create_graph=True)
    return list(torch.autograd.grad(slope.square().sum(), [x, *rnn.parameters()]))


def of_a_penalty_in_func(rnn: Any, x: Tensor, hx: Tensor) -> list[Tensor]:
    def penalty(weights: dict[str, Tensor]) -> Tensor:
        loss = lambda x: functional_call(rnn, weights, (x, hx))[0].square().sum()  # noqa: E731
        return grad(loss)(x).square().sum()

    return list(grad(penalty)({name: p.detach() for name, p in rnn.named_parameters()}).values())


def of_a_tangent(rnn: Any, x: Tensor, hx: Tensor) -> list[Tensor]:
    def squared(weights: dict[str, Tensor]) -> Tensor:
        return jvp(lambda x: functional_call(rnn, weights, (x, hx))[0], (x,), (x,))[1].square().sum()

    return list(grad(squared)({name: p.detach() for name, p in rnn.named_parameters()}).values())


def of_each_output(rnn: Any, x: Tensor, hx: Tensor) -> list[Tensor]:
    by_x, by_hx = jacrev(lambda x, hx: rnn(x, hx)[0], argnums=(0, 1))(x, hx)
    return [by_x, by_hx, jacrev(lambda hx: rnn(x, hx)[1])(hx)]


FURTHER: dict[str, Callable[[Any, Tensor, Tensor], list[Tensor]]] = {
    "penalty": of_a_penalty,
    "penalty in torch.func": of_a_penalty_in_func,
    "tangent": of_a_tangent,
    "jacrev": of_each_output,
}


@pytest.mark.parametrize("kernel", ["default", "native", "torch"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("steps", [2, 20])
@pytest.mark.parametrize("name", FURTHER)
def test_strides_of_further_derivatives(
    name: str, steps: int, options: dict[str, Any], kernel: KernelName
) -> None:
    """Whoever makes one vector of them calls `g.view(-1)`."""
    x, found = torch.randn(steps, 3, 4), []
    for rnn in twins(4, 6, **options):
        hx = torch.linspace(-1, 1, len(rnn.all_weights) * 18).reshape(-1, 3, 6)
        with use_kernel(kernel if isinstance(rnn, ManualRNN) else "default"):
            found.append(FURTHER[name](rnn, x.clone(), hx))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
        assert b.stride() == a.stride()
