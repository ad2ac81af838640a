r"""`torch.compile`: one graph, whatever the length, and in it the values and gradients of eager `nn.RNN`.

Most tests stop before code is generated (backend "aot_eager"): the graphs are those that inductor gets.
"""

import shutil
from functools import partial
from typing import Any

import pytest
import torch
from helpers import assert_same, gradients, packed, twins
from internals import KernelName
from models import Tagger
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import Unsupported
from torch._dynamo.utils import counters
from torch._functorch.aot_autograd import make_boxed_func
from torch.nn.utils.rnn import pack_padded_sequence

from manual_rnn import ManualRNN, use_kernel

WHOLE: dict[str, Any] = {"fullgraph": True, "backend": "aot_eager"}
twins64 = partial(twins, dtype=torch.float64)
BOTH_WAYS = {"num_layers": 2, "bidirectional": True}


# Dynamo asks a packed input, which isn't a leaf, for its gradient.
PACKED = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def compiled(target: Any, **options: Any) -> Any:
    """A function compiled; a module compiled in place, which keeps the names of its parameters."""
    if not isinstance(target, nn.Module):
        return torch.compile(target, **WHOLE | options)
    target.compile(**WHOLE | options)
    return target


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "options",
    [
        {"nonlinearity": "relu", "batch_first": True},
        {**BOTH_WAYS, "dropout": 0.5},
        {"bias": False, "bidirectional": True, "batch_first": True},
    ],
    ids=["relu", "two layers", "no bias"],
)
def test_a_model_is_one_graph(options: dict[str, Any], training: bool) -> None:
    builtin, manual = (Tagger(rnn).train(training) for rnn in twins64(3, 4, **options))
    tokens, hx = torch.randint(7, (5, 3)), None
    if manual.rnn.batch_first:
        hx = random(manual.rnn.num_layers * (1 + manual.rnn.bidirectional), 5, 4)
    assert_same(gradients(compiled(manual), tokens, hx), gradients(builtin, tokens, hx))
    assert graphs() == 1


def test_builtin_rnn_does_not_compile() -> None:
    with pytest.raises(Unsupported, match="Dynamo does not support RNN"):
        compiled(Tagger(nn.RNN(3, 4)))(torch.randint(7, (5, 2)))


@pytest.mark.slow
def test_ten_lengths_are_two_graphs() -> None:
    builtin, manual = twins64(3, 4, **BOTH_WAYS)
    rnn = compiled(manual, dynamic=True)
    for T in (5, 9, 1, 2, 3, 20, 4, 7, 8, 100):
        x, hx = random(T, 2, 3), random(4, 2, 4)
        assert_same(gradients(rnn, x, hx), gradients(builtin, x, hx))
    assert graphs() <= 2


def traced_nodes(model: nn.Module, T: int) -> int:
    """Nodes of forward and backward graph together."""
    torch._dynamo.reset()
    traced = []

    def collect(graph: torch.fx.GraphModule, _: Any) -> Any:
        traced.append(len(graph.graph.nodes))
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=collect, bw_compiler=collect)
    gradients(compiled(model, backend=backend, dynamic=False), torch.randint(7, (T, 2)))
    assert len(traced) == 2
    return sum(traced)


@pytest.mark.slow
def test_the_graph_does_not_grow_with_the_length() -> None:
    builtin, manual = (Tagger(rnn) for rnn in twins64(3, 4))
    assert traced_nodes(manual, 20) == traced_nodes(manual, 1000)
    with torch._dynamo.config.patch(allow_rnn=True):  # experimental, and unrolls
        assert traced_nodes(builtin, 20) > traced_nodes(builtin, 10) + 10 * 3


def test_empty_inputs() -> None:
    _, manual = twins64(3, 4, bidirectional=True)
    hx = random(2, 2, 4)
    output, h_n = compiled(manual)(random(0, 2, 3), hx)
    assert output.shape == (0, 2, 8)
    assert torch.equal(h_n, hx)
    assert compiled(manual)(random(5, 0, 3))[0].shape == (5, 0, 8)


def test_weights_are_read_anew() -> None:
    builtin, manual = twins64(3, 4)
    x = random(5, 2, 3)
    before = compiled(manual)(x)[0]
    with torch.no_grad():
        for rnn in (builtin, manual):
            rnn.get_parameter("weight_hh_l0").mul_(2.0)
    assert_same(gradients(manual, x), gradients(builtin, x))
    assert not torch.equal(manual(x)[0], before)
    assert graphs() == 1


@pytest.mark.slow
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_vmap(nonlinearity: str) -> None:
    builtin, manual = twins64(3, 4, **BOTH_WAYS, nonlinearity=nonlinearity)
    xs = random(6, 5, 2, 3).detach()
    output, h_n = compiled(torch.func.vmap(manual))(xs)
    expected = dict(
        zip(("output", "h_n"), map(torch.stack, zip(*map(builtin, xs), strict=True)), strict=True)
    )
    assert_same({"output": output, "h_n": h_n}, expected)
    assert graphs() == 1
    with pytest.raises(Unsupported, match="Dynamo does not support RNN"):
        compiled(torch.func.vmap(builtin))(xs)


