r"""Weights replaced, computed, tied, pruned or overwritten: an attribute is what runs and trains."""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, gradients, kernels_for
from internals import KernelName
from loop import Loop
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune

from manual_rnn import ManualRNN, use_kernel

SIZE = 4


def build(kind: type, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return kind(SIZE, SIZE, 2, dtype=torch.float64)


def draw(*shape: int, seed: int = 2) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64)


INPUT = draw(5, 3, SIZE)


# Idioms: each takes a module, changes where its weights come from, and returns what is then called


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).T


class Low(nn.Module):
    """A recurrent weight of rank 1, from two vectors."""

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        return torch.outer(u, v)

    def right_inverse(self, w: Tensor) -> tuple[Tensor, Tensor]:
        return w[:, 0].clone(), w[0].clone()


class WeightDrop(nn.Module):
    """The recipe of AWD-LSTM: the raw weight outside, a dropped plain tensor inside, new at every call."""

    def __init__(self, rnn: Any, names: tuple[str, ...] = ("weight_hh_l0", "weight_hh_l1")) -> None:
        super().__init__()
        self.rnn, self.names = rnn, names
        rnn.flatten_parameters = lambda: None
        for name in names:
            raw = getattr(rnn, name)
            del rnn._parameters[name]
            rnn.register_parameter(name + "_raw", nn.Parameter(raw.data))

    def forward(self, *args: Any) -> Any:
        for name in self.names:
            raw = getattr(self.rnn, name + "_raw").clone()  # in eval, dropout returns the tensor it is given
            setattr(self.rnn, name, F.dropout(raw, 0.5, self.training))
        return self.rnn(*args)


def parametrized(*steps: tuple[str, Callable[..., Any]]) -> Callable[[Any], Any]:
    def apply(rnn: Any) -> Any:
        for name, parametrization in steps:
            parametrization(rnn, name)
        return rnn

    return apply


def symmetric(rnn: Any, name: str) -> None:
    parametrize.register_parametrization(rnn, name, Symmetric())


def low_rank(rnn: Any, name: str) -> None:
    parametrize.register_parametrization(rnn, name, Low(), unsafe=True)


def pruned(rnn: Any) -> Any:
    prune.l1_unstructured(rnn, "weight_hh_l0", 0.4)
    prune.ln_structured(rnn, "weight_ih_l1", 0.5, n=2, dim=0)
    return prune.random_unstructured(rnn, "bias_hh_l1", 2)


def pruned_twice(rnn: Any) -> Any:
    prune.l1_unstructured(rnn, "weight_hh_l0", 0.25)
    return prune.l1_unstructured(rnn, "weight_hh_l0", 0.5)


def pruned_globally(rnn: Any) -> Any:
    weights = [(rnn, f"weight_hh_l{layer}") for layer in range(2)]
    prune.global_unstructured(weights, prune.L1Unstructured, amount=0.5)
    return rnn


def pruned_for_good(rnn: Any) -> Any:
    return prune.remove(prune.l1_unstructured(rnn, "weight_hh_l0", 0.5), "weight_hh_l0")


def assigned(rnn: Any) -> Any:
    rnn.weight_hh_l0 = nn.Parameter(0.3 * draw(SIZE, SIZE))
    rnn.bias_ih_l1 = nn.Parameter(draw(SIZE))
    return rnn


def layers_tied(rnn: Any) -> Any:
    rnn.weight_hh_l1 = rnn.weight_hh_l0
    rnn.bias_ih_l0 = rnn.bias_hh_l0
    return rnn


def tied_to_another_module(rnn: Any) -> Any:
    head = nn.Linear(SIZE, SIZE, dtype=torch.float64)
    head.weight = rnn.weight_hh_l0
    return nn.Sequential(rnn, Second(head))


