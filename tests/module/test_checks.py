r"""Bad arguments and inputs raise what `nn.RNN` raises; where it is worse than an error, a clear one."""

import warnings
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from internals import KernelName
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from manual_rnn import ManualRNN, use_kernel

Attempt = Callable[[Any], Any]
X = torch.randn(5, 3, 4)
H0 = torch.zeros(1, 3, 6)


def build(*args: Any, **kwargs: Any) -> Attempt:
    """Construct with these arguments."""
    return lambda kind: kind(*args, **kwargs)


def call(*inputs: Any, **options: Any) -> Attempt:
    """Call a network of 4 inputs and 6 states with these inputs."""
    return lambda kind: kind(4, 6, **options)(*inputs)


def changed(inputs: tuple[Any, ...] = (X,), options: dict[str, Any] | None = None, **values: Any) -> Attempt:
    """Set attributes once the network is built, then call it."""

    def attempt(kind: Any) -> Any:
        rnn = kind(4, 6, **(options or {}))
        for name, value in values.items():
            setattr(rnn, name, value)
        return rnn(*inputs)

    return attempt


def weight(*shape: int, **options: Any) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, **options))


def pack(input: Tensor, lengths: list[int]) -> PackedSequence:
    return pack_padded_sequence(input, lengths, enforce_sorted=False)


def rows(data: Tensor, *batch_sizes: float, dtype: torch.dtype = torch.int64) -> PackedSequence:
    """Packed by hand, rightly or wrongly."""
    return PackedSequence(data, torch.tensor(batch_sizes, dtype=dtype))


SORTED, UNSORTED = pack(X, [5, 3, 1]), pack(X, [3, 5, 1])
SORTED_BY_HAND = rows(torch.randn(6, 4), 3, 2, 1)

