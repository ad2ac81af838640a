r"""A recurrence of one's own: five classic ones, each against its equation by hand."""

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from examples import BY_HAND, LAYOUTS, ByHand, LayerNormRNN, LeakyRNN, NoisyRNN, VariationalRNN, ZoneoutRNN
from helpers import assert_same, gradients, twins
from internals import FUSED
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.overrides import TorchFunctionMode

from manual_rnn import ManualRNN, use_kernel

EXAMPLES = pytest.mark.parametrize("kind", BY_HAND, ids=lambda kind: kind.__name__)
RANDOM = pytest.mark.parametrize("kind", [ZoneoutRNN, VariationalRNN, NoisyRNN], ids=lambda k: k.__name__)


class Chance(TorchFunctionMode):
    """Answers whatever the examples draw by `answer(function, its arguments)`."""

    def __init__(self, answer: Callable[..., Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.rand_like, torch.randn_like, F.dropout):
            return self.answer(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def drawn() -> Iterator[list[Tensor]]:
    """Everything that chance draws in a test, in order."""
    draws: list[Tensor] = []

    def record(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        draws.append(func(*args, **kwargs))
        return draws[-1]

    with Chance(record):
        yield draws


@pytest.fixture
def fixed_draws() -> Iterator[None]:
    """Chance draws the same numbers whenever it is asked, for comparisons across calls."""
    numbers = torch.rand(64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def fixed(func: Callable[..., Tensor], like: Tensor, p: float = 0, **_: Any) -> Tensor:
        uniform = numbers[: like.shape.numel()].reshape(like.shape)
        return (uniform > p) / (1 - p) if func is F.dropout else uniform

    with Chance(fixed):
        yield


@EXAMPLES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_equals_the_equation_by_hand(
    kind: type[ManualRNN], layout: str, drawn: list[Tensor]
) -> None:
    lengths, pack, unpack = LAYOUTS[layout]
    torch.manual_seed(0)
    batch_first = layout in ("batch_first", "nested")
    rnn = kind(2, 3, 2, bidirectional=True, batch_first=batch_first, dtype=torch.float64)
    sequences = [torch.randn(n, 2, dtype=torch.float64, requires_grad=True) for n in lengths]
    given = torch.randn(4, len(lengths), 3, dtype=torch.float64, requires_grad=True)
    hx = given[:, 0] if layout == "unbatched" else given

    output, h_n = rnn(pack(sequences), hx)
    found = [*unpack(output), h_n]
    output, h_n = ByHand(kind, rnn, drawn)(pack(sequences), hx)
    expected = [*unpack(output), h_n]

    leaves = {**dict(rnn.named_parameters()), "hx": given, **{f"x{b}": x for b, x in enumerate(sequences)}}
    cotangents = [torch.randn_like(x) for x in expected]

    def named(results: list[Tensor]) -> dict[str, Tensor]:
        grads = torch.autograd.grad(results, list(leaves.values()), cotangents)
        values = {f"result{i}": x for i, x in enumerate(results)}
        return {**values, **dict(zip(leaves, grads, strict=True))}

    assert_same(named(found), named(expected))


@EXAMPLES
def test_checkpoint_of_the_builtin_loads(kind: type[ManualRNN]) -> None:
    builtin, own = nn.RNN(2, 3, 2, bidirectional=True), kind(2, 3, 2, bidirectional=True)
    own.load_state_dict(builtin.state_dict())
    assert list(own.state_dict()) == list(builtin.state_dict())


@RANDOM
def test_chance_is_drawn_anew_each_call_and_not_at_all_in_evaluation(kind: type[ManualRNN]) -> None:
    rnn, x = kind(2, 8), torch.randn(6, 1, 2).expand(6, 4, 2)
    first, second = rnn(x)[0], rnn(x)[0]
    assert not torch.equal(first, second)
    assert not torch.equal(first[:, 0], first[:, 1])  # the same sequence, another mask
    rnn.eval()
    assert torch.equal(rnn(x)[0], rnn(x)[0])


def test_variational_mask_is_one_per_sequence_layer_and_direction(drawn: list[Tensor]) -> None:
    rnn = VariationalRNN(2, 16, 2, bidirectional=True)
    rnn(pack_sequence([torch.randn(n, 2) for n in (5, 2, 7)], enforce_sorted=False))
    assert [mask.shape for mask in drawn] == [(3, 16)] * 4
    rows = torch.cat(drawn)
    assert len(rows.unique(dim=0)) == len(rows)
    torch.testing.assert_close(rows.unique(), torch.tensor([0, 1 / 0.75]))


def test_zoneout_in_evaluation_is_the_mean_of_training() -> None:
    torch.manual_seed(0)
    rnn = ZoneoutRNN(2, 3, dtype=torch.float64)
    x, hx = torch.randn(1, 1, 2, dtype=torch.float64), torch.randn(1, 1, 3, dtype=torch.float64)
    mean = rnn(x.expand(1, 40_000, 2), hx.expand(1, 40_000, 3))[0].mean(1)
    torch.testing.assert_close(mean, rnn.eval()(x, hx)[0][:, 0], atol=0.01, rtol=0)


def run(rnn: ManualRNN, weights: Any, x: Tensor) -> Tensor:
    return functional_call(rnn, weights, (x,))[0]


def loss(rnn: ManualRNN, weights: Any, x: Tensor) -> Tensor:
    return run(rnn, weights, x).square().sum()


@EXAMPLES
@pytest.mark.usefixtures("fixed_draws")
def test_vmap_over_samples_weights_and_gradients(kind: type[ManualRNN]) -> None:
    members = [kind(2, 3, bidirectional=True, dtype=torch.float64) for _ in range(3)]
    rnn, weights, x = members[0], dict(members[0].named_parameters()), torch.randn(3, 4, 2, 2).double()

    samples = vmap(lambda x_i: run(rnn, weights, x_i))(x)
    torch.testing.assert_close(samples, torch.stack([rnn(x_i)[0] for x_i in x]))

    stacked, _ = stack_module_state(members)
    ensemble = vmap(lambda weights, x_i: run(rnn, weights, x_i))(stacked, x)
    torch.testing.assert_close(ensemble, torch.stack([m(x_i)[0] for m, x_i in zip(members, x, strict=True)]))

    per_sample = vmap(grad(lambda weights, x_i: loss(rnn, weights, x_i)), (None, 0))(weights, x)
    alone = [torch.autograd.grad(loss(rnn, weights, x_i), list(weights.values())) for x_i in x]
    for found, *expected in zip(per_sample.values(), *alone, strict=True):
        torch.testing.assert_close(found, torch.stack(expected))


@EXAMPLES
@pytest.mark.usefixtures("fixed_draws")
def test_vmap_over_weights_of_packed_input(kind: type[ManualRNN]) -> None:
    members = [kind(2, 3, dtype=torch.float64) for _ in range(2)]
    packed = pack_sequence([torch.randn(n, 2).double() for n in (2, 3)], enforce_sorted=False)
    stacked, _ = stack_module_state(members)
    found = vmap(lambda weights: functional_call(members[0], weights, (packed,))[0].data)(stacked)
    torch.testing.assert_close(found, torch.stack([m(packed)[0].data for m in members]))


@RANDOM
def test_vmap_draws_for_every_member_where_asked_to(kind: type[ManualRNN]) -> None:
    rnn, x = kind(2, 8), torch.randn(5, 1, 2).expand(3, 5, 1, 2)
    different = vmap(lambda x_i: rnn(x_i)[0], randomness="different")(x)
    same = vmap(lambda x_i: rnn(x_i)[0], randomness="same")(x)
    assert not torch.equal(different[0], different[1])
    assert torch.equal(same[0], same[1])


@EXAMPLES
@pytest.mark.usefixtures("fixed_draws")
def test_double_backward(kind: type[ManualRNN]) -> None:
    torch.manual_seed(0)
    rnn = kind(1, 2, bidirectional=True, dtype=torch.float64)
    names = [name for name, _ in rnn.named_parameters()]

    def padded(x: Tensor, *weights: Tensor) -> Tensor:
        return functional_call(rnn, dict(zip(names, weights, strict=True)), (x,))[0]

    def packed(x: Tensor, *weights: Tensor) -> Tensor:
        given = PackedSequence(x.flatten(0, 1)[:3], torch.tensor([2, 1]))
        return functional_call(rnn, dict(zip(names, weights, strict=True)), (given,))[0].data

    x = torch.randn(2, 2, 1, dtype=torch.float64, requires_grad=True)
    for function in (padded, packed):
        assert torch.autograd.gradgradcheck(function, (x, *rnn.parameters()))


@EXAMPLES
def test_compiles_into_one_graph(kind: type[ManualRNN]) -> None:
    """A recurrence of one's own is unrolled: one graph for each length, so keep `T` small."""
    rnn = kind(2, 3, bidirectional=True, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    compiled: Any = torch.compile(rnn, backend="aot_eager", fullgraph=True)
    found = gradients(compiled, x)
    assert_same({k.removeprefix("_orig_mod."): v for k, v in found.items()}, gradients(rnn, x))


def assert_never_fused(rnn: ManualRNN, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 2, 2)
    with use_kernel("torch"), pytest.raises(RuntimeError, match="this recurrence is your own"):
        rnn(x)
    monkeypatch.setattr(*FUSED, lambda *_: pytest.fail("a fused kernel ran"))
    output, _ = rnn(x)
    with use_kernel("reference"):
        assert torch.equal(rnn(x)[0], output)
    assert not torch.allclose(output, nn.RNN.forward(as_builtin(rnn), x)[0])


def as_builtin(rnn: ManualRNN) -> nn.RNN:
    builtin = nn.RNN(rnn.input_size, rnn.hidden_size)
    builtin.load_state_dict({k: v for k, v in rnn.state_dict().items() if "_l0" in k})
    return builtin


def scaled(gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Tensor:
    return torch.tanh(gates + 0.5 * F.linear(hidden, weight_hh))


class ScaledCell(nn.Module):
    def forward(self, gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Tensor:
        return scaled(gates, hidden, weight_hh)


@pytest.mark.parametrize("kind", [LeakyRNN, LayerNormRNN, VariationalRNN], ids=lambda kind: kind.__name__)
def test_subclass_never_gets_a_fused_kernel(kind: type[ManualRNN], monkeypatch: pytest.MonkeyPatch) -> None:
    if kind is VariationalRNN:
        monkeypatch.setattr(F, "dropout", lambda like, p, training: 0.3 * like)
    assert_never_fused(kind(2, 3), monkeypatch)


@pytest.mark.parametrize(("name", "value"), [
    ("step", scaled), ("step", ScaledCell()), ("begin", lambda h0: scaled),
])  # fmt: skip
def test_attribute_of_one_module_never_gets_a_fused_kernel(
    name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rnn = ManualRNN(2, 3)
    setattr(rnn, name, value)
    assert_never_fused(rnn, monkeypatch)


def test_patched_class_never_gets_a_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ManualRNN, "step", lambda self, *args: scaled(*args))
    assert_never_fused(ManualRNN(2, 3), monkeypatch)


@pytest.mark.parametrize("phi", [torch.sin, nn.PReLU(), lambda a: torch.softmax(a, -1)])
def test_callable_nonlinearity_never_gets_a_fused_kernel(
    phi: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_never_fused(ManualRNN(2, 3, nonlinearity=phi), monkeypatch)


def test_state_of_the_wrong_shape_is_refused() -> None:
    rnn = ManualRNN(2, 3, nonlinearity=lambda a: a.mean(0, keepdim=True))
    with pytest.raises(RuntimeError, match=r"must return a state of shape \(4, 3\), got \(1, 3\)"):
        rnn(torch.randn(1, 4, 2))


@pytest.mark.parametrize("phi", [torch.tanh, nn.Tanh(), F.tanh])
def test_callable_tanh_is_tanh(phi: Callable[[Tensor], Tensor]) -> None:
    builtin, _ = twins(2, 3, 2, bidirectional=True, dtype=torch.float64)
    own = ManualRNN(2, 3, 2, bidirectional=True, dtype=torch.float64, nonlinearity=phi)
    own.load_state_dict(builtin.state_dict())
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert_same(gradients(own, x, hx), gradients(builtin, x, hx))


def test_module_as_nonlinearity_is_shown_trained_and_kept() -> None:
    phi = nn.PReLU()
    rnn = ManualRNN(2, 3, nonlinearity=phi)
    assert repr(rnn) == "ManualRNN(\n  2, 3\n  (nonlinearity): PReLU(num_parameters=1)\n)"
    assert list(rnn.state_dict())[-1] == "nonlinearity.weight"
    rnn(torch.randn(4, 1, 2))[0].sum().backward()
    assert phi.weight.grad is not None
    rnn.reset_parameters()
    assert phi.weight.item() == 0.25


def test_function_as_nonlinearity_is_shown_pickled_and_copied() -> None:
    rnn, x = ManualRNN(2, 3, nonlinearity=torch.sin), torch.randn(4, 1, 2)
    assert repr(rnn) == "ManualRNN(2, 3, nonlinearity=sin)"
    assert list(rnn.state_dict()) == list(nn.RNN(2, 3).state_dict())
    for other in (pickle.loads(pickle.dumps(rnn)), copy.deepcopy(rnn)):
        assert torch.equal(other(x)[0], rnn(x)[0])


def test_a_step_that_wraps_the_builtin_one_is_the_users() -> None:
    """`functools.wraps` copies what marks the builtin one."""

    def doubled(step: Any) -> Any:
        @wraps(step)
        def run(self: Any, *args: Tensor) -> Tensor:
            return 2 * step(self, *args)

        return run

    class Doubled(ManualRNN):
        step = doubled(ManualRNN.step)

    rnn, x = Doubled(3, 4), torch.randn(5, 2, 3)
    expected, h = [], torch.zeros(2, 4)
    w_ih, w_hh, b_ih, b_hh = rnn.parameters()
    for x_t in x:
        h = 2 * torch.tanh(x_t @ w_ih.t() + b_ih + h @ w_hh.t() + b_hh)
        expected.append(h)
    for run in (rnn, torch.compile(rnn, backend="eager")):
        torch.testing.assert_close(run(x)[0], torch.stack(expected))