class Second(nn.Module):
    """Put a layer behind the output of an RNN."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, both: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.head(both[0]), both[1]


def as_a_buffer(rnn: Any) -> Any:
    value = 0.5 * rnn.weight_hh_l0.detach()
    del rnn.weight_hh_l0
    rnn.register_buffer("weight_hh_l0", value)
    return rnn


def computed_once(rnn: Any) -> Any:
    """A plain tensor with a graph, as a hypernetwork makes it."""
    rnn.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    value = rnn.weight_hh_l0.detach()
    del rnn.weight_hh_l0

    def compute(module: Any, args: Any) -> None:
        module.weight_hh_l0 = module.scale * value.to(module.scale)

    rnn.register_forward_pre_hook(compute)
    return rnn


IDIOMS: dict[str, Callable[[Any], Any]] = {
    "parametrizations.weight_norm": parametrized(
        ("weight_hh_l0", parametrizations.weight_norm), ("weight_ih_l1", parametrizations.weight_norm)
    ),
    "parametrizations.spectral_norm": parametrized(("weight_hh_l1", parametrizations.spectral_norm)),
    "parametrizations.orthogonal": parametrized(("weight_hh_l0", parametrizations.orthogonal)),
    "one parametrization upon another": parametrized(
        ("weight_hh_l0", symmetric), ("weight_hh_l0", parametrizations.spectral_norm)
    ),
    "rank 1, from two vectors": parametrized(("weight_hh_l0", low_rank)),
    "old weight_norm": parametrized(("weight_hh_l0", nn.utils.weight_norm)),
    "old spectral_norm": parametrized(("weight_hh_l0", nn.utils.spectral_norm)),
    "pruned": pruned,
    "pruned twice": pruned_twice,
    "pruned globally": pruned_globally,
    "pruned for good": pruned_for_good,
    "assigned": assigned,
    "layers tied": layers_tied,
    "tied to another module": tied_to_another_module,
    "weight drop": WeightDrop,
    "a buffer": as_a_buffer,
    "computed at every call": computed_once,
}

OLD_STYLE = [  # torch deprecates both in favour of parametrizations; old models still carry them
    pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*spectral_norm. is deprecated:FutureWarning"),
]
pytestmark = OLD_STYLE


def trained(model: nn.Module, steps: int = 5) -> dict[str, Tensor]:
    """Parameters and losses after a few steps."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), []
    for step in range(steps):
        torch.manual_seed(step)
        output, h_n = model(INPUT)
        loss = (output - 0.5).square().mean() + h_n.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses), **{k: v.detach() for k, v in model.named_parameters()}}


@pytest.mark.parametrize("kernel", ["default", "reference"])
@pytest.mark.parametrize("name", IDIOMS)
def test_every_gradient_is_that_of_the_definition(name: str, kernel: KernelName) -> None:
    expected = gradients(IDIOMS[name](build(Loop)), INPUT)
    with use_kernel(kernel):
        assert_same(gradients(IDIOMS[name](build(ManualRNN)), INPUT), expected)


# In training, each reading of such a weight moves its power iteration on, and `nn.RNN` reads several times.
ITERATED = {"parametrizations.spectral_norm", "one parametrization upon another"}


MODES = [(name, training) for name in IDIOMS for training in {False, name not in ITERATED}]


@pytest.mark.parametrize(("name", "training"), MODES)
def test_nn_rnn_gives_the_same(name: str, training: bool) -> None:
    models = [IDIOMS[name](build(kind)).train(training) for kind in (nn.RNN, ManualRNN)]
    assert_same(gradients(models[1], INPUT), gradients(models[0], INPUT))


@pytest.mark.parametrize("name", IDIOMS)
def test_in_float32(name: str) -> None:
    """Where the native kernel runs, on weights laid out in memory as each idiom leaves them."""
    expected = gradients(IDIOMS[name](build(Loop)).eval(), INPUT)
    found = gradients(IDIOMS[name](build(ManualRNN)).eval().float(), INPUT.float())
    assert_same({key: value.double() for key, value in found.items()}, expected, bound=1e-5)


@pytest.mark.parametrize("name", IDIOMS)
def test_training_goes_where_the_definition_goes(name: str) -> None:
    found, expected = (trained(IDIOMS[name](build(kind))) for kind in (ManualRNN, Loop))
    assert found["losses"][-1] < found["losses"][0]
    assert_same(found, expected, bound=1e-10)


@pytest.mark.parametrize("name", IDIOMS)
def test_every_parameter_left_changes_the_output(name: str) -> None:
    model = IDIOMS[name](build(ManualRNN)).eval()
    for parameter in model.parameters():
        before = model(INPUT)[0]
        with torch.no_grad():
            parameter.add_(draw(*parameter.shape) if parameter.dim() else 1.0)
        assert not torch.allclose(model(INPUT)[0], before)


