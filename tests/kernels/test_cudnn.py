r"""cuDNN's network and all around it, with its two operators computed by ATen on a CPU (`standin.py`)."""

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import PHI, assert_same, error, gradients, packed, twins
from internals import OPS, cudnn, kernels, vendor
from standin import cudnn_on_a_cpu
from torch import Tensor, nn
from torch.autograd import gradgradcheck
from torch.nn.utils.rnn import PackedSequence

from manual_rnn import ManualRNN, use_kernel

Calls = list[dict[str, Any]]
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


@pytest.fixture
def calls() -> Iterator[Calls]:
    with cudnn_on_a_cpu() as calls:
        yield calls


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


@pytest.mark.parametrize("kernel", ["default", "vendor"])
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


def test_memory_that_ends_too_early(calls: Calls) -> None:
    rnn = ManualRNN(5, 6)
    rnn.get_parameter("weight_hh_l0").untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="out of bounds"):
        rnn(torch.randn(4, 3, 5))
    assert not calls


def test_an_hx_of_any_strides(calls: Calls) -> None:
    builtin, manual = twins(5, 6, 2, **DOUBLE)
    x, hx = torch.randn(4, 3, 5, **DOUBLE), torch.randn(3, 2, 6, **DOUBLE).transpose(0, 1)
    assert error(manual(x, hx)[0], builtin(x, hx)[0]) < 1e-12


def missing(rnn: ManualRNN) -> None:
    del rnn.weight_hh_l0


def transposed(rnn: ManualRNN) -> None:
    """As many numbers as there should be."""
    rnn.weight_ih_l0 = nn.Parameter(torch.zeros(5, 6))


def doubled(rnn: ManualRNN) -> None:
    rnn.bias_hh_l0 = nn.Parameter(torch.zeros(6, **DOUBLE))


def dropping(rnn: ManualRNN) -> None:
    rnn.dropout, rnn.num_layers = 0.5, 2


