r"""What code around an `nn.RNN` relies on besides its numbers: names, attributes, memory, copies."""

import copy
import inspect
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from typing import Any

import pytest
import torch
from helpers import assert_same, error, gradients, kernels_for, packed, twins
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence

from manual_rnn import ManualRNN, use_kernel

OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3, "nonlinearity": "relu"},
    {"bias": False, "batch_first": True},
    {"num_layers": 2, "dropout": 0.25, "bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "bias": False, "dtype": torch.float64},
]
DOCUMENTED: dict[str, Any] = {
    "input_size": inspect.Parameter.empty,
    "hidden_size": inspect.Parameter.empty,
    "num_layers": 1,
    "nonlinearity": "tanh",
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
}
EVERY = pytest.mark.parametrize("options", OPTIONS, ids=str)
KERNELS = pytest.mark.parametrize("kernel", kernels_for(torch.float32))
PHI = pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])


def same_results(found: Any, expected: Any, bound: float = 2e-6) -> None:
    names = ("output", "h_n")
    assert_same(dict(zip(names, found, strict=True)), dict(zip(names, expected, strict=True)), bound)


# Construction


def test_the_signature_is_the_documented_one() -> None:
    parameters = inspect.signature(ManualRNN).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == DOCUMENTED | {
        "device": None,
        "dtype": None,
    }
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    texts = [str(p.replace(annotation=p.empty)) for p in parameters.values()]
    assert str(nn.RNN.__doc__).startswith(f"__init__({','.join(texts)})")


def test_positional_arguments_come_in_the_documented_order() -> None:
    arguments = (4, 6, 2, "relu", False, True, 0.3, True)
    builtin, manual = twins(*arguments)
    assert repr(manual) == repr(builtin).replace("RNN", "ManualRNN")
    assert_same(manual.state_dict(), builtin.state_dict(), bound=0)
    full = ManualRNN(*arguments, "cpu", torch.float64)  # type: ignore[arg-type]
    assert full.weight_ih_l0.dtype == torch.float64
    assert repr(full) == repr(manual)


def test_repr() -> None:
    values: dict[str, tuple[Any, ...]] = {
        "num_layers": (1, 2),
        "nonlinearity": ("tanh", "relu"),
        "bias": (True, False),
        "batch_first": (False, True),
        "dropout": (0.0, 0.5),
        "bidirectional": (False, True),
    }
    for choice in product(*values.values()):
        options: dict[str, Any] = dict(zip(values, choice, strict=True))
        if options["dropout"] and options["num_layers"] == 1:
            continue
        assert repr(ManualRNN(4, 6, **options)) == f"Manual{nn.RNN(4, 6, **options)!r}"


@EVERY
def test_parameters_have_the_same_names_order_and_initial_values(options: dict[str, Any]) -> None:
    builtin, manual = twins(4, 6, **options)
    assert list(manual.state_dict()) == list(builtin.state_dict())
    assert [name for name, _ in manual.named_parameters()] == [name for name, _ in builtin.named_parameters()]
    assert_same(manual.state_dict(), builtin.state_dict(), bound=0)


def test_construction_leaves_the_generator_in_the_same_state() -> None:
    drawn = []
    for kind in (nn.RNN, ManualRNN):
        torch.manual_seed(0)
        kind(4, 6, 2, bidirectional=True)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


@EVERY
def test_reset_parameters_draws_the_same_values(options: dict[str, Any]) -> None:
    builtin, manual = twins(4, 6, **options)
    before = copy.deepcopy(manual.state_dict())
    for rnn in (builtin, manual):
        torch.manual_seed(7)
        assert rnn.reset_parameters() is None
    assert_same(manual.state_dict(), builtin.state_dict(), bound=0)
    assert not torch.equal(before["weight_ih_l0"], manual.state_dict()["weight_ih_l0"])


# Attributes and methods


@EVERY
def test_attributes(options: dict[str, Any]) -> None:
    builtin, manual = twins(4, 6, **options)
    names = ["_all_weights", "_flat_weights_names", "mode", "proj_size", "training", *DOCUMENTED]
    assert {name: getattr(manual, name) for name in names} == {name: getattr(builtin, name) for name in names}


