r"""Cotangents of a graph that was made before: many at once, by PyTorch's older `vmap` (`is_grads_batched`,
`vectorize=True`) and today's, and those that a transform differentiates."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import PHI, assert_same, kernels_for, packed, twins
from internals import KernelName
from loop import NETWORKS, Loop, build, sample
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.functional import hessian, jacobian
from torch.func import grad, jacfwd, jacrev, jvp, linearize, vjp, vmap

from manual_rnn import LeakyRNN, ManualRNN, use_kernel

BATCHED = [("default", torch.float64, 1e-12), *((k, torch.float32, 2e-6) for k in kernels_for(torch.float32))]


@pytest.mark.parametrize(("kernel", "dtype", "bound"), BATCHED, ids=str)
@PHI
def test_is_grads_batched(nonlinearity: str, kernel: KernelName, dtype: torch.dtype, bound: float) -> None:
    """PyTorch's older `vmap`, against the judge and `nn.RNN`."""
    network = NETWORKS[-2] | {"nonlinearity": nonlinearity}
    generator = torch.Generator().manual_seed(0)
    cotangents = torch.randn(7, 3, 2, 6, generator=generator, dtype=dtype)
    results = []
    for kind in (ManualRNN, Loop, nn.RNN):
        rnn = build(kind, network, dtype=dtype)
        input, hx = (x.to(dtype).requires_grad_() for x in sample(network, "batched"))
        named = {"input": input, "hx": hx, **dict(rnn.named_parameters())}
        with use_kernel(kernel):
            output, _ = rnn(input, hx)
        grads = torch.autograd.grad(output, list(named.values()), cotangents, is_grads_batched=True)
        results.append(dict(zip(named, grads, strict=True)))
    found, *others = results
    for expected in others:
        assert_same(found, expected, bound)


def padded_output(rnn: nn.Module, x: Tensor, hx: Tensor) -> Tensor:
    return rnn(x, hx)[0]


def packed_output(rnn: nn.Module, x: Tensor, hx: Tensor) -> Tensor:
    return rnn(packed(x, [2, 3]), hx)[0].data


def last_states(rnn: nn.Module, x: Tensor, hx: Tensor) -> Tensor:
    return rnn(x, hx)[1]


@pytest.mark.parametrize("of", [padded_output, packed_output, last_states])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_vectorized_jacobian(dtype: torch.dtype, of: Callable[..., Tensor]) -> None:
    builtin, manual = twins(2, 3, num_layers=2, bidirectional=True, dtype=dtype)
    given = torch.randn(3, 2, 2, dtype=dtype), torch.randn(4, 2, 3, dtype=dtype)
    names = ("by input", "by hx")
    found, expected = (
        dict(zip(names, jacobian(lambda x, hx, rnn=rnn: of(rnn, x, hx), given, vectorize=True), strict=True))
        for rnn in (manual, builtin)
    )
    assert_same(found, expected, 1e-12 if dtype == torch.float64 else 2e-6)


def test_vectorized_hessian() -> None:
    builtin, manual = twins(2, 3, num_layers=2, bidirectional=True, dtype=torch.float64)
    x, hx = torch.randn(3, 2, 2, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)
    found, expected = (
        hessian(lambda x, rnn=rnn: rnn(x, hx)[0].sin().sum(), x, vectorize=True) for rnn in (manual, builtin)
    )
    assert_same({"hessian": found}, {"hessian": expected})


Backward = Callable[[Tensor], tuple[Tensor, ...]]


def with_dual_numbers(backward: Backward, v: Tensor) -> Any:
    with forward_ad.dual_level():
        found = backward(forward_ad.make_dual(v, v.cos()))
        return [tuple(forward_ad.unpack_dual(g)) for g in found]


