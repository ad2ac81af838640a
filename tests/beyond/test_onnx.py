r"""ONNX: a layer is one `RNN` node, and ONNX Runtime agrees at lengths and batches never exported."""

from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from examples import LeakyRNN
from helpers import assert_same, packed, twins
from models import Tagger
from torch import Tensor, nn
from torch.export import Dim
from torch.onnx.errors import OnnxExporterError

from manual_rnn import ManualRNN, export_standalone, use_kernel
from manual_rnn.kernels.nonlinearities import PHI

BOUND = 1e-6  # float32: ONNX Runtime has no node in float64
UNSEEN = [(7, 2), (1, 1), (30, 5)]

# What the exporter says of itself, whatever the model.
pytestmark = [
    pytest.mark.slow,  # each export takes seconds
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes self:UserWarning"),  # nn.RNN's
]


def arguments(rnn: Any, T: int, B: int, given: bool) -> tuple[Tensor, ...]:
    shape = (B, T, 3) if rnn.batch_first else (T, B, 3)
    hx = torch.randn(rnn.num_layers * (1 + rnn.bidirectional), B, 4)
    return torch.randn(shape), *([hx] if given else [])


def to_onnx(rnn: nn.Module, args: tuple[Any, ...], **options: Any) -> onnx.ModelProto:
    program: Any = torch.onnx.export(rnn.eval(), args, dynamo=True, verbose=False, **options)
    return program.model_proto


def exported(rnn: nn.Module, args: tuple[Tensor, ...], **options: Any) -> onnx.ModelProto:
    """With time and batch left open."""
    leading = args[0].dim() - args[0].is_floating_point()  # tokens have no axis of features
    shapes = (dict.fromkeys(range(leading), Dim.DYNAMIC), {1: Dim.DYNAMIC})
    model = to_onnx(rnn, args, dynamic_shapes=shapes[: len(args)], **options)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, args: tuple[Tensor, ...]) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [input.name for input in session.get_inputs()]
    results = session.run(None, {name: x.numpy() for name, x in zip(names, args, strict=True)})
    return {name: torch.from_numpy(x) for name, x in zip(("output", "h_n"), results, strict=True)}


def expected(rnn: nn.Module, args: tuple[Tensor, ...]) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(zip(("output", "h_n"), rnn(*args), strict=True))