@EVERY
def test_all_weights_are_the_parameters_themselves(options: dict[str, Any]) -> None:
    for rnn in twins(4, 6, **options):
        parameters = dict(rnn.named_parameters())
        assert [[id(weight) for weight in group] for group in rnn.all_weights] == [
            [id(parameters[name]) for name in names] for names in rnn._all_weights
        ]


def test_flat_weights_are_live() -> None:
    for rnn in twins(4, 6, 2):
        new = nn.Parameter(torch.zeros(6, 6))
        rnn.weight_hh_l1 = new
        assert rnn._flat_weights[rnn._flat_weights_names.index("weight_hh_l1")] is new
        assert [id(weight) for weight in rnn._flat_weights] == [id(weight) for weight in rnn.parameters()]


def test_flatten_parameters_does_nothing() -> None:
    rnn = ManualRNN(4, 6, 2)
    before = {name: (weight.data_ptr(), weight.clone()) for name, weight in rnn.named_parameters()}
    rnn.flatten_parameters()
    for name, weight in rnn.named_parameters():
        pointer, value = before[name]
        assert weight.data_ptr() == pointer
        assert torch.equal(weight, value)


def test_checking_methods_agree() -> None:
    builtin, manual = twins(4, 6, 2, bidirectional=True, batch_first=True)
    input, batch_sizes = torch.randn(3, 5, 4), torch.tensor([3, 2])
    assert manual.get_expected_hidden_size(input, None) == builtin.get_expected_hidden_size(input, None)
    rows = torch.randn(5, 4)
    expected = builtin.get_expected_hidden_size(rows, batch_sizes)
    assert manual.get_expected_hidden_size(rows, batch_sizes) == expected
    hx, order = torch.randn(4, 3, 6), torch.tensor([2, 0, 1])
    assert torch.equal(manual.permute_hidden(hx, order), builtin.permute_hidden(hx, order))
    assert manual.permute_hidden(hx, None) is hx
    for rnn in (builtin, manual):
        rnn.check_input(input, None)
        rnn.check_forward_args(rows, hx, batch_sizes)
        rnn.check_hidden_size(hx, (4, 3, 6))
        with pytest.raises(RuntimeError, match=r"^got \[4, 3, 6\] for \(4, 2, 6\)$"):
            rnn.check_hidden_size(hx, (4, 2, 6), "got {1} for {0}")
        with pytest.raises(RuntimeError, match=r"^input must have 2 dimensions, got 3$"):
            rnn.check_input(input, batch_sizes)
        with pytest.raises(RuntimeError, match=r"^Expected hidden size \(4, 2, 6\), got \[4, 3, 6\]$"):
            rnn.check_forward_args(input[:2], hx, None)


CHANGES: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"dropout": 0.9}, (5, 3, 4)),
    ({"dropout": 0}, (5, 3, 4)),
    ({"training": False}, (5, 3, 4)),
    ({"batch_first": True}, (3, 5, 4)),
    ({"mode": "RNN_RELU"}, (5, 3, 4)),
    ({"nonlinearity": "relu"}, (5, 3, 4)),  # only described by it; `mode` decides
]


@KERNELS
@pytest.mark.parametrize(("change", "shape"), CHANGES, ids=str)
def test_attributes_are_read_at_every_call(
    change: dict[str, Any], shape: tuple[int, ...], kernel: str
) -> None:
    builtin, manual = twins(4, 6, 2, dropout=0.3)
    input = torch.randn(shape, requires_grad=True)
    with use_kernel(kernel):
        manual(torch.randn(5, 3, 4))
        for rnn in (builtin, manual):
            for name, value in change.items():
                setattr(rnn, name, value)
        found = gradients(manual, input)
    assert_same(found, gradients(builtin, input), 2e-6)


def test_dropout_takes_as_many_random_numbers() -> None:
    drawn = []
    for rnn in twins(4, 6, 3, dropout=0.3, bidirectional=True, batch_first=True):
        torch.manual_seed(1)
        rnn(torch.randn(3, 5, 4))
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


