r"""cuDNN's network and all around it, with its two operators computed by ATen on a CPU (`standin.py`)."""

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from helpers import PHI, assert_same, error, gradients, packed, twins
from internals import OPS, NetworkOptions, cudnn
from standin import Calls
from torch import Tensor
from torch.autograd import gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

from manual_rnn import ManualRNN, use_kernel

DOUBLE: dict[str, Any] = {"dtype": torch.float64}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False, "batch_first": True},
    {"num_layers": 3, "bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "bias": False, "batch_first": True},
    {"num_layers": 2, "dropout": 0.3},
]
FORMS: dict[str, Any] = {"padded": None, "sorted": [4, 2, 2], "unsorted": [2, 4, 1]}
EACH_OPTION = pytest.mark.parametrize("options", OPTIONS, ids=str)
EACH_FORM = pytest.mark.parametrize("form", [*FORMS, "unbatched"])


def batch(form: str, options: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor, Callable]:
    """Input and hx that want gradients, and how a module is to get the input."""
    first, D = options.get("batch_first"), 1 + ("bidirectional" in options)
    groups = options.get("num_layers", 1) * D
    x, hx = torch.randn(3, 4, 5, dtype=dtype), torch.randn(groups, 3, 6, dtype=dtype)
    if form == "unbatched":
        return x[0].requires_grad_(), hx[:, 0].requires_grad_(), lambda input: input
    x, lengths = x if first else x.transpose(0, 1).contiguous(), FORMS[form]
    pack = lambda input: packed(input, lengths, bool(first)) if lengths else input  # noqa: E731
    return x.requires_grad_(), hx.requires_grad_(), pack


@PHI
@EACH_OPTION
@EACH_FORM
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("starts", [False, True], ids=["zeros", "hx"])
def test_equals_builtin(
    starts: bool, dtype: torch.dtype, form: str, options: dict[str, Any], nonlinearity: str, calls: Calls
) -> None:
    """One call forward and one back, unless something is dropped in between."""
    builtin, manual = twins(5, 6, nonlinearity=nonlinearity, dtype=dtype, **options)
    x, hx, pack = batch(form, options, dtype)
    expected = gradients(builtin, x, hx if starts else None, pack)
    found = gradients(manual, x, hx if starts else None, pack)
    assert_same(found, expected, 1e-12 if dtype is torch.float64 else 2e-6)
    count = options["num_layers"] if "dropout" in options else 1
    assert [call["operator"] for call in calls].count("_cudnn_rnn") == count
    assert len(calls) == 2 * count


@EACH_OPTION
@EACH_FORM
def test_without_a_gradient(form: str, options: dict[str, Any], calls: Calls) -> None:
    """cuDNN is told so, and keeps nothing."""
    builtin, manual = (rnn.eval() for rnn in twins(5, 6, **options, **DOUBLE))
    x, _, pack = batch(form, options, torch.float64)
    with torch.no_grad():
        found, expected = (rnn(pack(x)) for rnn in (manual, builtin))
    for a, b in zip(found, expected, strict=True):
        assert error(getattr(a, "data", a), getattr(b, "data", b)) < 1e-12
    assert [call["train"] for call in calls] == [False]


@EACH_OPTION
@EACH_FORM
def test_every_derivative(form: str, options: dict[str, Any], calls: Calls) -> None:
    """In `eval()` too, where on CUDA `nn.RNN` has none."""
    rnn = ManualRNN(5, 6, **options, **DOUBLE).eval()
    x, hx, pack = batch(form, options, torch.float64)

    def run(x: Tensor, hx: Tensor) -> tuple[Tensor, ...]:
        output, h_n = rnn(pack(x), hx)
        return (output.data if isinstance(output, PackedSequence) else output), h_n

    output, h_n = run(x, hx)
    value = output.sin().sum() + h_n.cos().sum()
    once, twice = (torch.autograd.grad(value, [x, hx, *rnn.parameters()], retain_graph=True) for _ in "12")
    assert all(map(torch.equal, once, twice))
    assert gradgradcheck(run, (x, hx), fast_mode=True)


