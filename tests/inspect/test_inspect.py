"""Seeing inside: traces against the module, numbers against known answers."""

import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from examples import LAYOUTS, LeakyRNN, VariationalRNN, ZoneoutRNN
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_sequence

from manual_rnn import ManualRNN, use_kernel
from manual_rnn.inspect import (
    Pass,
    gradient_norms,
    lyapunov_exponents,
    saturation,
    spectral_radius,
    step_jacobians,
    trace,
)

KINDS: dict[str, Callable[..., ManualRNN]] = {
    "tanh": ManualRNN,
    "relu": partial(ManualRNN, nonlinearity="relu"),
    "no bias": partial(ManualRNN, bias=False),
    "softsign": partial(ManualRNN, nonlinearity=F.softsign),
    "leaky": LeakyRNN,
    "zoneout": ZoneoutRNN,
    "variational": VariationalRNN,
    "weight norm": lambda *args, **kwargs: weight_norm(ManualRNN(*args, **kwargs), "weight_hh_l1"),
}


def seeded(run: Callable[..., Any], *args: Any) -> Any:
    torch.manual_seed(3)
    return run(*args)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_output_state_and_gradients_are_the_reference_kernels_to_the_last_bit(kind: str, layout: str) -> None:
    lengths, pack, unpack = LAYOUTS[layout]
    batch_first = layout in ("batch_first", "nested")
    rnn = KINDS[kind](2, 3, 2, bidirectional=True, batch_first=batch_first, dropout=0.5)
    before = vars(rnn).copy()
    x = [torch.randn(n, 2) for n in lengths]
    hx = torch.randn(4, 3) if layout == "unbatched" else torch.randn(4, len(lengths), 3)
    with use_kernel("reference"):
        output, h_n = seeded(rnn, pack(x), hx)
    seen = seeded(trace, rnn, pack(x), hx)

    found, expected = [*unpack(seen.output), seen.h_n], [*unpack(output), h_n]
    cotangents = [torch.randn_like(x) for x in expected]
    found += torch.autograd.grad(found, list(rnn.parameters()), cotangents)
    expected += torch.autograd.grad(expected, list(rnn.parameters()), cotangents)
    assert all(torch.equal(left, right) for left, right in zip(found, expected, strict=True))
    assert vars(rnn) == before, "the module itself isn't touched"