@KERNELS
def test_weights_are_read_at_every_call(kernel: str) -> None:
    """However they were changed, `.data` included."""
    builtin, manual = twins(4, 6)
    input = torch.randn(5, 3, 4)
    with use_kernel(kernel):
        before = manual(input)[0]
        for rnn in (builtin, manual):
            weight: Any = rnn.weight_hh_l0
            weight.data.mul_(2)
        same_results(manual(input), builtin(input))
        assert not torch.equal(manual(input)[0], before)
        for rnn in (builtin, manual):
            rnn.weight_hh_l0.data = torch.eye(6)
            rnn.bias_ih_l0 = nn.Parameter(torch.ones(6))
        same_results(manual(input), builtin(input))


# Memory


LAYOUTS: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "padded": ({}, lambda: torch.randn(5, 3, 4)),
    "batch_first": ({"batch_first": True}, lambda: torch.randn(3, 5, 4)),
    "unbatched": ({}, lambda: torch.randn(5, 4)),
    "unbatched, batch_first": ({"batch_first": True}, lambda: torch.randn(5, 4)),
    "packed": ({}, lambda: packed(torch.randn(5, 3, 4), [5, 4, 2])),
    "a transposed input": ({}, lambda: torch.randn(3, 5, 4).transpose(0, 1)),
    "a transposed input, batch_first": ({"batch_first": True}, lambda: torch.randn(5, 3, 4).transpose(0, 1)),
    "one sequence": ({"batch_first": True}, lambda: torch.randn(1, 5, 4)),
    "one step": ({"batch_first": True}, lambda: torch.randn(3, 1, 4)),
}


@KERNELS
@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_are_those_of_builtin(layout: str, num_layers: int, bidirectional: bool, kernel: str) -> None:
    options, draw = LAYOUTS[layout]
    builtin, manual = twins(4, 6, num_layers, bidirectional=bidirectional, **options)
    input = draw()
    with use_kernel(kernel):
        found = manual(input)
    for left, right in zip(found, builtin(input), strict=True):
        left, right = (x.data if isinstance(x, PackedSequence) else x for x in (left, right))
        assert left.shape == right.shape
        assert left.stride() == right.stride()


def test_a_packed_output_keeps_the_order() -> None:
    """Of the rows in the packed output, and of the sequences in `h_n`."""
    builtin, manual = twins(4, 6, 2, bidirectional=True)
    input = packed(torch.randn(5, 3, 4), [2, 5, 3])
    (found, h_n), (expected, expected_h_n) = manual(input), builtin(input)
    assert isinstance(found, PackedSequence)
    same_results((found.data, h_n), (expected.data, expected_h_n))
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@KERNELS
@EVERY
def test_h_n_is_memory_of_its_own(options: dict[str, Any], kernel: str) -> None:
    rnn = ManualRNN(4, 6, **options)
    with use_kernel(kernel) if options.get("dtype") is None else use_kernel("default"):
        output, h_n = rnn(torch.randn(5, 3, 4, dtype=options.get("dtype")))
    before = output.detach().clone()
    assert output.untyped_storage().data_ptr() != h_n.untyped_storage().data_ptr()
    h_n.detach_().zero_()
    assert torch.equal(output, before)
    assert not h_n.requires_grad
    assert output.requires_grad


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}], ids=str)
def test_output_can_be_detached_in_place(options: dict[str, Any]) -> None:
    output, h_n = ManualRNN(4, 6, **options)(torch.randn(5, 3, 4))
    output.detach_()
    h_n.sum().backward()


@KERNELS
@PHI
@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True}, {"num_layers": 2, "bidirectional": True}], ids=str
)
def test_editing_the_output_in_place_is_noticed_or_survives(
    options: dict[str, Any], nonlinearity: str, kernel: str
) -> None:
    """A fused kernel differentiates by its output, and so must notice; `nn.RNN` on a GPU does."""
    builtin, manual = twins(4, 6, nonlinearity=nonlinearity, **options)
    input = torch.randn(5, 3, 4, requires_grad=True)

    def run(rnn: nn.Module) -> list[Tensor]:
        output, h_n = rnn(input)
        output.mul_(2)
        return list(torch.autograd.grad(output.sum() + h_n.square().sum(), [input, *rnn.parameters()]))

    expected = run(builtin)
    fused_to_the_end = kernel != "reference" and not options.get("bidirectional")
    notices = pytest.raises(RuntimeError, match="modified by an inplace operation")
    with use_kernel(kernel), notices if fused_to_the_end else nullcontext():
        assert max(map(error, run(manual), expected)) < 2e-6