# As in nn.RNN: the exception's type, and its words but for the name of the class.
SAME: dict[str, Attempt] = {
    "no arguments": build(),
    "one argument": build(4),
    "unknown argument": build(4, 6, hidden=3),
    "input_size 0": build(0, 6),
    "input_size negative": build(-1, 6),
    "input_size float": build(4.0, 6),
    "input_size string": build("4", 6),
    "input_size None": build(None, 6),
    "hidden_size 0": build(4, 0),
    "hidden_size negative": build(4, -2),
    "hidden_size float": build(4, 6.0),
    "hidden_size None": build(4, None),
    "num_layers 0": build(4, 6, 0),
    "num_layers negative": build(4, 6, -1),
    "num_layers float": build(4, 6, 1.5),
    "num_layers string": build(4, 6, "2"),
    "num_layers None": build(4, 6, None),
    "nonlinearity unknown": build(4, 6, 1, "gelu"),
    "nonlinearity upper case": build(4, 6, nonlinearity="TANH"),
    "nonlinearity None": build(4, 6, nonlinearity=None),
    "nonlinearity number": build(4, 6, nonlinearity=3),
    "nonlinearity list": build(4, 6, nonlinearity=["tanh"]),
    "bias 0": build(4, 6, bias=0),
    "bias 1": build(4, 6, bias=1),
    "bias None": build(4, 6, bias=None),
    "bias string": build(4, 6, bias="no"),
    "batch_first 1": build(4, 6, batch_first=1),
    "batch_first None": build(4, 6, batch_first=None),
    "batch_first tensor": build(4, 6, batch_first=torch.tensor(True)),
    "dropout negative": build(4, 6, 2, dropout=-0.1),
    "dropout above 1": build(4, 6, 2, dropout=1.1),
    "dropout nan": build(4, 6, 2, dropout=float("nan")),
    "dropout True": build(4, 6, 2, dropout=True),
    "dropout numeral": build(4, 6, 2, dropout="0.5"),
    "dropout word": build(4, 6, 2, dropout="half"),
    "dropout None": build(4, 6, 2, dropout=None),
    "dropout complex": build(4, 6, 2, dropout=1j),
    "dropout tensor": build(4, 6, 2, dropout=torch.tensor(0.5)),
    "proj_size": build(4, 6, proj_size=2),
    "proj_size 0": build(4, 6, proj_size=0),
    "proj_size None": build(4, 6, proj_size=None),
    "dtype integer": build(4, 6, dtype=torch.int64),
    "dtype string": build(4, 6, dtype="float32"),
    "device unknown": build(4, 6, device="nowhere"),
    "device list": build(4, 6, device=[1]),
    "several wrong: the first named": build(0, 0, 0, bias=1, dropout=2),
    "no input": call(),
    "too many inputs": call(X, None, None),
    "unknown keyword": lambda kind: kind(4, 6)(X, h0=H0),
    "input None": call(None),
    "input list": call([[1.0, 2.0, 3.0, 4.0]]),
    "input tuple": call((X, H0)),
    "input array": call(X.numpy()),
    "input number": call(3),
    "input 0-D": call(torch.tensor(1.0)),
    "input 1-D": call(X[0, 0]),
    "input 4-D": call(X[None]),
    "input int64": call(X.long()),
    "input bool": call(X.bool()),
    "input float64": call(X.double()),
    "input float16": call(X.half()),
    "input complex": call(X.to(torch.complex64)),
    "input features": call(torch.randn(5, 3, 5)),
    "input features unbatched": call(torch.randn(5, 5)),
    "input of no features": call(torch.randn(5, 3, 0)),
    "input meta": call(X.to("meta")),
    "hx 2-D for 3-D input": call(X, H0[0]),
    "hx 4-D": call(X, H0[None]),
    "hx 3-D for 2-D input": call(X[:, 0], H0[:, :1]),
    "hx batch": call(X, H0[:, :2]),
    "hx layers": call(X, torch.zeros(2, 3, 6)),
    "hx directions": call(X, H0, bidirectional=True),
    "hx hidden_size": call(X, torch.zeros(1, 3, 5)),
    "hx unbatched layers": call(X[:, 0], torch.zeros(2, 6)),
    "hx of batch_first": call(X, H0, batch_first=True),
    "hx number": call(X, 3),
    "hx list": call(X, [1.0]),
    "hx of an LSTM": call(X, (H0, H0)),
    "hx array": call(X, H0.numpy()),
    "hx meta": call(X, H0.to("meta")),
    "input meta, hx not": call(X.to("meta"), H0),
    "packed features": call(pack(torch.randn(5, 3, 5), [5, 3, 1])),
    "packed float64": call(pack(X.double(), [5, 3, 1])),
    "packed int64": call(pack(X.long(), [5, 3, 1])),
    "packed 1-D": call(pack(X[..., 0], [5, 3, 1])),
    "packed 3-D": call(pack(torch.randn(5, 3, 2, 4), [5, 3, 1])),
    "packed, hx batch": call(SORTED_BY_HAND, H0[:, :2]),
    "packed, hx 2-D": call(SORTED_BY_HAND, H0[0]),
    "packed, hx layers": call(SORTED_BY_HAND, torch.zeros(2, 3, 6)),
    "packed, hx number": call(SORTED_BY_HAND, 3),
    "unsorted, hx batch": call(UNSORTED, H0[:, :2]),
    "unsorted, hx 2-D": call(UNSORTED, H0[0]),
    "unsorted, hx 1-D": call(UNSORTED, H0[0, 0]),
    "unsorted, hx number": call(UNSORTED, 3),
    "num_layers raised": changed(num_layers=2),
    "input_size changed": changed(input_size=5),
    "mode changed": changed(mode="LSTM"),
    "mode None": changed(mode=None),
    "dropout 1.5": changed(dropout=1.5, options={"num_layers": 2}),
    "dropout -0.5": changed(dropout=-0.5, options={"num_layers": 2}),
    "dropout -1, one step": changed((X[:1],), dropout=-1.0, options={"num_layers": 2}),
    "batch_first 1, hx batch": changed((X, H0), batch_first=1),
    "a plain tensor for a parameter": changed(weight_hh_l0=torch.zeros(6, 6)),
    "a string for a parameter": changed(weight_hh_l0="x"),
    "weight_ih float64": changed(weight_ih_l0=weight(6, 4, dtype=torch.float64)),
    "weight_ih meta": changed(weight_ih_l0=weight(6, 4, device="meta")),
    "weight_hh meta": changed(weight_hh_l0=weight(6, 6, device="meta")),
    "bias_hh meta": changed(bias_hh_l0=weight(6, device="meta")),
}

