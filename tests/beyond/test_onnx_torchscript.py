r"""The older ONNX exporter, `dynamo=False`: node by node the file of an `nn.RNN`, at any length and batch."""

import io
import warnings
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from examples import LeakyRNN
from helpers import assert_same, twins
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.onnx.errors import SymbolicValueError

from manual_rnn import ManualRNN

UNSEEN = [(7, 2), (1, 1), (30, 5)]
BOUND = 1e-6  # float32: ONNX Runtime has no node in float64
OPTIONS: list[dict[str, Any]] = [
    {},
    {"nonlinearity": "relu", "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
]
EACH = pytest.mark.parametrize("options", OPTIONS, ids=str)


def to_onnx(model: nn.Module, args: tuple[Tensor, ...], **options: Any) -> onnx.ModelProto:
    file: Any = io.BytesIO()
    names = ["x", "hx" if args[-1].is_floating_point() else "lengths"][: len(args)]
    axes = {axis: f"axis{axis}" for axis in range(args[0].dim() - 1)}
    open_axes = {"x": axes, "hx": {1: "B"}, "lengths": {0: "B"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a page of torch's own, the same for both
        torch.onnx.export(
            model, args, file, dynamo=False, input_names=names,
            dynamic_axes={name: open_axes[name] for name in names}, **options,
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def run(model: onnx.ModelProto, args: tuple[Tensor, ...]) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [input.name for input in session.get_inputs()]
    results = session.run(None, {name: x.numpy() for name, x in zip(names, args, strict=True)})
    return {name: torch.from_numpy(x) for name, x in zip(("output", "h_n"), results, strict=True)}


def expected(model: nn.Module, args: tuple[Tensor, ...]) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(zip(("output", "h_n"), model(*args), strict=True))


def nodes(model: onnx.ModelProto) -> list[tuple[Any, ...]]:
    return [
        (node.op_type, *((a.name, str(onnx.helper.get_attribute_value(a))) for a in node.attribute))
        for node in model.graph.node
    ]


def arguments(rnn: Any, T: int, B: int, given: bool) -> tuple[Tensor, ...]:
    hx = torch.randn(rnn.num_layers * (1 + rnn.bidirectional), B, 4)
    return torch.randn(*((B, T) if rnn.batch_first else (T, B)), 3), *([hx] if given else [])


@EACH
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_it_is_the_file_of_a_builtin(given: bool, options: dict[str, Any]) -> None:
    builtin, manual = (rnn.eval() for rnn in twins(3, 4, **options))
    args = arguments(builtin, 5, 3, given)
    found, control = to_onnx(manual, args), to_onnx(builtin, args)
    assert nodes(found) == nodes(control)
    for T, B in UNSEEN:
        args = arguments(builtin, T, B, given)
        assert_same(run(found, args), run(control, args), bound=0)
        assert_same(run(found, args), expected(builtin, args), BOUND)


class Packs(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        output, h_n = self.rnn(pack_padded_sequence(x, lengths))
        return pad_packed_sequence(output)[0], h_n


@EACH
def test_a_packed_input(options: dict[str, Any]) -> None:
    options = {**options, "batch_first": False}
    models = [Packs(rnn).eval() for rnn in twins(3, 4, **options)]
    args = torch.randn(5, 2, 3), torch.tensor([5, 3])
    control, found = (to_onnx(model, args) for model in models)
    assert nodes(found) == nodes(control)
    assert_same(run(found, args), expected(models[0], args), BOUND)


def test_unbatched() -> None:
    builtin, manual = (rnn.eval() for rnn in twins(3, 4, bidirectional=True))
    found = to_onnx(manual, (torch.randn(5, 3),))
    for T in (8, 1):
        args = (torch.randn(T, 3),)
        assert_same(run(found, args), expected(builtin, args), BOUND)


def test_dropout_in_training_raises_as_with_a_builtin() -> None:
    for rnn in twins(3, 4, 2, dropout=0.5):
        with pytest.raises(SymbolicValueError, match="dropout in training mode"):
            to_onnx(rnn, (torch.randn(5, 2, 3),), training=torch.onnx.TrainingMode.PRESERVE)


@pytest.mark.parametrize(
    "rnn", [LeakyRNN(3, 4), ManualRNN(3, 4, nonlinearity=torch.sin)], ids=["step", "callable"]
)
def test_no_node_for_a_recurrence_of_your_own(rnn: ManualRNN) -> None:
    """It is unrolled, at the length it was exported with, as any module of one's own."""
    args = (torch.randn(5, 2, 3),)
    model = to_onnx(rnn.eval(), args)
    assert "RNN" not in {name for name, *_ in nodes(model)}
    assert_same(run(model, args), expected(rnn, args), BOUND)