@pytest.mark.parametrize(
    "name", ["pruned", "assigned", "layers tied", "a buffer", "rank 1, from two vectors"]
)
def test_the_idiom_itself_changes_the_output(name: str) -> None:
    assert not torch.allclose(IDIOMS[name](build(ManualRNN))(INPUT)[0], build(ManualRNN)(INPUT)[0])


@pytest.mark.parametrize("name", IDIOMS)
def test_applied_between_two_calls(name: str) -> None:
    """Nothing of the first call may be remembered."""
    rnn = build(ManualRNN)
    trained(rnn, steps=1)
    judge = build(Loop)
    judge.load_state_dict(rnn.state_dict())
    models = []
    for changed in (rnn, judge):
        torch.manual_seed(0)
        models.append(IDIOMS[name](changed))
    assert_same(gradients(models[0], INPUT), gradients(models[1], INPUT))


@pytest.mark.parametrize("name", [n for n in IDIOMS if n.startswith(("param", "one", "rank", "pruned for"))])
def test_deepcopy_after_a_forward(name: str) -> None:
    """`nn.RNN` can't where a weight is computed: it holds on to the result, which isn't a leaf."""
    for dtype in (torch.float64, torch.float32):
        model, input = IDIOMS[name](build(ManualRNN).to(dtype)).eval(), INPUT.to(dtype).requires_grad_()
        expected = gradients(model, input)
        assert_same(gradients(deepcopy(model), input), expected, bound=0)
    builtin = IDIOMS[name](build(nn.RNN)).eval()
    builtin(INPUT)
    computed = name != "pruned for good"
    with pytest.raises(RuntimeError, match="deepcopy protocol") if computed else nullcontext():
        deepcopy(builtin)


def test_weight_drop_draws_a_new_mask_at_every_call_and_none_in_eval() -> None:
    model = WeightDrop(build(ManualRNN))
    first, second = model(INPUT)[0], model(INPUT)[0]
    assert not torch.allclose(first, second)
    model.eval()
    assert_same({"output": model(INPUT)[0]}, {"output": build(ManualRNN)(INPUT)[0]})


def test_a_wrong_shape_assigned_is_refused_by_name() -> None:
    rnn = build(ManualRNN)
    rnn.weight_hh_l1 = nn.Parameter(draw(SIZE, 1))
    with pytest.raises(RuntimeError, match=r"weight_hh_l1 .*\(4, 4\).*\(4, 1\)"):
        rnn(INPUT)


# functional_call


def replaced(names: list[str]) -> dict[str, Tensor]:
    shapes = {name: parameter.shape for name, parameter in build(nn.RNN).named_parameters()}
    return {k: 0.4 * draw(*shapes[k], seed=i).requires_grad_() for i, k in enumerate(names)}


@pytest.mark.parametrize(
    "names", [["weight_hh_l0"], [n for n, _ in build(nn.RNN).named_parameters()]], ids=len
)
def test_functional_call_uses_and_differentiates_what_it_is_given(names: list[str]) -> None:
    found = {}
    for kind in (nn.RNN, ManualRNN):
        rnn, given = build(kind), replaced(names)
        output, h_n = functional_call(rnn, given, (INPUT,))
        rest = [p for name, p in rnn.named_parameters() if name not in names]
        cotangents = [draw(*output.shape), draw(*h_n.shape)]
        grads = torch.autograd.grad([output, h_n], [*given.values(), *rest], cotangents)
        found[kind] = {str(i): x for i, x in enumerate([output, h_n, *grads])}
        assert_same({"output": rnn(INPUT)[0]}, {"output": build(kind)(INPUT)[0]}, bound=0)
    assert_same(found[ManualRNN], found[nn.RNN])
    assert not torch.allclose(found[ManualRNN]["0"], build(ManualRNN)(INPUT)[0])


def test_functional_call_inside_a_parent_with_tied_weights() -> None:
    outputs = []
    for kind in (nn.RNN, ManualRNN):
        rnn = layers_tied(build(kind))
        model = nn.ModuleDict({"rnn": rnn})
        model.forward = lambda *args, rnn=rnn: rnn(*args)
        given = {"rnn.weight_hh_l0": replaced(["weight_hh_l0"])["weight_hh_l0"]}
        output = functional_call(model, given, (INPUT,), tie_weights=True)[0]
        grad = torch.autograd.grad(output.square().sum(), list(given.values()))[0]
        outputs.append({"output": output, "grad": grad})
    assert_same(outputs[1], outputs[0])