def test_passes_hold_every_state_and_preactivation() -> None:
    rnn = ManualRNN(2, 3, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    seen = trace(rnn, x)
    names = ["layer 0 forward", "layer 0 backward", "layer 1 forward", "layer 1 backward"]
    assert [run.name for run in seen.passes] == names
    below = [x, torch.cat([torch.stack(run.states) for run in seen.passes[:2]], -1)]
    for index, run in enumerate(seen.passes):
        w_ih, w_hh, b_ih, b_hh = rnn.all_weights[index]
        states = torch.stack([*run.states, run.start] if run.reverse else [run.start, *run.states])
        before = states[1:] if run.reverse else states[:-1]
        expected = below[index // 2] @ w_ih.T + before @ w_hh.T + b_ih + b_hh
        torch.testing.assert_close(torch.stack(run.preactivations), expected, atol=1e-12, rtol=0)
        assert torch.equal(torch.stack(run.states), torch.tanh(torch.stack(run.preactivations)))
        assert torch.equal(run.walk()[-1], seen.h_n[index])
    both = torch.cat([torch.stack(run.states) for run in seen.passes[2:]], -1)
    assert torch.equal(both, seen.output)


@pytest.mark.parametrize("kind", [LeakyRNN, VariationalRNN, ZoneoutRNN])
def test_preactivation_of_an_own_recurrence_is_that_of_a_plain_network(kind: type[ManualRNN]) -> None:
    rnn, x = kind(2, 3, dtype=torch.float64), torch.randn(4, 2, 2, dtype=torch.float64)
    run = trace(rnn, x).passes[0]
    before = torch.stack([run.start, *run.states[:-1]])
    w_ih, w_hh, b_ih, b_hh = rnn.all_weights[0]
    plain = x @ w_ih.T + b_ih + before @ w_hh.T + b_hh
    torch.testing.assert_close(torch.stack(run.preactivations), plain, atol=1e-12, rtol=0)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradient_of_a_loss_with_respect_to_any_state(frozen: bool) -> None:
    """By h_t all later steps are meant too: it equals a run that begins at h_t."""
    rnn, x = ManualRNN(2, 3, dtype=torch.float64).requires_grad_(not frozen), torch.randn(6, 2, 2).double()
    weight = torch.randn(6, 2, 3, dtype=torch.float64)
    seen = trace(rnn, x)
    states = [seen.passes[0].start, *seen.passes[0].states]
    found = torch.autograd.grad((weight * seen.output).sum(), states)
    for t, state in enumerate(states[:-1]):
        h = state.detach().requires_grad_()
        later = (weight[t:] * rnn(x[t:], h.unsqueeze(0))[0]).sum()
        expected = torch.autograd.grad(later, h)[0] + (weight[t - 1] if t else 0)
        torch.testing.assert_close(found[t], expected, atol=1e-12, rtol=0)
    assert torch.equal(found[-1], weight[-1])


def test_packed_rows_are_the_sequences_alive_longest_first() -> None:
    rnn = ManualRNN(2, 3, bidirectional=True, dtype=torch.float64)
    sequences = [torch.randn(n, 2, dtype=torch.float64) for n in (2, 4, 1)]
    packed = trace(rnn, pack_sequence(sequences, enforce_sorted=False))
    for index, run in enumerate(packed.passes):
        assert [len(h) for h in run.states] == [3, 2, 1, 1]
        for row, b in enumerate((1, 0, 2)):
            alone = trace(rnn, sequences[b]).passes[index]
            assert len(run.walk(row)) == len(sequences[b])
            found, expected = (torch.stack([h[i] for h in r.walk(i)]) for r, i in ((run, row), (alone, 0)))
            torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
            torch.testing.assert_close(step_jacobians(run, row), step_jacobians(alone), atol=1e-12, rtol=0)


def test_no_steps_leave_no_states() -> None:
    seen = trace(ManualRNN(2, 3), torch.randn(0, 1, 2))
    assert seen.output.shape == (0, 1, 3)
    assert seen.passes[0].states == ()


def test_hooks_and_an_own_forward_run() -> None:
    class Doubled(ManualRNN):
        def forward(self, input: Any, hx: Any = None) -> Any:
            return super().forward(2 * input, hx)

    rnn, x, calls = Doubled(2, 3), torch.randn(4, 1, 2), []
    rnn.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(trace(rnn, x).output, nn.Module.__call__(rnn, x)[0])
    assert len(calls) == 2


def test_only_a_manual_rnn_is_traced() -> None:
    builtin: Any = nn.RNN(2, 3)
    with pytest.raises(TypeError, match="expected a ManualRNN, got RNN"):
        trace(builtin, torch.randn(4, 1, 2))


def scaled_identity(scale: float, T: int, H: int = 3) -> Pass:
    """The ReLU network h_t = scale * h_{t-1}, from positive states."""
    rnn = ManualRNN(1, H, nonlinearity="relu", dtype=torch.float64)
    rnn.reset_parameters("identity")
    rnn.all_weights[0][1].data *= scale
    return trace(rnn, torch.zeros(T, 1, dtype=torch.float64), torch.ones(1, H).double()).passes[0]


def random_net(gain: float, T: int, H: int) -> Pass:
    """Autonomous tanh network with weights of variance gain^2 / H."""
    torch.manual_seed(0)
    rnn = ManualRNN(1, H, bias=False, dtype=torch.float64)
    nn.init.normal_(rnn.all_weights[0][1], std=gain / math.sqrt(H))
    return trace(rnn, torch.zeros(T, 1, dtype=torch.float64), torch.randn(1, H).double()).passes[0]


def test_a_loss_of_another_run_has_no_gradient_norms() -> None:
    """Not of a call, not of another trace, not with an input in the graph that both share."""
    rnn, embedding = ManualRNN(3, 4, 2, bidirectional=True), nn.Embedding(9, 3)
    x: Any
    for x in (torch.randn(5, 2, 3), torch.randn(5, 2, 3, requires_grad=True), embedding(torch.arange(9))):
        first, second = trace(rnn, x), trace(rnn, x)
        for states in (run.states for run in first.passes):
            for other in (rnn(x)[0], second.h_n, rnn.all_weights[0][0], x.sum() + rnn(x)[1]):
                with pytest.raises(RuntimeError, match="expected those of the run that loss was computed"):
                    gradient_norms(other.sum(), states)
            assert gradient_norms(first.output.sum(), states).bool().all()
        mixed = [first.passes[0].states[0], second.passes[0].states[0]]
        with pytest.raises(RuntimeError, match="expected those of the run"):
            gradient_norms(first.output.sum(), mixed)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", [ManualRNN, LeakyRNN])
def test_a_state_that_the_loss_does_not_depend_on_has_norm_zero(kind: type[ManualRNN], frozen: bool) -> None:
    """Later steps, the other direction, a layer above; alone or beside others."""
    rnn = kind(3, 4, 2, bidirectional=True).requires_grad_(not frozen)
    seen = trace(rnn, torch.randn(5, 2, 3))
    forward, backward, above, _ = (run.states for run in seen.passes)
    assert gradient_norms(forward[2].sum(), forward).bool().tolist() == [True] * 3 + [False] * 2
    assert gradient_norms(backward[2].sum(), backward).bool().tolist() == [False] * 2 + [True] * 3
    for states in (forward[3:], backward, above, above[:1]):
        assert not gradient_norms(forward[2].sum(), states).any()
    first = seen.passes[0].preactivations[0]
    assert not gradient_norms(first.sum(), forward).any()


def test_gradient_norms_of_a_loop_of_your_own() -> None:
    h = torch.ones(2, requires_grad=True)
    states = [h := h * 2 for _ in range(4)]
    norms = gradient_norms(states[1].sum(), states)
    assert norms.bool().tolist() == [True, True, False, False]
    with pytest.raises(RuntimeError, match="expected those of the run"):
        gradient_norms(states[1].sum(), [each[:1] for each in states])


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.25])
def test_gradient_norm_of_a_scaled_identity_is_a_power_of_the_distance(scale: float) -> None:
    states = scaled_identity(scale, T=6).states
    norms = gradient_norms(states[4].sum(), states)
    powers = [math.sqrt(3) * scale**k for k in (4, 3, 2, 1, 0)]
    torch.testing.assert_close(norms, torch.tensor([*powers, 0.0], dtype=torch.float64))


