r"""What a user does with memory between forward and backward: numbers replaced, buffers reused, results
resized.

Every case is run by `nn.RNN` too: where it computes gradients ours are the same, where it raises ours raise.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_same, twins
from internals import KernelName
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from manual_rnn import ManualRNN, use_kernel

KERNELS = pytest.mark.parametrize("kernel", ["default", "native", "torch"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
Outcome = dict[str, Tensor] | type[Exception]


def assert_as_nn_rnn(
    run: Callable[[Any], dict[str, Tensor]], dtype: torch.dtype, kernel: KernelName, **options: Any
) -> Outcome:
    """Returns what `nn.RNN` gives."""
    found: list[Outcome] = []
    for rnn in twins(3, 4, dtype=dtype, **options):
        torch.manual_seed(1)
        with use_kernel(kernel if isinstance(rnn, ManualRNN) else "default"):
            try:
                found.append(run(rnn))
            except RuntimeError as error:
                found.append(type(error))
    expected, ours = found
    if isinstance(expected, type) or isinstance(ours, type):
        assert ours == expected
    else:
        assert_same(ours, expected, 1e-12 if dtype == torch.float64 else 2e-5)
    return expected


# -- numbers replaced: derivatives are of the numbers that the forward pass used


def halve(rnn: Any, x: Tensor) -> None:
    for p in rnn.parameters():
        p.data = p.data / 2


def replace_input(rnn: Any, x: Tensor) -> None:
    x.data = torch.ones_like(x)


def cast_and_back(rnn: Any, x: Tensor) -> None:
    dtype = x.dtype
    rnn.to(torch.bfloat16).to(dtype)


def share(rnn: Any, x: Tensor) -> None:
    rnn.share_memory()


def from_vector(rnn: Any, x: Tensor) -> None:
    vector_to_parameters(parameters_to_vector(rnn.parameters()).detach() / 2, rnn.parameters())


def load(rnn: Any, x: Tensor) -> None:
    rnn.load_state_dict({k: v / 2 for k, v in rnn.state_dict().items()}, assign=True)


REPLACE = {f.__name__: f for f in (halve, replace_input, cast_and_back, share, from_vector, load)}


def derivatives(replace: Callable[[Any, Tensor], None], when: str, T: int, rnn: Any) -> dict[str, Tensor]:
    """By input, state and weights, up to the third order, with numbers replaced before one of the orders."""
    dtype = rnn.weight_ih_l0.dtype
    shape = (2, T, 3) if rnn.batch_first else (T, 2, 3)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    hx = torch.randn(2, 2, 4, dtype=dtype, requires_grad=True)
    leaves = {"x": x, "hx": hx, **dict(rnn.named_parameters())}
    output, h_n = rnn(x, hx)
    value = output.sin().sum() + h_n.cos().sum()
    found: dict[str, Tensor] = {}
    for order in (1, 2, 3):
        if str(order) in when:
            replace(rnn, x)
        grads = torch.autograd.grad(value, list(leaves.values()), create_graph=True, allow_unused=True)
        found |= {f"{order} {k}": g.detach() for k, g in zip(leaves, grads, strict=True) if g is not None}
        value = torch.stack([g.sin().sum() for g in grads if g is not None]).sum()
    return found


@KERNELS
@DTYPES
@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("when", ["before 1", "before 2", "before 3", "before 1, 2 and 3"])
@pytest.mark.parametrize("replace", REPLACE)
def test_numbers_replaced(replace: str, when: str, T: int, dtype: torch.dtype, kernel: KernelName) -> None:
    def run(rnn: Any) -> dict[str, Tensor]:
        return derivatives(REPLACE[replace], when, T, rnn)

    expected = assert_as_nn_rnn(run, dtype, kernel, num_layers=2, batch_first=T == 4)
    assert not isinstance(expected, type)
    assert any(g.abs().max() > 0 for g in expected.values())


# -- an input buffer that is filled anew before backward


FORMS: dict[str, Callable[[int, int], Tensor]] = {
    "plain": lambda a, b: torch.randn(a, b, 3),
    "transposed": lambda a, b: torch.randn(b, a, 3).transpose(0, 1),
    "columns": lambda a, b: torch.randn(3, a, b).permute(1, 2, 0),
    "strided": lambda a, b: torch.randn(a, b, 6)[..., ::2],
    "every other": lambda a, b: torch.randn(a, 2 * b, 3)[:, ::2],
    "narrow": lambda a, b: torch.randn(a, b, 5)[..., :3],
}
REUSE: dict[str, Callable[[Tensor, Any], Any]] = {
    "copied to": lambda buffer, memory: buffer.copy_(torch.ones_like(buffer)),
    "resized": lambda buffer, memory: buffer.resize_(0),
    "written by numpy": lambda buffer, memory: memory.__setitem__(..., 7.0),
    "written through data": lambda buffer, memory: buffer.data.copy_(torch.ones_like(buffer)),
}


@KERNELS
@DTYPES
@pytest.mark.parametrize("batch_first", [False, True], ids=["", "batch_first"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reuse", REUSE)
def test_a_buffer_reused(
    reuse: str, form: str, batch_first: bool, dtype: torch.dtype, kernel: KernelName
) -> None:
    raised = 0
    for a, b in ((5, 2), (5, 1), (1, 2), (1, 1)):

        def run(rnn: Any, a: int = a, b: int = b) -> dict[str, Tensor]:
            buffer = FORMS[form](a, b).to(dtype)
            memory = buffer.numpy() if "numpy" in reuse else None  # which keeps a storage from being resized
            output, h_n = rnn(buffer)
            REUSE[reuse](buffer, memory)
            (output.sin().sum() + h_n.cos().sum()).backward()
            return {k: p.grad for k, p in rnn.named_parameters()}

        raised += isinstance(assert_as_nn_rnn(run, dtype, kernel, batch_first=batch_first), type)
    copies = batch_first == (form != "transposed") and form not in ("strided", "columns", "every other")
    if copies or reuse.startswith("written"):
        assert raised < 4  # so gradients were compared


def test_a_buffer_that_is_copied_gives_its_own_gradients() -> None:
    """The control: these aren't the gradients of what the buffer holds afterwards."""
    rnn: Any = ManualRNN(3, 4, batch_first=True)
    buffer = torch.randn(2, 5, 3)
    expected = torch.autograd.grad(rnn(buffer.clone())[0].sum(), rnn.weight_ih_l0)[0]
    output, memory = rnn(buffer)[0], buffer.numpy()
    memory[...] = 7.0
    found = torch.autograd.grad(output.sum(), rnn.weight_ih_l0)[0]
    assert torch.equal(found, expected)
    assert not torch.allclose(torch.autograd.grad(rnn(buffer)[0].sum(), rnn.weight_ih_l0)[0], expected)