@EACH_OPTION
@EACH_FORM
@pytest.mark.parametrize("again", [False, True], ids=["once", "create_graph"])
def test_many_cotangents_at_once(again: bool, form: str, options: dict[str, Any], calls: Calls) -> None:
    """As one after the other."""
    rnn = ManualRNN(5, 6, **options, **DOUBLE).eval()
    x, hx, pack = batch(form, options, torch.float64)
    output, h_n = rnn(pack(x), hx)
    results = (output.data if isinstance(output, PackedSequence) else output), h_n
    leaves = [x, hx, *rnn.parameters()]
    many = [torch.randn(3, *result.shape, **DOUBLE) for result in results]
    how: dict[str, Any] = {"retain_graph": True, "create_graph": again}
    for given, cotangents in ((results, many), (results[:1], many[:1]), (results[1:], many[1:])):
        found = torch.autograd.grad(given, leaves, cotangents, is_grads_batched=True, **how)
        one_by_one = [torch.autograd.grad(given, leaves, own, **how) for own in zip(*cotangents, strict=True)]
        expected = [torch.stack(same) for same in zip(*one_by_one, strict=True)]
        assert max(map(error, found, expected)) < 1e-12
        if again:
            values = [first[0].sin().sum() for first in (found, expected)]
            assert max(map(error, *(torch.autograd.grad(v, leaves, **how) for v in values))) < 1e-12


@pytest.mark.parametrize("kernel", ["default", "aten"])
def test_what_one_input_owes_another(kernel: Any, calls: Calls) -> None:
    """With `create_graph` a gradient stays that of the input itself: `hx` was computed from it."""
    builtin, manual = twins(5, 6, **DOUBLE)
    x = torch.randn(4, 3, 5, requires_grad=True, **DOUBLE)
    grads = []
    for rnn in (builtin, manual):
        hx = x.sum(0, keepdim=True)[..., [0, 1, 2, 3, 4, 0]].tanh()
        with use_kernel(kernel if rnn is manual else "default"):
            value = rnn(x, hx)[0].sin().sum()
            first = torch.autograd.grad(value, [x, hx, *rnn.parameters()], create_graph=True)
        second = torch.autograd.grad(
            torch.cat([g.flatten() for g in first]).sin().sum(), [x, *rnn.parameters()]
        )
        grads.append([*first, *second])
    assert max(map(error, grads[1], grads[0])) < 1e-12


def test_the_node_is_pytorchs_own(calls: Calls) -> None:
    """No Python runs in between, and no memory outlives the backward pass."""
    rnn, leaf = ManualRNN(5, 6), torch.randn(4, 3, 5, requires_grad=True)
    x = leaf * 2
    output, h_n = rnn(x)
    assert {type(result.grad_fn).__name__ for result in (output, h_n)} == {"CudnnRnnBackward0"}
    kept = weakref.ref(x)
    output.sum().backward()
    calls.clear()
    del x
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("frozen", ["weight_hh_l0", "bias_ih_l1", "weight_ih_l0"])
def test_frozen_weights_get_nothing(frozen: str, calls: Calls) -> None:
    rnn = ManualRNN(5, 6, 2)
    rnn.get_parameter(frozen).requires_grad_(False)
    output, _ = rnn(torch.randn(4, 3, 5))
    output.sum().backward(retain_graph=True)
    assert {name for name, p in rnn.named_parameters() if p.grad is None} == {frozen}
    assert calls[-1]["output_mask"] == [False, False, False, True]
    rnn.requires_grad_(False)
    assert not rnn(torch.randn(4, 3, 5))[0].requires_grad


@pytest.mark.parametrize("edited", ["input", "hx", "weight_hh_l0", "output"])
def test_an_edit_in_place_is_noticed(edited: str, calls: Calls) -> None:
    """As with `nn.RNN` on CUDA: cuDNN differentiates by its output."""
    rnn, arguments = ManualRNN(5, 6), {"input": torch.randn(4, 3, 5), "hx": torch.randn(1, 3, 6)}
    output, _ = rnn(**arguments)
    with torch.no_grad():
        (arguments | dict(rnn.named_parameters()) | {"output": output})[edited].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_an_hx_of_any_strides(calls: Calls) -> None:
    builtin, manual = twins(5, 6, 2, **DOUBLE)
    x, hx = torch.randn(4, 3, 5, **DOUBLE), torch.randn(3, 2, 6, **DOUBLE).transpose(0, 1)
    assert error(manual(x, hx)[0], builtin(x, hx)[0]) < 1e-12