def test_saturation_is_the_share_of_small_slopes() -> None:
    a = torch.tensor([[0.0, 2.0], [-3.0, 0.5]])
    assert saturation(a) == 0.5
    assert saturation(a, floor=0.05) == 0.25
    assert saturation(a, torch.relu) == 0.5
    at = math.atanh(math.sqrt(0.9))  # where the slope is 0.1 and |h| = 0.949
    assert saturation(torch.tensor([at + 1e-3, at - 1e-3, -at - 1e-3, -at + 1e-3])) == 0.5
    with torch.no_grad():
        assert saturation(a) == 0.5


def rotation(angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def test_spectral_radius() -> None:
    nilpotent = torch.tensor([[0.0, 5.0], [0.0, 0.0]], dtype=torch.float64)
    both = spectral_radius(torch.stack([0.9 * rotation(1.0), nilpotent]))
    torch.testing.assert_close(both, torch.tensor([0.9, 0.0], dtype=torch.float64))
    assert spectral_radius(torch.diag(torch.tensor([1.0, -2.0])).bfloat16()) == 2


def test_jacobian_of_tanh_and_of_a_leaky_step() -> None:
    for kind, leak in ((ManualRNN, 1.0), (LeakyRNN, LeakyRNN.alpha)):
        rnn = kind(2, 3, dtype=torch.float64)
        run = trace(rnn, torch.randn(5, 4, 2, dtype=torch.float64)).passes[0]
        slopes = torch.stack([1 - a[2].tanh() ** 2 for a in run.preactivations])
        expected: Any = (1 - leak) * torch.eye(3, dtype=torch.float64) + leak * slopes.unsqueeze(
            2
        ) * run.weight_hh
        torch.testing.assert_close(step_jacobians(run, 2), expected, atol=1e-12, rtol=0)
        with torch.no_grad():  # as an evaluation loop calls it
            torch.testing.assert_close(step_jacobians(run, 2), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.1])