def test_functional_call_of_a_parametrized_module() -> None:
    outputs = []
    for kind in (Loop, ManualRNN):
        rnn = parametrizations.weight_norm(build(kind), "weight_hh_l0")
        given = {"parametrizations.weight_hh_l0.original0": torch.full((SIZE, 1), 0.3, dtype=torch.float64)}
        given["parametrizations.weight_hh_l0.original0"].requires_grad_()
        output = functional_call(rnn, given, (INPUT,))[0]
        grad = torch.autograd.grad(output.square().sum(), list(given.values()))[0]
        outputs.append({"output": output, "grad": grad})
    assert_same(outputs[1], outputs[0])


# Weights overwritten between calls


def through_data(rnn: Any) -> None:
    rnn.weight_hh_l0.data.mul_(-1.0)


def data_replaced(rnn: Any) -> None:
    rnn.weight_hh_l0.data = (0.4 * draw(SIZE, SIZE)).to(rnn.weight_hh_l0)


def in_place(rnn: Any) -> None:
    with torch.no_grad():
        rnn.weight_ih_l1.zero_()
        rnn.bias_hh_l0[1:].fill_(0.3)


def from_a_vector(rnn: Any) -> None:
    vector = nn.utils.parameters_to_vector(rnn.parameters())
    nn.utils.vector_to_parameters(vector.detach().flip(0), rnn.parameters())


def initialised(rnn: Any) -> None:
    torch.manual_seed(5)
    for name, parameter in rnn.named_parameters():
        nn.init.orthogonal_(parameter) if "weight" in name else nn.init.zeros_(parameter)


def copied(rnn: Any) -> None:
    with torch.no_grad():
        for parameter, other in zip(rnn.parameters(), build(nn.RNN, seed=9).parameters(), strict=True):
            parameter.copy_(other)


def replaced_by_others(rnn: Any) -> None:
    rnn.weight_hh_l0.data = torch.eye(SIZE).to(rnn.weight_hh_l0)
    rnn.bias_ih_l0 = nn.Parameter(torch.ones(SIZE).to(rnn.bias_ih_l0))


WRITES = [through_data, data_replaced, in_place, from_a_vector, initialised, copied, replaced_by_others]
RUNS = [("default", torch.float64, 1e-12), *((k, torch.float32, 2e-6) for k in kernels_for(torch.float32))]


@pytest.mark.parametrize(("kernel", "dtype", "bound"), RUNS, ids=str)
@pytest.mark.parametrize("write", WRITES, ids=lambda f: f.__name__)
def test_a_weight_written_between_two_calls_is_seen(
    write: Any, kernel: KernelName, dtype: torch.dtype, bound: float
) -> None:
    """However it was written, `.data` included."""
    found = []
    for kind in (nn.RNN, Loop, ManualRNN):
        rnn = build(kind).to(dtype)
        with use_kernel(kernel):
            before = gradients(rnn, INPUT.to(dtype))["output"]
            write(rnn)
            found.append(gradients(rnn, INPUT.to(dtype)))
        assert not torch.allclose(found[-1]["output"], before)
    assert_same(found[2], found[0], bound)
    assert_same(found[2], found[1], bound)


# Embedding and decoder


class Tied(nn.Module):
    """A language model whose embedding, decoder and first input weight are one Parameter."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.rnn = build(kind)
        self.embedding = nn.Embedding(SIZE, SIZE, dtype=torch.float64)
        self.decoder = nn.Linear(SIZE, SIZE, dtype=torch.float64)
        self.embedding.weight = self.decoder.weight = self.rnn.weight_ih_l0

    def forward(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        words = torch.arange(15).remainder(SIZE).view(5, 3)
        output, h_n = self.rnn(self.embedding(words) * scale)
        return self.decoder(output), h_n


def test_embedding_decoder_and_input_weight_in_one() -> None:
    models = [Tied(kind) for kind in (nn.RNN, ManualRNN)]
    for seed, model in enumerate(models):
        torch.manual_seed(1)
        nn.init.normal_(model.decoder.bias)
        assert len(list(model.parameters())) == 9, seed
    scale = torch.ones((), dtype=torch.float64)
    assert_same(gradients(models[1], scale), gradients(models[0], scale))