@KERNELS
def test_editing_h_n_in_place_survives(kernel: str) -> None:
    builtin, manual = twins(4, 6)
    input = torch.randn(5, 3, 4, requires_grad=True)
    found = []
    for rnn in (builtin, manual):
        with use_kernel(kernel):
            output, h_n = rnn(input)
        h_n.mul_(3)
        found.append(torch.autograd.grad(output.sum() + h_n.sum(), [input, *rnn.parameters()]))
    assert max(map(error, *found)) < 2e-6


@KERNELS
@pytest.mark.parametrize("edited", ["input", "hx", "weight_hh_l0"])
def test_editing_an_argument_before_backward_raises(edited: str, kernel: str) -> None:
    for rnn in twins(4, 6):
        arguments = {"input": torch.randn(5, 3, 4), "hx": torch.randn(1, 3, 6)}
        with use_kernel(kernel):
            output, _ = rnn(**arguments)
        with torch.no_grad():
            (arguments | dict(rnn.named_parameters()))[edited].zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


@KERNELS
def test_backward_twice(kernel: str) -> None:
    """With `retain_graph` the same gradient again; without, torch's own error."""
    rnn, input = ManualRNN(4, 6, 2), torch.randn(5, 3, 4, requires_grad=True)
    with use_kernel(kernel):
        output, _ = rnn(input)
    first = torch.autograd.grad(output.sum(), input, retain_graph=True)
    second = torch.autograd.grad(output.sum(), input)
    assert torch.equal(first[0], second[0])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(output.sum(), input)


# Numbers at the edge


@PHI
@KERNELS
def test_is_grads_batched(nonlinearity: str, kernel: str) -> None:
    builtin, manual = twins(4, 6, 2, nonlinearity, bidirectional=True)
    input = torch.randn(5, 3, 4, requires_grad=True)
    cotangents = torch.randn(7, 5, 3, 12)
    found = []
    for rnn in (builtin, manual):
        with use_kernel(kernel):
            output, _ = rnn(input)
        found.append(
            torch.autograd.grad(output, [input, *rnn.parameters()], cotangents, is_grads_batched=True)
        )
    assert max(map(error, *found)) < 2e-6


@KERNELS
@pytest.mark.parametrize("bias", [0.0, -0.0])
def test_the_slope_of_relu_at_zero_is_zero(bias: float, kernel: str) -> None:
    builtin, manual = twins(4, 6, nonlinearity="relu")
    for rnn in (builtin, manual):
        for name, weight in rnn.named_parameters():
            weight.data.fill_(bias if name.startswith("bias") else 1.0)
    input = torch.zeros(5, 3, 4, requires_grad=True)
    with use_kernel(kernel):
        found = gradients(manual, input)
    assert_same(found, gradients(builtin, input))
    assert not any(found[name].any() for name in ("output", "input", "weight_hh_l0", "bias_ih_l0"))


