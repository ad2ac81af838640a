r"""`vmap` through the module, against the judge run once for each sample or member."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from helpers import assert_same, packed, twins
from loop import CASES, LAYOUTS, NETWORKS, Loop, build, case_id, met_in_pairs, outputs, sample
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, stack_module_state, vmap

from manual_rnn import ManualRNN

V = 3  # the extra axis
TWO = [NETWORKS[0], NETWORKS[-2], NETWORKS[-1]]


def weights(rnn: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in rnn.named_parameters()}


def samples(network: dict, layout: str) -> tuple[Tensor, Tensor]:
    """`V` inputs and states, stacked."""
    inputs, states = zip(*(sample(network, layout, seed) for seed in range(V)), strict=True)
    return torch.stack(inputs), torch.stack(states)


def members(kind: type[nn.Module], network: dict) -> list[nn.Module]:
    rnns = [build(kind, network) for _ in range(V)]
    for number, rnn in enumerate(rnns):
        for p in rnn.parameters():
            p.data.mul_(1 + number / V)
    return rnns


def loss(rnn: nn.Module, layout: str) -> Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]:
    return lambda w, x, h: outputs(rnn, w, x, h, layout).sin().sum()


@pytest.mark.parametrize(
    ("mapped", "layout", "network"), met_in_pairs(["input hx", "input", "hx"], LAYOUTS), ids=case_id
)
def test_extra_batch_axis(mapped, layout, network):
    (inputs, states), manual, judge = (
        samples(network, layout),
        build(ManualRNN, network),
        build(Loop, network),
    )
    dims = tuple(0 if name in mapped.split() else None for name in ("input", "hx"))
    at = lambda x, dim, v: x[v if dim == 0 else 0]  # noqa: E731
    expected = torch.stack(
        [
            outputs(judge, weights(judge), at(inputs, dims[0], v), at(states, dims[1], v), layout)
            for v in range(V)
        ]
    )
    arguments = (x if dim == 0 else x[0] for x, dim in zip((inputs, states), dims, strict=True))
    run = lambda x, h: outputs(manual, weights(manual), x, h, layout)  # noqa: E731
    assert_same({"all": vmap(run, in_dims=dims)(*arguments)}, {"all": expected})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options", [{"in_dims": -1, "out_dims": -1}, {"in_dims": 1}, {"chunk_size": 2}], ids=str
)
def test_axes_and_chunks(layout, options):
    (inputs, states), manual, judge = samples(TWO[1], layout), build(ManualRNN, TWO[1]), build(Loop, TWO[1])
    expected = torch.stack(
        [outputs(judge, weights(judge), x, h, layout) for x, h in zip(inputs, states, strict=True)]
    )
    axis = options.get("in_dims", 0)
    run = vmap(lambda x, h: outputs(manual, weights(manual), x, h, layout), **options)
    found = run(inputs.movedim(0, axis), states.movedim(0, axis)).movedim(options.get("out_dims", 0), 0)
    assert_same({"all": found}, {"all": expected})


@pytest.mark.parametrize(("network", "layout"), CASES, ids=case_id)
def test_gradient_of_each_sample(network, layout):
    (inputs, states), manual, judge = (
        samples(network, layout),
        build(ManualRNN, network),
        build(Loop, network),
    )
    found = vmap(grad(loss(manual, layout)), (None, 0, 0))(weights(manual), inputs, states)
    assert_same(found, _each(grad(loss(judge, layout)), weights(judge), inputs, states))


@pytest.mark.parametrize(("network", "layout"), CASES, ids=case_id)
def test_ensemble(network, layout):
    """Members with weights of their own: outputs, and gradients for weights and a shared input."""
    input, hx = sample(network, layout)
    stacked, _ = stack_module_state(members(ManualRNN, network))
    stacked = {name: p.detach() for name, p in stacked.items()}
    base = build(ManualRNN, network)
    run = lambda w: outputs(base, w, input, hx, layout)  # noqa: E731
    by_all = vmap(grad(loss(base, layout), argnums=(0, 1, 2)), (0, None, None))(stacked, input, hx)
    found = {"outputs": vmap(run)(stacked), **by_all[0], "input": by_all[1], "hx": by_all[2]}
    expected: dict[str, list[Tensor]] = {name: [] for name in found}
    for rnn in members(Loop, network):
        own = weights(rnn)
        gradient = grad(loss(rnn, layout), argnums=(0, 1, 2))(own, input, hx)
        once = {"outputs": outputs(rnn, own, input, hx, layout), **gradient[0]}
        for name, value in {**once, "input": gradient[1], "hx": gradient[2]}.items():
            expected[name].append(value)
    assert_same(found, {name: torch.stack(values) for name, values in expected.items()})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("network", TWO, ids=case_id)
def test_nested(network, layout):
    """Every member's gradient of every sample, and members of members."""
    inputs, states = samples(network, layout)
    stacked = {name: p.detach() for name, p in stack_module_state(members(ManualRNN, network))[0].items()}
    base = build(ManualRNN, network)
    of_samples = vmap(grad(loss(base, layout)), (None, 0, 0))
    found = vmap(of_samples, (0, None, None))(stacked, inputs, states)
    each = [_each(grad(loss(rnn, layout)), weights(rnn), inputs, states) for rnn in members(Loop, network)]
    expected = {name: torch.stack([member[name] for member in each]) for name in found}
    assert_same(found, expected)
    twice = {name: torch.stack([p, 2 * p]) for name, p in stacked.items()}
    run = lambda w: outputs(base, w, inputs[0], states[0], layout)  # noqa: E731
    judge = build(Loop, network)
    both = [
        [outputs(judge, _at(twice, m, n), inputs[0], states[0], layout) for n in range(V)] for m in (0, 1)
    ]
    assert_same({"all": vmap(vmap(run))(twice)}, {"all": torch.stack([torch.stack(row) for row in both])})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("network", TWO, ids=case_id)