# What isn't as the constructor leaves it, or as the call should be: the checks of the long way name it.
ODD: dict[str, Callable[[ManualRNN], Any]] = {
    "a missing weight": missing,
    "a weight of another shape": transposed,
    "a weight of another type": doubled,
    "a flag that is none": lambda rnn: setattr(rnn, "bias", 1),
    "a mode that is none": lambda rnn: setattr(rnn, "mode", "RNN_SIN"),
    "dropout": dropping,
    "a projection": lambda rnn: setattr(rnn, "proj_size", 2),
    "assigned weights": lambda rnn: setattr(rnn, "_flat_weights", [w.detach() for w in rnn.parameters()]),
    "a deleted attribute": lambda rnn: delattr(rnn, "batch_first"),
}
WRONG: dict[str, tuple[Any, ...]] = {
    "rank": (torch.zeros(3, 5),),
    "features": (torch.zeros(4, 3, 4),),
    "dtype": (torch.zeros(4, 3, 5, dtype=torch.float64),),
    "hx": (torch.zeros(4, 3, 5), torch.zeros(1, 2, 6)),
    "a subclass": (torch.zeros(4, 3, 5).as_subclass(type("Own", (Tensor,), {})),),
    "a subclass as hx": (torch.zeros(4, 3, 5), torch.zeros(1, 3, 6).as_subclass(type("Own", (Tensor,), {}))),
    "batch_sizes that grow": (torch.zeros(3, 5), None, torch.tensor([1, 2])),
    "batch_sizes of another sum": (torch.zeros(3, 5), None, torch.tensor([2, 2])),
    "batch_sizes of 0": (torch.zeros(3, 5), None, torch.tensor([3, 0])),
    "no batch_sizes": (torch.zeros(0, 5), None, torch.tensor([], dtype=torch.int64)),
    "batch_sizes of another type": (torch.zeros(3, 5), None, torch.tensor([2, 1], dtype=torch.int32)),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_module_goes_the_long_way(odd: str, calls: Calls) -> None:
    rnn, x = ManualRNN(5, 6), torch.randn(4, 3, 5)
    assert cudnn.run_on_cuda(vars(rnn), x, None) is not None
    ODD[odd](rnn)
    assert cudnn.run_on_cuda(vars(rnn), x, None) is None


@pytest.mark.parametrize("wrong", WRONG)
def test_an_odd_call_goes_the_long_way(wrong: str, calls: Calls) -> None:
    x, hx, sizes = (*WRONG[wrong], None, None)[:3]
    assert cudnn.run_on_cuda(vars(ManualRNN(5, 6)), x, hx, sizes) is None
    assert not calls


def test_a_packed_batch_that_is_to_be_padded(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "padding_pays", lambda *_: True)
    builtin, manual = twins(5, 6, 2, bidirectional=True, **DOUBLE)
    x = torch.randn(4, 3, 5, requires_grad=True, **DOUBLE)
    pack = lambda input: packed(input, [4, 2, 2])  # noqa: E731
    assert_same(gradients(manual, x, None, pack), gradients(builtin, x, None, pack))
    assert {len(call["batch_sizes"]) for call in calls} == {0}


@PHI
@pytest.mark.parametrize("sizes", [None, torch.tensor([3, 2, 2])], ids=["padded", "packed"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_of_an_operator(
    bias: bool, reverse: bool, sizes: Tensor | None, nonlinearity: str, calls: Calls
) -> None:
    """As a compiled or an exported program calls it: by cuDNN, unless it is packed and reversed."""
    shapes = [(3, 3, 5) if sizes is None else (7, 5), (3, 6), (6, 5), (6, 6), *([(6,)] * 2 if bias else [])]
    drawn: list[Any] = [torch.randn(shape, **DOUBLE) for shape in shapes]
    tensors, how = drawn if bias else [*drawn, None, None], (sizes, nonlinearity, reverse)
    found, expected = (OPS.layer(*tensors, *how, kernel) for kernel in ("default", "reference"))
    assert max(map(error, found, expected)) < 1e-12
    assert len(calls) == (0 if reverse and sizes is not None else 1)


def test_a_compiled_training_step(calls: Calls) -> None:
    """Forward by cuDNN; backward by the recurrences, since no operator can hand a reserve over."""
    builtin, manual = twins(5, 6, 2, **DOUBLE)
    x, hx, _ = batch("padded", {"num_layers": 2}, torch.float64)
    compiled: Any = torch.compile(manual, backend="aot_eager", fullgraph=True)
    compiled.named_parameters = manual.named_parameters
    assert_same(gradients(compiled, x, hx), gradients(builtin, x, hx))
    assert [call["operator"] for call in calls] == ["_cudnn_rnn"] * 2


@pytest.fixture
def _autocast_on_cuda() -> Iterator[None]:
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", False)


@pytest.mark.usefixtures("_autocast_on_cuda")
@pytest.mark.parametrize(("dtype", "makes"), [(torch.float32, False), (torch.float64, True)], ids=str)
def test_under_autocast_pytorch_makes_the_buffer(dtype: torch.dtype, makes: bool, calls: Calls) -> None:
    """In float16, of what it casts."""
    flat = [torch.zeros(shape, dtype=dtype) for shape in ((6, 5), (6, 6))]
    x, hx = torch.zeros(4, 3, 5, dtype=dtype), torch.zeros(1, 3, 6, dtype=dtype)
    try:
        vendor.cudnn(x, hx, flat, False, [], "tanh", False, False, False)
    except AttributeError:  # the stand-in has nothing to read
        assert not makes
    assert (calls[0]["weight_buf"] is not None) == makes


def laid_out(rnn: Any) -> bool:
    """Whether its weights are views of one memory."""
    return len({w.untyped_storage().data_ptr() for w in rnn.parameters()}) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_in_cudnns_order_are_not_copied(dtype: torch.dtype, calls: Calls) -> None:
    """As those of an `nn.RNN` that came from CUDA; read at every call where they are by then."""
    builtin, manual = twins(5, 6, 2, bidirectional=True, dtype=dtype)
    x = torch.randn(4, 3, 5, dtype=dtype, requires_grad=True)
    before = gradients(manual, x)
    weights = list(map(id, manual.parameters()))
    manual.flatten_parameters()
    assert laid_out(manual)
    assert weights == list(map(id, manual.parameters()))
    assert_same(gradients(manual, x), before, bound=0)
    own = manual.get_parameter("weight_ih_l0").data_ptr()
    assert [call["weight_buf"].data_ptr() == own for call in calls] == [False, False, True, True]
    manual.flatten_parameters()
    assert manual.get_parameter("weight_ih_l0").data_ptr() == own
    for rnn in (builtin, manual):
        scaled, moved = map(rnn.get_parameter, ("weight_hh_l1", "bias_ih_l0"))
        scaled.data.mul_(2)  # in its place
        moved.data = moved.data + 1  # elsewhere
    assert_same(gradients(manual, x), gradients(builtin, x), 1e-12 if dtype == torch.float64 else 2e-6)
    assert calls[-1]["weight_buf"].data_ptr() != own


def tie(rnn: ManualRNN) -> None:
    rnn.bias_hh_l0 = rnn.bias_ih_l0


def compute(rnn: ManualRNN) -> None:
    nn.utils.parametrize.register_parametrization(rnn, "weight_hh_l0", nn.Tanh())


@pytest.mark.parametrize("change", [tie, compute, doubled, missing], ids=lambda change: change.__name__)
def test_odd_weights_stay_where_they_are(change: Callable[[ManualRNN], None], calls: Calls) -> None:
    rnn = ManualRNN(5, 6)
    change(rnn)
    before = [w.data_ptr() for w in rnn.parameters()]
    rnn.flatten_parameters()
    assert before == [w.data_ptr() for w in rnn.parameters()]


def test_neighbours_in_memory_are_no_block(calls: Calls) -> None:
    """Addresses alone don't tell: each of these is the end of its own storage."""
    rnn = ManualRNN(5, 6)
    rnn.flatten_parameters()
    rnn.get_parameter("weight_ih_l0").untyped_storage().resize_(4 * 30)
    with pytest.raises(RuntimeError, match="out of bounds"):
        rnn(torch.randn(4, 3, 5))
    assert vendor._block(list(rnn.parameters())) is None