@PHI
@pytest.mark.parametrize("sizes", [None, torch.tensor([3, 2, 2])], ids=["padded", "packed"])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_a_network_of_an_operator(
    bias: bool, D: int, sizes: Tensor | None, nonlinearity: str, calls: Calls
) -> None:
    """As a compiled or an exported program calls it: a direction of a layer by cuDNN, unless it is packed and
    reversed."""
    rnn = ManualRNN(5, 6, 2, bidirectional=D == 2, bias=bias, **DOUBLE).requires_grad_(False)
    x, hx = torch.randn((3, 3, 5) if sizes is None else (7, 5), **DOUBLE), torch.randn(2 * D, 3, 6, **DOUBLE)
    given = x, hx, list(rnn.parameters()), sizes, nonlinearity, D == 2, bias, True
    found, expected = (OPS.network.kernel(*given, kernel) for kernel in ("default", "reference"))
    values = [[output, h_n, *states] for output, h_n, states in (found, expected)]
    assert max(map(error, *values)) < 1e-12
    assert len(calls) == 2 * D


def test_a_compiled_training_step(calls: Calls) -> None:
    """Forward by cuDNN; backward by the recurrences, since no operator can hand a reserve over."""
    torch._dynamo.reset()
    builtin, manual = twins(5, 6, 2, **DOUBLE)
    x, hx, _ = batch("padded", {"num_layers": 2}, torch.float64)
    compiled: Any = torch.compile(manual, backend="aot_eager", fullgraph=True)
    compiled.named_parameters = manual.named_parameters
    assert_same(gradients(compiled, x, hx), gradients(builtin, x, hx))
    assert [call["operator"] for call in calls] == ["_cudnn_rnn"] * 2


AROUND: dict[str, Callable[[Any, Tensor], tuple[Tensor, Tensor]]] = {
    "nothing else": lambda rnn, x: rnn(x),
    "checkpoint": lambda rnn, x: checkpoint(rnn, x, use_reentrant=False),
    "reentrant checkpoint": lambda rnn, x: checkpoint(rnn, x, use_reentrant=True),
    "another network's output": lambda rnn, x: rnn(rnn(x[..., [0, 1, 2, 3, 4]])[0][..., :5]),
}


@pytest.mark.parametrize("around", AROUND)
def test_what_stands_around_a_call(around: str, calls: Calls) -> None:
    """With what autograd saves put elsewhere."""
    found = []
    for rnn in twins(5, 6, 2, **DOUBLE):
        x = torch.linspace(-1, 1, 60, **DOUBLE).view(4, 3, 5).requires_grad_()
        with saved_tensors_hooks(lambda x: x.detach().clone(), lambda x: x):
            output, h_n = AROUND[around](rnn, x)
        (output.sin().sum() + h_n.cos().sum()).backward()
        found.append([leaf.grad for leaf in (x, *rnn.parameters())])
    assert max(map(error, *found)) < 1e-12  # type: ignore[arg-type]


def test_threads(calls: Calls) -> None:
    """Each with a graph of its own, over the same weights."""
    rnn, x = ManualRNN(5, 6, **DOUBLE), torch.randn(4, 3, 5, requires_grad=True, **DOUBLE)

    def twice(_: int) -> Tensor:
        first = torch.autograd.grad(rnn(x)[0].sin().sum(), x, create_graph=True)[0]
        return torch.autograd.grad(first.sin().sum(), x)[0]

    expected = twice(0)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, expected) for found in pool.map(twice, range(16)))


def test_weights_as_columns_of_numbers(calls: Calls) -> None:
    """In which shape PyTorch's autocast casts them; every derivative is that of the weights."""
    rnn, x = ManualRNN(5, 6, 2, bidirectional=True, **DOUBLE), torch.randn(4, 3, 5, **DOUBLE)
    hx, flat = torch.randn(4, 3, 6, **DOUBLE), list(rnn.parameters())

    def run(x: Tensor, *flat: Tensor) -> Tensor:
        columns = [w.reshape(-1, 1) for w in flat]
        return cudnn.run_cudnn(x, hx, columns, NetworkOptions(None, "tanh", True, True, "default"))[0]

    assert error(run(x, *flat), rnn(x, hx)[0]) < 1e-12
    assert gradgradcheck(run, (x.requires_grad_(), *flat), fast_mode=True)