def test_lyapunov_exponents_of_a_scaled_identity(scale: float) -> None:
    found = lyapunov_exponents(step_jacobians(scaled_identity(scale, T=20)))
    torch.testing.assert_close(
        found, torch.full((3,), math.log(scale), dtype=torch.float64), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize(("matrix", "expected"), [
    (torch.diag(torch.tensor([0.3, -1.5, 0.9])), [1.5, 0.9, 0.3]),
    (0.7 * rotation(0.4), [0.7, 0.7]),
    (torch.tensor([[0.5, 4.0], [0.0, -0.8]]), [0.8, 0.5]),
], ids=["diagonal", "rotation", "far from normal"])  # fmt: skip
def test_lyapunov_exponents_of_one_matrix_are_the_logs_of_its_moduli(
    matrix: Tensor, expected: list[float]
) -> None:
    found = lyapunov_exponents(matrix.expand(150, *matrix.shape), warm_up=100)
    torch.testing.assert_close(found, torch.tensor(expected).double().log(), atol=1e-6, rtol=0)
    assert abs(found[0] - spectral_radius(matrix).log()) < 1e-6


def test_largest_lyapunov_exponent_of_a_cycle_is_that_of_its_product_in_order() -> None:
    torch.manual_seed(0)
    first, second, third = cycle = torch.rand(3, 4, 4, dtype=torch.float64) ** 4
    found = lyapunov_exponents(cycle.repeat(100, 1, 1), warm_up=150)[0]
    expected, other = (spectral_radius(w).log() / 3 for w in (third @ second @ first, first @ second @ third))
    assert abs(found - expected) < 1e-9 < 1e-3 < abs(expected - other)


def test_lyapunov_exponents_of_short_trajectories_are_in_order_too() -> None:
    for jacobian in torch.randn(20, 1, 4, 4):
        found = lyapunov_exponents(jacobian)
        assert torch.equal(found, found.sort(descending=True).values)
        assert abs(found.sum() - torch.linalg.slogdet(jacobian[0].double())[1]) < 1e-12


def test_resting_tanh_net_has_the_log_of_its_spectral_radius() -> None:
    rnn = ManualRNN(1, 8, bias=False, dtype=torch.float64)
    run = trace(rnn, torch.zeros(300, 1, dtype=torch.float64)).passes[0]
    found = lyapunov_exponents(step_jacobians(run), warm_up=100)[0]
    assert abs(found - spectral_radius(run.weight_hh).log()) < 0.01


def test_contracting_net_forgets_at_its_lyapunov_exponent() -> None:
    run = random_net(gain=0.4, T=150, H=8)
    found = lyapunov_exponents(step_jacobians(run))[0].item()
    assert found < torch.linalg.matrix_norm(run.weight_hh, 2).log().item() < 0
    assert abs(found - spectral_radius(run.weight_hh).log().item()) < 0.02


def test_strong_random_weights_make_chaos() -> None:
    """Sompolinsky, Crisanti and Sommers 1988: gain above 1. Neighbouring states part at this rate."""
    run = random_net(gain=3.0, T=150, H=60)
    found = lyapunov_exponents(step_jacobians(run), warm_up=70)[0].item()
    h = run.states[49].detach()
    near, far = h.clone(), h + 1e-12 * torch.randn_like(h)
    distance = []
    for _ in range(100):
        near, far = (torch.tanh(x @ run.weight_hh.detach().T) for x in (near, far))
        distance.append(torch.linalg.vector_norm(far - near).item())
    grown = math.log(distance[-1] / distance[19]) / 80
    assert distance[-1] < 1e-3, "neighbours still"
    assert found > 0.1
    assert abs(found - grown) < 0.1 * found


def test_dead_net_forgets_everything_at_once() -> None:
    jacobians = torch.zeros(4, 2, 2)
    assert torch.equal(lyapunov_exponents(jacobians), torch.full((2,), -math.inf).double())


@pytest.mark.parametrize("warm_up", [-1, 4, 5])
def test_lyapunov_exponents_need_a_step(warm_up: int) -> None:
    with pytest.raises(ValueError, match=f"warm_up: expected 0 to 3 for 4 steps, got {warm_up}"):
        lyapunov_exponents(torch.zeros(4, 2, 2), warm_up)


@pytest.mark.slow
def test_importing_loads_no_matplotlib_and_hides_no_standard_module() -> None:
    code = """
import manual_rnn.inspect, manual_rnn.pictures, inspect, sys
assert "matplotlib" not in sys.modules
assert inspect is not manual_rnn.inspect and inspect.signature
assert callable(manual_rnn.inspect.trace)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_default_device_changes_nothing() -> None:
    rnn, input = ManualRNN(4, 6), torch.randn(5, 3, 4)

    def looked_into() -> list[Tensor]:
        seen = trace(rnn, input)
        jacobians = step_jacobians(seen.passes[0])
        return [seen.output, jacobians, lyapunov_exponents(jacobians), spectral_radius(jacobians)]

    expected = looked_into()
    with torch.device("meta"):
        found = looked_into()
    assert all(map(torch.equal, found, expected))
