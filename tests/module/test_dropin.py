r"""What code around an `nn.RNN` relies on besides its numbers: arguments, names, attributes, methods."""

import inspect
from itertools import product
from typing import Any

import pytest
import torch
from helpers import EVERY_OPTION, KERNELS, assert_same, gradients, twins
from internals import KernelName
from torch import nn

from manual_rnn import ManualRNN, use_kernel

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
        expected = f"Manual{nn.RNN(4, 6, **options)!r}"
        assert repr(ManualRNN(4, 6, **options)) == expected
        assert repr(ManualRNN(4, 6, **options, device="cpu", dtype=torch.float64).eval()) == expected


@EVERY_OPTION
def test_attributes(options: dict[str, Any]) -> None:
    builtin, manual = twins(4, 6, **options)
    names = ["_all_weights", "_flat_weights_names", "mode", "proj_size", "training", *DOCUMENTED]
    assert {name: getattr(manual, name) for name in names} == {name: getattr(builtin, name) for name in names}


@EVERY_OPTION
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
    change: dict[str, Any], shape: tuple[int, ...], kernel: KernelName
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