# The exception's type is that of nn.RNN; its words come from some low level there, and are ours here.
CLEARER: dict[str, tuple[Attempt, str]] = {
    "hx float64": (
        call(X, H0.double()),
        "hx must have the dtype of the input, torch.float32, got torch.float64",
    ),
    "hx float16": (
        call(X, H0.half()),
        "hx must have the dtype of the input, torch.float32, got torch.float16",
    ),
    "hx int64": (call(X, H0.long()), "hx must have the dtype of the input, torch.float32, got torch.int64"),
    "hx bool": (call(X, H0.bool()), "hx must have the dtype of the input, torch.float32, got torch.bool"),
    "hx complex": (call(X, H0.to(torch.complex64)), "hx must have the dtype of the input"),
    "hx unbatched float64": (call(X[:, 0], H0[:, 0].double()), "hx must have the dtype of the input"),
    "packed, hx float64": (call(SORTED, H0.double()), "hx must have the dtype of the input"),
    "packed, hx meta": (call(SORTED, H0.to("meta")), "found input tensor at cpu and hidden tensor at meta"),
    "too few rows": (call(rows(torch.randn(7, 4), 3, 2, 2, 1)), "add up to 7 rows, got [3, 2, 2, 1]"),
    "growing steps": (call(rows(torch.randn(6, 4), 1, 2, 3)), "batch_sizes that never grow"),
    "negative steps": (call(rows(torch.randn(3, 4), 4, -1)), "batch_sizes that never grow"),
    "int32 steps": (call(rows(torch.randn(6, 4), 3, 2, 1, dtype=torch.int32)), "of dtype torch.int64"),
    "float steps": (call(rows(torch.randn(6, 4), 3, 2, 1, dtype=torch.float32), H0), "of dtype torch.int64"),
    "bias off": (changed(bias=False), "Expected fewer weights"),
    "bias on": (changed(bias=True, options={"bias": False}), "Expected more weights"),
    "bias not a bool": (changed(bias=0), "bias should be of type bool, got: int"),
    "batch_first None": (changed(batch_first=None), "batch_first should be of type bool, got: NoneType"),
    "training None": (changed(training=None), "training should be of type bool, got: NoneType"),
    "bidirectional 1": (call(X, bidirectional=1), "bidirectional should be of type bool, got: int"),
    "bidirectional None": (
        call(X, bidirectional=None),
        "bidirectional should be of type bool, got: NoneType",
    ),
    "bidirectional on": (changed(bidirectional=True), "Expected more weights"),
    "bidirectional off": (
        changed(bidirectional=False, options={"bidirectional": True}),
        "Expected fewer weights",
    ),
    "num_layers lowered": (changed(num_layers=1, options={"num_layers": 2}), "Expected fewer weights"),
    "num_layers 0": (changed(num_layers=0), "Expected fewer weights"),
    "hidden_size changed": (changed(hidden_size=5), "weight_ih_l0 must have shape (5, 4), got (6, 4)"),
    "dropout None": (changed(dropout=None, options={"num_layers": 2}), "dropout should be a number"),
    "dropout string": (changed(dropout="0.5", options={"num_layers": 2}), "dropout should be a number"),
    "proj_size set": (changed(proj_size=2), "Expected proj_size 0"),
    "weight_hh None": (changed(weight_hh_l0=None), "weight_hh_l0 must be a Tensor, got NoneType"),
    "bias_hh None": (changed(bias_hh_l0=None), "bias_hh_l0 must be a Tensor, got NoneType"),
    "weight_hh (6, 5)": (
        changed(weight_hh_l0=weight(6, 5)),
        "weight_hh_l0 must have shape (6, 6), got (6, 5)",
    ),
    "weight_hh (5, 5)": (
        changed(weight_hh_l0=weight(5, 5)),
        "weight_hh_l0 must have shape (6, 6), got (5, 5)",
    ),
    "weight_hh 1-D": (changed(weight_hh_l0=weight(6)), "weight_hh_l0 must have shape (6, 6), got (6,)"),
    "weight_ih (6, 5)": (
        changed(weight_ih_l0=weight(6, 5)),
        "weight_ih_l0 must have shape (6, 4), got (6, 5)",
    ),
    "bias of 5": (changed(bias_ih_l0=weight(5)), "bias_ih_l0 must have shape (6,), got (5,)"),
    "weight_hh of layer 1": (
        changed(weight_hh_l1=weight(5, 6), options={"num_layers": 2}),
        "weight_hh_l1 must have shape (6, 6), got (5, 6)",
    ),
    "weight_hh float64": (
        changed(weight_hh_l0=weight(6, 6, dtype=torch.float64)),
        "weight_hh_l0 must have the dtype of the input, torch.float32, got torch.float64",
    ),
    "bias_hh float64": (
        changed(bias_hh_l0=weight(6, dtype=torch.float64)),
        "bias_hh_l0 must have the dtype of the input",
    ),
    "weight_hh of layer 1 float64": (
        changed(weight_hh_l1=weight(6, 6, dtype=torch.float64), options={"num_layers": 2}),
        "weight_hh_l1 must have the dtype of the input",
    ),
}