# -- a result's storage resized


def offload(result: Tensor) -> None:
    kept, size = result.detach().clone(), result.untyped_storage().nbytes()
    result.untyped_storage().resize_(0)
    result.untyped_storage().resize_(size)
    result.data.copy_(kept)


RESIZE: dict[str, Callable[[Tensor], Any]] = {
    "offloaded and back": offload,
    "grown": lambda result: result.detach().resize_(20, 40),
    "shrunk": lambda result: result.detach().resize_(1, 1),
    "written to by cat": lambda result: torch.cat([torch.ones(50, 40).to(result)] * 2, out=result.detach()),
    "zeroed": lambda result: result.detach().zero_(),
}


@KERNELS
@DTYPES
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("recorded", [True, False], ids=["", "no_grad"])
@pytest.mark.parametrize("which", [0, 1], ids=["output", "h_n"])
@pytest.mark.parametrize("resize", RESIZE)
def test_a_result_resized(
    resize: str, which: int, recorded: bool, dtype: torch.dtype, kernel: KernelName
) -> None:
    """Whether a gradient comes after it, or the graph is gone by then."""
    for T, layers in ((5, 1), (5, 2), (1, 1)):

        def run(rnn: nn.Module, T: int = T) -> dict[str, Tensor]:
            x = torch.randn(T, 2, 3, dtype=dtype, requires_grad=True)
            with torch.set_grad_enabled(recorded):
                results = rnn(x)
            if recorded:
                value = results[1 - which].sin().sum()
            RESIZE[resize](results[which])
            found = {"other": results[1 - which].detach()}
            if resize != "shrunk":
                found["size"] = torch.tensor(results[which].untyped_storage().nbytes())
            if recorded:
                names = ["x", *(k for k, _ in rnn.named_parameters())]
                grads = torch.autograd.grad(value, [x, *rnn.parameters()], allow_unused=True)
                found |= {k: g for k, g in zip(names, grads, strict=True) if g is not None}
            return found

        assert_result_as_nn_rnn(run, dtype, kernel, num_layers=layers)


def assert_result_as_nn_rnn(run: Any, dtype: torch.dtype, kernel: KernelName, **options: Any) -> None:
    """Ours work where `nn.RNN` works. Where it raises, for it has saved the result, ours may keep a copy."""
    builtin, manual = twins(3, 4, dtype=dtype, **options)
    torch.manual_seed(1)
    try:
        expected = run(builtin)
    except RuntimeError:
        return
    torch.manual_seed(1)
    with use_kernel(kernel):
        found = run(manual)
    assert_same(found, expected, 1e-12 if dtype == torch.float64 else 2e-5)