@pytest.mark.slow
def test_per_sample_gradients() -> None:
    builtin, manual = twins64(3, 4, bidirectional=True)
    xs, weights = random(6, 5, 3).detach(), dict(manual.named_parameters())

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        output, h_n = torch.func.functional_call(manual, weights, (x,))
        return output.sin().sum() + h_n.cos().sum()

    found = compiled(torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0)))(weights, xs)
    expected = []
    for x in xs:
        output, h_n = builtin(x)
        one = torch.autograd.grad(output.sin().sum() + h_n.cos().sum(), list(builtin.parameters()))
        expected.append(dict(zip(weights, one, strict=True)))
    assert_same(found, {name: torch.stack([one[name] for one in expected]) for name in weights})
    assert graphs() == 1


def test_jvp() -> None:
    """Where no weight needs a gradient, an op without a rule of its own loses the tangent."""
    _, manual = twins64(3, 4, **BOTH_WAYS)
    manual.requires_grad_(False)
    x, tangent = random(5, 2, 3).detach(), random(5, 2, 3).detach()

    def along(x: Tensor, tangent: Tensor) -> Any:
        return torch.func.jvp(lambda x: manual(x)[0], (x,), (tangent,))

    step = 1e-6
    exact = (manual(x + step * tangent)[0] - manual(x - step * tangent)[0]) / (2 * step)
    output, found = compiled(along)(x, tangent)
    assert_same({"output": output, "tangent": found}, {"output": manual(x)[0], "tangent": exact}, bound=1e-8)
    assert_same({"tangent": found}, {"tangent": along(x, tangent)[1]})


def test_a_kernel_asked_for_outside() -> None:
    builtin, manual = twins64(3, 4)
    rnn, x = compiled(manual), random(5, 2, 3)
    names: list[KernelName] = ["default", "torch", "reference"]
    for seen, name in enumerate(names, start=1):
        with use_kernel(name):
            assert_same(gradients(rnn, x), gradients(builtin, x))
        assert graphs() == seen
    gradients(rnn, x)
    assert graphs() == seen
    own = compiled(ManualRNN(3, 4, nonlinearity=torch.sin, dtype=x.dtype))
    with use_kernel("native"), pytest.raises(Exception, match="can't run here"):
        own(x)


def test_a_kernel_asked_for_inside() -> None:
    builtin, manual = twins64(3, 4)
    x = random(5, 2, 3)

    @compiled
    def two(x: Tensor) -> tuple[Tensor, Tensor]:
        with use_kernel("reference"):
            by_reference = manual(x)[0]
        with use_kernel("torch"):
            return by_reference, manual(x)[0]

    expected = builtin(x)[0]
    assert_same(dict(zip("ab", two(x), strict=True)), {"a": expected, "b": expected})
    assert graphs() == 1


@PACKED
@pytest.mark.parametrize("lengths", [[6, 4, 1], [3, 6, 2]], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_a_packed_input(lengths: list[int], given: bool) -> None:
    builtin, manual = twins64(3, 4, bidirectional=True)
    x, hx = random(6, 3, 3), random(2, 3, 4) if given else None
    pack = partial(packed, lengths=lengths)
    assert_same(gradients(compiled(manual), x, hx, pack), gradients(builtin, x, hx, pack))
    assert graphs() == 1


@pytest.mark.slow
@PACKED
def test_packed_inputs_of_many_shapes_are_two_graphs() -> None:
    builtin, manual = twins64(3, 4)
    rnn = compiled(manual, dynamic=True)
    for lengths in ([6, 4, 2], [3, 3], [9, 7, 5, 3, 1]):
        x, pack = random(max(lengths), len(lengths), 3), partial(packed, lengths=lengths)
        assert_same(gradients(rnn, x, None, pack), gradients(builtin, x, None, pack))
    assert graphs() <= 2


@PACKED
def test_a_state_that_does_not_fit_a_packed_input() -> None:
    """The graph is made without knowing the batch size, so the op says it, when it runs."""
    _, manual = twins64(3, 4)
    with pytest.raises(RuntimeError, match="expected shape"):
        compiled(manual)(packed(random(6, 3, 3), [6, 4, 1]), random(1, 2, 4))


def test_parameters_are_not_flattened_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA that asks where they lie in memory, which no trace knows."""

    def refuse(flat: Any) -> None:
        raise AssertionError("asked in a graph")

    monkeypatch.setattr("manual_rnn.kernels.aten.flatten", refuse)
    builtin, manual = twins64(3, 4)

    def run(rnn: nn.Module, x: Tensor) -> Tensor:
        rnn.flatten_parameters()  # type: ignore[operator]
        return rnn(x)[0]

    x = random(5, 2, 3)
    assert_same({"output": compiled(run)(manual, x)}, {"output": run(builtin, x)})


@PACKED
def test_packing_inside_breaks_the_graph() -> None:
    """Dynamo won't look into `pack_padded_sequence`: pack outside, or live with graphs around it."""
    builtin, manual = twins64(3, 4)

    def run(rnn: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
        return rnn(pack_padded_sequence(x, lengths))[0].data

    x, lengths = random(6, 3, 3), torch.tensor([6, 4, 1])
    with pytest.raises(Unsupported, match="pack_padded_sequence"):
        compiled(run)(manual, x, lengths)
    found = torch.compile(run, backend="aot_eager")(manual, x, lengths)
    assert_same({"output": found}, {"output": run(builtin, x, lengths)})


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor compiles C++, and there is no g++")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # inductor's own
def test_inductor() -> None:
    builtin, manual = twins64(3, 4)
    rnn = compiled(manual, backend="inductor", dynamic=True)
    for T in (5, 11):
        x = random(T, 2, 3)
        assert_same(gradients(rnn, x), gradients(builtin, x))
    assert graphs() == 1