def without(name: str) -> Attempt:
    def attempt(kind: Any) -> Any:
        rnn = kind(4, 6)
        delattr(rnn, name)
        return rnn(X)

    return attempt


# nn.RNN computes something nobody asked for, or builds what can't run; here an error says so.
STRICTER: dict[str, tuple[Attempt, type[Exception], str]] = {
    "ninth positional": (build(4, 6, 1, "tanh", True, False, 0.0, False, 2), TypeError, "proj_size"),
    "ninth positional 0": (build(4, 6, 1, "tanh", True, False, 0.0, False, 0), TypeError, "proj_size"),
    "bias of 1": (changed(bias_ih_l0=weight(1)), RuntimeError, "bias_ih_l0 must have shape (6,), got (1,)"),
    "bias 0-D": (changed(bias_ih_l0=weight()), RuntimeError, "bias_ih_l0 must have shape (6,), got ()"),
    "bias 2-D": (
        changed(bias_hh_l0=weight(3, 6)),
        RuntimeError,
        "bias_hh_l0 must have shape (6,), got (3, 6)",
    ),
    "weight_ih deleted": (without("weight_ih_l0"), AttributeError, "weight_ih_l0"),
    "weight_hh deleted": (without("weight_hh_l0"), AttributeError, "weight_hh_l0"),
    "bias_hh deleted": (without("bias_hh_l0"), AttributeError, "bias_hh_l0"),
    "too many rows": (call(rows(torch.randn(9, 4), 3, 2, 2, 1)), RuntimeError, "add up to 9 rows"),
}


def outcome(attempt: Attempt, kind: type) -> tuple[type, str]:
    """The type and the words of what is raised, the class's name put as RNN."""
    with pytest.raises(Exception) as raised:  # noqa: PT011
        attempt(kind)
    return raised.type, str(raised.value).replace("ManualRNN", "RNN").replace("RNNBase", "RNN")


@pytest.mark.parametrize("name", SAME)
def test_the_same_type_and_words_as_builtin(name: str) -> None:
    assert outcome(SAME[name], ManualRNN) == outcome(SAME[name], nn.RNN)


@pytest.mark.parametrize("name", [name for name in SAME if name.startswith("nonlinearity ")])
def test_a_nonlinearity_is_a_known_name_or_a_function(name: str) -> None:
    kind, words = outcome(SAME[name], ManualRNN)
    assert kind is ValueError
    assert words.startswith("Unknown nonlinearity")