@PHI
@KERNELS
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e30, 1e-42])
def test_extreme_values_spread_alike(value: float, reverse: bool, nonlinearity: str, kernel: str) -> None:
    """NaN and infinity reach the states and gradients that they reach in nn.RNN, and no others."""
    builtin, manual = twins(4, 6, nonlinearity=nonlinearity, bidirectional=reverse)
    input = torch.randn(7, 9, 4)
    input[3, 1, 2] = value
    input.requires_grad_()
    with use_kernel(kernel):
        found = gradients(manual, input)
    for name, expected in gradients(builtin, input).items():
        torch.testing.assert_close(found[name], expected, equal_nan=True, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("kernel", ["default", "reference"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_tanh(dtype: torch.dtype, kernel: str) -> None:
    builtin, manual = twins(4, 6, 2, bidirectional=True, dtype=dtype)
    input = torch.randn(5, 3, 4, dtype=dtype, requires_grad=True)
    hx = torch.randn(4, 3, 6, dtype=dtype, requires_grad=True)
    with use_kernel(kernel):
        found = gradients(manual, input, hx)
    assert_same(found, gradients(builtin, input, hx), bound=0)


def test_complex_relu_raises_as_in_builtin() -> None:
    for rnn in twins(4, 6, nonlinearity="relu", dtype=torch.complex64):
        with pytest.raises(RuntimeError, match="clamp is not supported for complex types"):
            rnn(torch.randn(5, 3, 4, dtype=torch.complex64))


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weights", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_autocast(given: torch.dtype, weights: torch.dtype, lower: torch.dtype) -> None:
    """The dtype of the result, or the type of the error; and gradients in the weights' own dtype."""
    found: list[Any] = []
    for rnn in twins(4, 6, 2, bidirectional=True, dtype=weights):
        input = torch.randn(5, 3, 4, dtype=torch.float32).to(given).requires_grad_()
        try:
            with torch.autocast("cpu", dtype=lower):
                output, h_n = rnn(input)
        except RuntimeError as raised:
            found.append(type(raised))
            continue
        (output.sum() + h_n.sum()).backward()
        assert input.grad is not None
        found.append([x.dtype for x in (output, h_n, input.grad, *(p.grad for p in rnn.parameters()))])
    assert found[0] == found[1]
    lowered = torch.float64 if given == weights == torch.float64 else lower
    assert found[1] is RuntimeError or found[1][:2] == [lowered, lowered]


def test_autocast_is_as_accurate_as_in_builtin() -> None:
    builtin, manual = twins(4, 32, 2)
    input = torch.randn(9, 5, 4)
    exact = copy.deepcopy(builtin).double()(input.double())[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = error(manual(input)[0], exact), error(builtin(input)[0], exact)
    assert 0 < ours <= 2 * theirs


def test_autocast_switched_off_inside() -> None:
    rnn, input = ManualRNN(4, 6), torch.randn(5, 3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert rnn(input)[0].dtype == torch.float32


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@KERNELS
def test_without_gradients(mode: Callable[[], Any], kernel: str) -> None:
    builtin, manual = twins(4, 6, 2, bidirectional=True)
    input = torch.randn(5, 3, 4)
    with mode(), use_kernel(kernel):
        found, expected = manual(input), builtin(input)
    same_results(found, expected)
    assert [x.requires_grad for x in found] == [x.requires_grad for x in expected] == [False, False]
    assert [x.is_inference() for x in found] == [x.is_inference() for x in expected]


def test_the_default_dtype_is_followed() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        builtin, manual = twins(4, 6)
        input = torch.randn(5, 3, 4)
    finally:
        torch.set_default_dtype(torch.float32)
    same_results(manual(input), builtin(input), 1e-12)


# Copies and moves


def saved(rnn: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(rnn, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda rnn: pickle.loads(pickle.dumps(rnn)),
    "torch.save": saved,
    "share_memory": lambda rnn: copy.deepcopy(rnn).share_memory(),
    "to_empty": lambda rnn: loaded(copy.deepcopy(rnn).to("meta").to_empty(device="cpu"), rnn),
}


def loaded(rnn: nn.Module, source: nn.Module) -> nn.Module:
    rnn.load_state_dict(source.state_dict())
    return rnn


@pytest.mark.parametrize("after_a_forward", [False, True])
@pytest.mark.parametrize("name", COPIES)
@EVERY
def test_copies_run_and_train_alike(options: dict[str, Any], name: str, after_a_forward: bool) -> None:
    rnn, dtype = ManualRNN(4, 6, **options), options.get("dtype")
    input = torch.randn(5, 3, 4, dtype=dtype, requires_grad=True)
    if after_a_forward:
        rnn(input)
    twin = COPIES[name](rnn)
    assert repr(twin) == repr(rnn)
    assert vars(twin).keys() == vars(rnn).keys()
    assert_same(gradients(twin, input), gradients(rnn, input), bound=0)


@pytest.mark.parametrize("name", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_apart(name: str) -> None:
    rnn, input = ManualRNN(4, 6), torch.randn(5, 3, 4)
    twin: Any = COPIES[name](rnn)
    before = rnn(input)[0]
    twin.weight_hh_l0.data.zero_()
    twin.bias_ih_l0 = nn.Parameter(torch.ones(6))
    assert torch.equal(rnn(input)[0], before)
    assert not torch.equal(twin(input)[0], before)


def test_conversion_between_dtypes() -> None:
    builtin, manual = twins(4, 6, 2, bidirectional=True)
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        input = torch.randn(5, 3, 4, dtype=dtype)
        builtin.to(dtype)
        manual.to(dtype)
        found, expected = manual(input), builtin(input)
        assert found[0].dtype == expected[0].dtype == dtype
        same_results(found, expected, 4 * torch.finfo(dtype).eps)


def test_meta() -> None:
    builtin, manual = twins(4, 6, 2, bidirectional=True, batch_first=True, device="meta")
    input = torch.randn(3, 5, 4, device="meta")
    for left, right in zip(manual(input), builtin(input), strict=True):
        assert left.is_meta
        assert (left.shape, left.stride(), left.dtype) == (right.shape, right.stride(), right.dtype)


def test_meta_then_to_empty_then_reset() -> None:
    torch.manual_seed(3)
    expected = ManualRNN(4, 6, 2)
    rnn = ManualRNN(4, 6, 2, device="meta").to_empty(device="cpu")
    torch.manual_seed(3)
    rnn.reset_parameters()
    input = torch.randn(5, 3, 4)
    same_results(rnn(input), expected(input), 0)


def test_shared_memory_is_shared() -> None:
    rnn = ManualRNN(4, 6).share_memory()
    assert all(weight.is_shared() for weight in rnn.parameters())


def test_a_replica_of_data_parallel_runs_on_the_weights_it_is_given() -> None:
    """As `torch.nn.parallel.replicate` does it: a shallow copy, plain tensors for parameters."""
    rnn, input = ManualRNN(4, 6, 2), torch.randn(5, 3, 4)
    replica: Any = rnn._replicate_for_data_parallel()
    replica._former_parameters = {}
    for name, weight in rnn.named_parameters():
        copied = weight * 2
        setattr(replica, name, copied)
        replica._former_parameters[name] = copied
    output, _ = replica(input)
    before = rnn(input)[0]
    assert not torch.equal(output, before)
    output.sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in rnn.parameters())
    doubled = ManualRNN(4, 6, 2)
    doubled.load_state_dict({name: weight * 2 for name, weight in rnn.state_dict().items()})
    assert torch.equal(doubled(input)[0], output)


@contextmanager
def swapped_parameters() -> Iterator[None]:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_loading_and_converting_with_swapped_parameters() -> None:
    """`nn.RNN` itself can't: its weak references to the weights stand in the way."""
    source, rnn = ManualRNN(4, 6), ManualRNN(4, 6)
    input = torch.randn(5, 3, 4)
    rnn(input)
    weights = list(rnn.parameters())
    with swapped_parameters():
        rnn.load_state_dict(source.state_dict())
        same_results(rnn(input), source(input), 0)
        rnn.double()
        same_results(rnn(input.double()), source.double()(input.double()), 0)
        with pytest.raises(RuntimeError, match="weakref"):
            nn.RNN(4, 6).load_state_dict(source.float().state_dict())
    assert [id(weight) for weight in rnn.parameters()] == [id(weight) for weight in weights]


@pytest.mark.parametrize("parametrize", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_deepcopy_of_a_parametrized_module_after_a_forward(parametrize: Callable[..., Any]) -> None:
    """`nn.RNN` itself can't: it holds on to the weight computed, which isn't a leaf."""
    rnn, input = ManualRNN(4, 6), torch.randn(5, 3, 4, requires_grad=True)
    parametrize(rnn, "weight_hh_l0")
    rnn(input)
    twin = copy.deepcopy(rnn)
    assert_same(gradients(twin, input), gradients(rnn, input), bound=0)
    builtin = nn.RNN(4, 6)
    parametrize(builtin, "weight_hh_l0")
    builtin(input)
    with pytest.raises(RuntimeError, match="deepcopy protocol"):
        copy.deepcopy(builtin)