def test_derivatives_inside_and_around(network, layout):
    """`vmap` of a Hessian and of a Jacobian, and the gradient of a `vmap` of gradients."""
    (inputs, states), manual, judge = (
        samples(network, layout),
        build(ManualRNN, network),
        build(Loop, network),
    )

    def penalty(rnn: nn.Module, over: Callable) -> Callable:
        slope = grad(loss(rnn, layout), argnums=1)
        return lambda w: over(lambda x, h: slope(w, x, h).square().sum())(inputs, states).sum()

    found = grad(penalty(manual, vmap))(weights(manual))
    assert_same(found, grad(penalty(judge, stacked))(weights(judge)))
    for transform in (hessian, jacrev):
        found, expected = (
            over(transform(partial(loss(rnn, layout), weights(rnn)), argnums=1))(inputs, states)
            for rnn, over in ((manual, vmap), (judge, stacked))
        )
        assert_same({"all": found}, {"all": expected})


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_dropout_between_layers(randomness):
    """Each sample has masks of its own, or all the same; gradients see the masks that the outputs saw."""
    network = {"num_layers": 2, "bidirectional": True, "nonlinearity": "tanh", "dropout": 0.5}
    input, hx = sample(network, "batched")
    inputs, states = input.expand(V, *input.shape), hx.expand(V, *hx.shape)
    results = []
    for kind in (ManualRNN, Loop):
        rnn = build(kind, network).train()
        run = lambda w, x, h, rnn=rnn: outputs(rnn, w, x, h, "batched")  # noqa: E731
        torch.manual_seed(3)
        out = vmap(run, (None, 0, 0), randomness=randomness)(weights(rnn), inputs, states)
        torch.manual_seed(3)
        slope = vmap(grad(loss(rnn, "batched")), (None, 0, 0), randomness=randomness)
        results.append({"outputs": out, **slope(weights(rnn), inputs, states)})
    found, expected = results
    assert_same(found, expected)
    assert torch.equal(found["outputs"][0], found["outputs"][1]) == (randomness == "same")


def test_ensemble_of_models():
    """The recipe of torch's own tutorial: a model around the network, in a list."""

    class Around(nn.Module):
        def __init__(self, kind: type[nn.Module], seed: int) -> None:
            super().__init__()
            self.rnn = build(kind, NETWORKS[0], batch_first=True)
            self.head = nn.Linear(3, 1, dtype=torch.float64)
            torch.manual_seed(seed)
            for p in self.parameters():
                p.data.normal_()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    x = torch.randn(4, 5, 2, dtype=torch.float64)
    models = [Around(ManualRNN, seed) for seed in range(V)]
    state, buffers = stack_module_state(models)
    base = Around(ManualRNN, 0).to("meta")
    found = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(state, buffers)
    expected = torch.stack([Around(Loop, seed)(x) for seed in range(V)])
    assert_same({"all": found.detach()}, {"all": expected.detach()})
    found.sin().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in state.values())


def stacked(f: Callable) -> Callable:
    """`vmap` without `vmap`."""
    return lambda xs, hs: torch.stack([f(x, h) for x, h in zip(xs, hs, strict=True)])


def _at(stacked: dict[str, Tensor], *place: int) -> dict[str, Tensor]:
    return {name: p[place] for name, p in stacked.items()}


def _each(gradient: Callable, w: dict, inputs: Tensor, states: Tensor) -> dict[str, Tensor]:
    """The gradients of the samples, one by one, stacked."""
    rows = [gradient(w, x, h) for x, h in zip(inputs, states, strict=True)]
    return {name: torch.stack([row[name] for row in rows]) for name in w}


@pytest.mark.parametrize("randomness", ["error", "different", "same"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("steps", [1, 4, 12])
def test_dropout_of_a_network_that_is_not_mapped(steps: int, layout: str, randomness: str) -> None:
    """`nn.RNN` draws once, whatever is mapped around it."""
    x, y = torch.randn(steps, 2, 3), torch.randn(V)
    found = []
    for rnn in twins(3, 4, 3, dropout=0.5, bidirectional=True):
        torch.manual_seed(1)
        given = packed(x, [steps, 1]) if layout == "packed" else x
        run = lambda y: rnn(given)[1] * y  # noqa: B023, E731
        out = vmap(run, randomness=randomness)(y)
        (slope,) = torch.autograd.grad(out.sin().sum(), rnn.all_weights[0][0])
        found.append({"out": out, "slope": slope})
    assert_same(found[1], found[0], 2e-6)