@pytest.mark.parametrize("steps", [1, 12])
@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"dropout": 0.5, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("groups", [1, 3, 5])
def test_states_of_too_few_or_too_many_layers(groups: int, options: dict[str, Any], steps: int) -> None:
    """Also with dropout between layers, each of which takes its own part of them."""
    attempt = call(torch.randn(steps, 3, 4), torch.zeros(groups, 3, 6), num_layers=2, **options)
    assert outcome(attempt, ManualRNN) == outcome(attempt, nn.RNN)


@pytest.mark.parametrize("value", [1, None])
def test_batch_first_does_not_matter_to_packed_input(value: Any) -> None:
    attempt = changed((SORTED, H0), batch_first=value)
    torch.manual_seed(0)
    expected = attempt(nn.RNN)
    torch.manual_seed(0)
    torch.testing.assert_close(attempt(ManualRNN)[0].data, expected[0].data)


@pytest.mark.parametrize("name", CLEARER)
def test_the_same_type_and_clearer_words(name: str) -> None:
    attempt, words = CLEARER[name]
    kind, message = outcome(attempt, ManualRNN)
    assert kind is outcome(attempt, nn.RNN)[0]
    assert words in message


@pytest.mark.parametrize("kernel", ["reference", "torch"])
@pytest.mark.parametrize("name", CLEARER)
def test_the_words_do_not_depend_on_the_kernel(name: str, kernel: KernelName) -> None:
    attempt, _ = CLEARER[name]
    with use_kernel(kernel):
        found = outcome(attempt, ManualRNN)
    assert found == outcome(attempt, ManualRNN)


@pytest.mark.parametrize("name", STRICTER)
def test_an_error_where_builtin_is_worse(name: str) -> None:
    attempt, kind, words = STRICTER[name]
    found, message = outcome(attempt, ManualRNN)
    assert found is kind
    assert words in message
    attempt(nn.RNN)


def test_a_projected_rnn_can_not_run_in_builtin() -> None:
    """The reason to refuse a ninth positional argument."""
    rnn: Any = nn.RNN(4, 6, 1, "tanh", True, False, 0.0, False, 2)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="Expected hidden size"):
        rnn(X)
    with pytest.raises(TypeError, match="ninth positional argument, got 2"):
        ManualRNN(4, 6, 1, "tanh", True, False, 0.0, False, 2)


def test_an_integer_device_by_keyword_is_a_device_as_in_builtin() -> None:
    assert outcome(build(4, 6, device=99), ManualRNN) == outcome(build(4, 6, device=99), nn.RNN)


@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": True},
        {"num_layers": torch.tensor(2)},
        {"num_layers": np.int64(2)},
        {"num_layers": 2, "dropout": np.float32(0.5)},
        {"num_layers": 2, "dropout": Fraction(1, 2)},
        {"num_layers": 2, "dropout": Decimal("0.5")},
        {"num_layers": 2, "dropout": 1},
        {"bidirectional": None},
        {"dtype": float},
    ],
    ids=str,
)
def test_odd_arguments_that_builtin_takes(options: dict[str, Any]) -> None:
    assert repr(ManualRNN(4, 6, **options)) == repr(nn.RNN(4, 6, **options)).replace("RNN", "ManualRNN")


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"dropout": 1, "nonlinearity": "relu"}], ids=str)
def test_dropout_without_a_layer_to_drop_warns_alike(options: dict[str, Any]) -> None:
    """With the words of nn.RNN, pointing at the line that builds the network."""
    found = []
    for kind in (nn.RNN, ManualRNN):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kind(4, 6, **options)
        found.append([(warning.category, str(warning.message)) for warning in caught])
    assert found[0] == found[1]
    assert len(found[1]) == 1
    assert caught[0].filename == __file__


def test_no_other_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ManualRNN(4, 6, 2, dropout=0.5)(X)
        ManualRNN(4, 6)(SORTED, H0)


def test_an_error_leaves_the_module_usable() -> None:
    rnn = ManualRNN(4, 6)
    expected = rnn(X)[0]
    with pytest.raises(RuntimeError, match="input_size"):
        rnn(torch.randn(5, 3, 5))
    assert torch.equal(rnn(X)[0], expected)


def test_there_are_many_cases() -> None:
    assert len(SAME) >= 45