TRANSFORMS: dict[str, Callable[[Backward, Tensor], Any]] = {
    "dual numbers": with_dual_numbers,
    "jvp": lambda backward, v: jvp(backward, (v,), (v.cos(),)),
    "jvp of jvp": lambda backward, v: jvp(lambda v: jvp(backward, (v,), (v,))[1], (v,), (v.cos(),)),
    "linearize": lambda backward, v: linearize(backward, v)[1](v.cos()),
    "jacfwd": lambda backward, v: jacfwd(lambda v: backward(v)[0].sum(0))(v),
    "vjp": lambda backward, v: [(out := vjp(backward, v))[0], out[1](out[0])],
    "grad": lambda backward, v: grad(lambda v: backward(v)[0].square().sum())(v),
    "jacrev": lambda backward, v: jacrev(lambda v: backward(v)[0].sum(0))(v),
    "vmap": lambda backward, v: vmap(backward)(torch.stack([v, v.sin()])),
    "vmap over a later axis": lambda backward, v: vmap(backward, in_dims=1)(torch.stack([v, v.sin()], 1)),
    "vmap of vmap": lambda backward, v: vmap(vmap(backward))(torch.stack([v, v.sin()])[None]),
    "vmap of jvp": lambda backward, v: vmap(lambda v: jvp(backward, (v,), (v,)))(torch.stack([v, v.sin()])),
    "jvp of vmap": lambda backward, v: jvp(vmap(backward), (v[None],), (v.cos()[None],)),
}
FORMS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Any]]] = {
    "padded": ({}, lambda x: x),
    "packed": ({}, lambda x: packed(x, [12, 9])),
    "two layers": ({"num_layers": 2, "bidirectional": True, "batch_first": True}, lambda x: x.mT.mT),
    "a step": ({"nonlinearity": "relu", "bias": False}, lambda x: x[:1]),
}


def transformed(rnn: Any, name: str, form: str) -> dict[str, Tensor]:
    """The gradients of all weights, by a transform that begins once the graph is there."""
    generator = torch.Generator().manual_seed(1)
    x, hx = (torch.randn(n, 2, 3, generator=generator, dtype=torch.float64) for n in (12, rnn.num_layers))
    hx = hx.repeat(2, 1, 1)[: rnn.num_layers * (1 + rnn.bidirectional)]
    if rnn.batch_first:
        x = x.transpose(0, 1)
    output, h_n = rnn(FORMS[form][1](x), hx)
    output, weights = output if isinstance(output, Tensor) else output.data, list(rnn.parameters())
    found: Any = []
    for of in (output, h_n):

        def backward(v: Tensor, of: Tensor = of) -> tuple[Tensor, ...]:
            return torch.autograd.grad(of, weights, v, retain_graph=True)

        found.append(TRANSFORMS[name](backward, of.detach().sin()))
    return {str(at): x for at, x in enumerate(torch.utils._pytree.tree_leaves(found))}


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
@pytest.mark.parametrize("kernel", ["default", *kernels_for(torch.float64)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_of_the_cotangent_alone(name: str, form: str, kernel: KernelName) -> None:
    """Gauss-Newton products, say, of a network that was run outside."""
    builtin, manual = twins(3, 3, dtype=torch.float64, **FORMS[form][0])
    with use_kernel(kernel):
        found = transformed(manual, name, form)
    assert_same(found, transformed(builtin, name, form))


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
@pytest.mark.parametrize("form", ["padded", "two layers"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_of_the_cotangent_of_a_leaky_network(name: str, form: str) -> None:
    rnn = LeakyRNN(3, 3, alpha=0.3, dtype=torch.float64)
    with use_kernel("reference"):
        expected = transformed(rnn, name, form)
    assert_same(transformed(rnn, name, form), expected)


@pytest.mark.parametrize("kernel", ["default", *kernels_for(torch.float64)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("leaky", [False, True])
def test_a_backward_pass_in_inference_mode(leaky: bool, form: str, kernel: KernelName) -> None:
    options, change = FORMS[form]
    rnn: Any = LeakyRNN(3, 3, alpha=0.3, **options) if leaky else ManualRNN(3, 3, **options)
    x = torch.randn(2, 12, 3) if rnn.batch_first else torch.randn(12, 2, 3)
    grads = []
    for inference in (False, True):
        with use_kernel(kernel if not leaky or kernel != "aten" else "default"):
            output, h_n = rnn(change(x))
        output = output if isinstance(output, Tensor) else output.data
        loss = output.sin().sum() + h_n.cos().sum()
        with torch.inference_mode(inference):
            grads.append(torch.autograd.grad(loss, list(rnn.parameters())))
    assert all(map(torch.equal, *grads))


@pytest.fixture
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_as_fast_as_nn_rnn_within_reason() -> None:
    """C would throw at such a cotangent, for 5 to 13 ms: of twenty the best was 12 times as long."""
    best: dict[type[Any], float] = {}
    for rnn in twins(3, 4) * 20:
        x = torch.randn(5, 2, 3, requires_grad=True)
        output, _ = rnn(x)
        cotangents, leaves = torch.randn(7, *output.shape), [x, *rnn.parameters()]
        start = time.perf_counter()
        torch.autograd.grad(output, leaves, cotangents, is_grads_batched=True)
        spent = time.perf_counter() - start
        best[type(rnn)] = min(spent, best.get(type(rnn), spent))
    assert best[ManualRNN] < 4 * best[nn.RNN], best