def nodes(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """The attributes of each RNN node."""
    return [
        {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for node in model.graph.node
        if node.op_type == "RNN"
    ]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "relu": {"nonlinearity": "relu", "batch_first": True},
    "two layers": {"num_layers": 2, "dropout": 0.5, "batch_first": True},
    "bidirectional": {"bidirectional": True, "nonlinearity": "relu"},
    "both ways": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "no bias": {"bias": False, "bidirectional": True},
}


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("name", CASES)
def test_one_node_per_layer(name: str, given: bool) -> None:
    builtin, manual = twins(3, 4, **CASES[name])
    model = exported(manual, arguments(manual, 5, 3, given))
    D = 1 + manual.bidirectional
    node = {
        "activations": [{"tanh": b"Tanh", "relu": b"Relu"}[str(manual.nonlinearity)]] * D,
        "direction": b"bidirectional" if D == 2 else b"forward",
        "hidden_size": 4,
    }
    assert nodes(model) == [node] * manual.num_layers
    builtin.eval()
    for T, B in UNSEEN:
        args = arguments(manual, T, B, given)
        assert_same(run(model, args), expected(builtin, args), BOUND)


@pytest.mark.parametrize("name", [name for name, row in PHI.items() if row.onnx is not None])
def test_every_nonlinearity_that_onnx_has(name: str) -> None:
    rnn = ManualRNN(3, 4, nonlinearity=name, bidirectional=True)
    model = exported(rnn, arguments(rnn, 5, 3, given=False))
    assert len(nodes(model)) == 1
    for T, B in UNSEEN:
        args = arguments(rnn, T, B, given=False)
        assert_same(run(model, args), expected(rnn, args), BOUND)


def test_no_node_for_a_nonlinearity_that_onnx_has_not() -> None:
    rnn = ManualRNN(3, 4, nonlinearity="hardtanh")
    with pytest.raises(OnnxExporterError, match="got 'hardtanh', for which ONNX has no node"):
        to_onnx(rnn, (torch.randn(5, 2, 3),))


@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched(batch_first: bool) -> None:
    builtin, manual = twins(3, 4, bidirectional=True, batch_first=batch_first)
    model = exported(manual, (torch.randn(5, 3),))
    for T in (8, 1):
        args = (torch.randn(T, 3),)
        assert_same(run(model, args), expected(builtin, args), BOUND)


@pytest.mark.skipif(torch.__version__ < "2.13", reason="it has no scan that can be trusted")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_standalone_program_is_scans_of_open_length(dtype: torch.dtype) -> None:
    """Which ONNX Runtime has in float64 too, unlike the node."""
    builtin, manual = twins(3, 4, 2, bidirectional=True, dtype=dtype)
    bound = 1e-12 if dtype == torch.float64 else BOUND
    shapes = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
    program = export_standalone(manual, (torch.randn(5, 3, 3, dtype=dtype),), dynamic_shapes=shapes)
    exported: Any = torch.onnx.export(program, dynamo=True, verbose=False)
    onnx.checker.check_model(exported.model_proto, full_check=True)
    assert [node.op_type for node in exported.model_proto.graph.node].count("Scan") == 4
    for T, B in UNSEEN:
        args = (torch.randn(T, B, 3, dtype=dtype),)
        assert_same(run(exported.model_proto, args), expected(builtin, args), bound)


@pytest.mark.skipif(torch.__version__ < "2.13", reason="it has no scan that can be trusted")
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # Dynamo's own, of gates
def test_a_recurrence_of_your_own_is_a_scan() -> None:
    rnn, shapes = LeakyRNN(3, 4), ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
    program = torch.export.export(rnn, (torch.randn(5, 3, 3),), dynamic_shapes=shapes)
    exported: Any = torch.onnx.export(program, dynamo=True, verbose=False)
    for T, B in UNSEEN:
        args = (torch.randn(T, B, 3),)
        assert_same(run(exported.model_proto, args), expected(rnn, args), BOUND)


def test_inside_a_model() -> None:
    builtin, manual = (Tagger(rnn) for rnn in twins(3, 4, num_layers=2))
    model = exported(manual, (torch.randint(7, (5, 3)),))
    assert len(nodes(model)) == 2
    for T, B in UNSEEN:
        args = (torch.randint(7, (T, B)),)
        assert_same(run(model, args), expected(builtin, args), BOUND)


@pytest.mark.parametrize("opset", [18, 23])
def test_opsets(opset: int) -> None:
    builtin, manual = twins(3, 4)
    model = exported(manual, arguments(manual, 5, 3, given=True), opset_version=opset)
    assert len(nodes(model)) == 1
    args = arguments(manual, 7, 2, given=True)
    assert_same(run(model, args), expected(builtin, args), BOUND)


def test_a_kernel_has_no_say() -> None:
    manual = ManualRNN(3, 4)
    with use_kernel("reference"):
        assert len(nodes(exported(manual, arguments(manual, 5, 3, given=False)))) == 1


def test_builtin_rnn_has_no_node_and_one_length() -> None:
    builtin, _ = twins(3, 4)
    args = arguments(builtin, 5, 3, given=False)
    assert nodes(to_onnx(builtin, args)) == []
    with pytest.raises(OnnxExporterError, match="inferred a static shape of 5"):
        exported(builtin, args)


@pytest.mark.parametrize(
    "rnn", [LeakyRNN(3, 4), ManualRNN(3, 4, nonlinearity=torch.sin)], ids=["step", "callable"]
)
def test_no_node_for_a_recurrence_of_your_own(rnn: ManualRNN) -> None:
    """Nor does the exporter's second attempt unroll it unasked."""
    with pytest.raises(OnnxExporterError, match="got a recurrence of your own, for which ONNX has no node"):
        to_onnx(rnn, (torch.randn(5, 2, 3),))


def test_no_node_for_a_packed_input() -> None:
    with pytest.raises(OnnxExporterError, match="expected a padded or an unbatched input, got a packed one"):
        to_onnx(ManualRNN(3, 4), (packed(torch.randn(5, 2, 3), [5, 3]),))


def test_no_node_for_a_nested_input() -> None:
    """A nested tensor doesn't even get as far: `torch.export` can't take one with open lengths."""
    x: Any = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=torch.jagged)
    with pytest.raises(OnnxExporterError):
        to_onnx(ManualRNN(3, 4, batch_first=True), (x,))
