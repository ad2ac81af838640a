r"""What happens inside: every state and pre-activation, and what they tell about gradients.

    a_t = x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh        the pre-activation
    h_t = phi(a_t)                                         the state

`trace` gives them as tensors in the graph; the functions after it are pure functions of tensors. Pictures
of both are in `manual_rnn.pictures`. Letters: `T` steps, `B` batch, `H` hidden size, `L` layers, `D`
directions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .kernels import reference
from .kernels.phi import PHI
from .kernels.walk import Walk
from .module import ManualRNN
from .recurrence import OwnStep, Phi, Weights, project

__all__ = [
    "Pass",
    "Trace",
    "eigenvalues",
    "gradient_norms",
    "lyapunov_exponents",
    "saturation",
    "spectral_radius",
    "step_jacobians",
    "trace",
]


@dataclass(frozen=True)
class Pass:
    """One layer in one direction of time.

    The tuples have one tensor for each step, `(B, H)`, in the order of the input; of packed or nested
    input the sequences that have this step, the longest first.

    Attributes:
        name: "layer 0", or with two directions "layer 0 forward" and "layer 0 backward".
        reverse: whether time runs from the last step to the first.
        weight_hh: `(H, H)`.
        start: the states before the first step, `(B, H)`.
        preactivations: $a_t$. Of an overridden `step` the same sum, as a plain network would have it at
            this state; it then lies beside the path from the states to the output, not on it.
        states: $h_t$.
    """

    name: str
    reverse: bool
    weight_hh: Tensor
    start: Tensor
    preactivations: tuple[Tensor, ...]
    states: tuple[Tensor, ...]

    def walk(self, sequence: int = 0) -> list[Tensor]:
        """The states of every step that a sequence has, in the order in which they came about."""
        alive = [h for h in self.states if len(h) > sequence]
        return alive[::-1] if self.reverse else alive


@dataclass(frozen=True)
class Trace:
    """`output` and `h_n` as the module returns them, and the `L * D` passes in the order of `h_n`."""

    output: Any
    h_n: Tensor
    passes: tuple[Pass, ...]


def trace(rnn: ManualRNN, input: Tensor | PackedSequence, hx: Tensor | None = None) -> Trace:
    r"""Run `rnn` step by step and keep what it computes on the way.

    The values are those of the reference kernel to the last bit, whichever kernel was asked for. Every
    tensor is part of the graph, even where all weights are frozen, so that `torch.autograd.grad(loss,
    trace.passes[0].states)` gives the gradient of `loss` with respect to every $h_t$.

    Args:
        input, hx: as `rnn` takes them, in any layout.

    Raises:
        TypeError: for another module; `ManualRNN.from_builtin` takes an `nn.RNN`, and of a compiled
            module `_orig_mod` is the one to trace.
    """
    if not isinstance(rnn, ManualRNN):
        raise TypeError(f"expected a ManualRNN, got {type(rnn).__name__}")
    passes: list[Pass] = []
    watched = rnn.__new__(_watched_by(type(rnn), passes))  # the same parameters, modules and hooks
    vars(watched).update(vars(rnn))
    output, h_n = watched(input, hx)
    return Trace(output, h_n, tuple(passes))


def _watched_by(kind: type[ManualRNN], passes: list[Pass]) -> type[ManualRNN]:
    """`kind`, with layers that keep what they compute in `passes`."""

    def run_layer(
        input: Tensor, hx: Tensor, weights: Sequence[Weights], phi: Phi, batch_sizes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        layer = len(passes) // len(weights)
        outputs, last = [], []
        for reverse, (h0, group) in enumerate(zip(hx.unbind(0), weights, strict=True)):
            walk = Walk(0, bool(reverse), batch_sizes)
            name = f"layer {layer}" + (" backward" if reverse else " forward") * (len(weights) - 1)
            out, h = _watch(name, passes, input, h0, group, phi, walk)
            outputs.append(out)
            last.append(h)
        return torch.cat(outputs, dim=-1), torch.stack(last)

    class Watched(kind):  # type: ignore[misc, valid-type]
        def _run(self, *args: Any) -> tuple[Tensor, Tensor]:
            return super()._run(*args[:-1], run_layer)

    Watched.__name__ = kind.__name__
    return Watched


def _watch(
    name: str, passes: list[Pass], input: Tensor, h0: Tensor, weights: Weights, phi: Phi, walk: Walk
) -> tuple[Tensor, Tensor]:
    """`recurrence.run_direction`, by the reference, which also adds a `Pass`."""
    start = h0 if h0.requires_grad else h0.detach().requires_grad_()
    seen = _Watch(weights, phi if isinstance(phi, str) else phi(h0))
    gates = seen.gates(input)
    states, last = reference.scan(seen.step, gates, start, walk) if input.size(0) else (gates, start)
    before, after = tuple(walk.in_time(seen.preactivations)), tuple(walk.in_time(seen.states))
    passes.append(Pass(name, walk.reverse, weights[1], start, before, after))
    return states, last


class _Watch:
    """The step of one pass, which keeps what it computes, in the order of its calls."""

    def __init__(self, weights: Weights, phi: str | OwnStep) -> None:
        self.w_ih, self.w_hh, self.bias_ih, self.bias_hh = weights
        self.phi = phi
        self.preactivations: list[Tensor] = []
        self.states: list[Tensor] = []

    def gates(self, input: Tensor) -> Tensor:
        if isinstance(self.phi, str):
            return F.linear(input, self.w_ih, self.bias_ih)
        return project(input, self.w_ih, self.bias_ih, self.bias_hh)

    def step(self, gates: Tensor, hidden: Tensor) -> Tensor:
        builtin = isinstance(self.phi, str)
        a = gates + F.linear(hidden, self.w_hh, self.bias_hh if builtin else None)
        h = PHI[self.phi].apply(a) if isinstance(self.phi, str) else self.phi(gates, hidden, self.w_hh)
        self.preactivations.append(a)
        self.states.append(h)
        return h


def gradient_norms(loss: Tensor, states: Sequence[Tensor]) -> Tensor:
    r"""$\lVert \partial\,loss / \partial h_t \rVert_2$ over all entries of each state; `(T,)`.

    Where it falls or grows exponentially with the distance from the loss, gradients vanish or explode:
    Bengio, Simard and Frasconi 1994; Pascanu, Mikolov and Bengio 2013. A state that `loss` doesn't
    depend on has norm 0. The graph is kept.
    """
    grads = torch.autograd.grad(loss, list(states), retain_graph=True, materialize_grads=True)
    return torch.stack([torch.linalg.vector_norm(g) for g in grads])


def saturation(
    preactivation: Tensor, phi: Callable[[Tensor], Tensor] = torch.tanh, floor: float = 0.1
) -> Tensor:
    r"""The share of entries with $|\phi'(a)| <$ `floor`, which pass on less than that of their gradient.

    For tanh and the default they are those with $|h| > 0.949$, for ReLU those that are off. After Glorot
    and Bengio 2010, who watch activations approach their asymptotes.

    Args:
        preactivation: of any shape; of several steps, stack or concatenate them.
        phi: elementwise.
    """
    slope = torch.func.grad(lambda a: phi(a).sum())(preactivation.detach())
    return (slope.abs() < floor).double().mean()


def spectral_radius(weight_hh: Tensor) -> Tensor:
    r"""$\rho(W) = \max_i |\lambda_i(W)|$ of `(..., H, H)`.

    Below 1 a linear network forgets, above 1 it explodes: Jaeger 2001; Pascanu, Mikolov and Bengio 2013.
    """
    return eigenvalues(weight_hh).abs().amax(-1)


def eigenvalues(weight_hh: Tensor) -> Tensor:
    """Complex, `(..., H)`; computed in float32 at least, since no half precision is known to LAPACK."""
    return torch.linalg.eigvals(weight_hh.to(torch.promote_types(weight_hh.dtype, torch.float32)))


@torch.enable_grad()
def step_jacobians(run: Pass, sequence: int = 0) -> Tensor:
    r"""$J_t = \partial h_t / \partial h_{t-1}$ of one sequence, in the order of its steps; `(T, H, H)`.

    By reverse-mode differentiation of each step, so it holds for a `step` of your own too.
    """
    after = run.walk(sequence)
    before = [run.start, *after[:-1]]
    rows = torch.eye(run.start.size(-1), dtype=run.start.dtype, device=run.start.device)
    jacobians = [
        torch.autograd.grad(h[sequence], h_before, rows, is_grads_batched=True, retain_graph=True)[0]
        for h_before, h in zip(before, after, strict=True)
    ]
    return torch.stack([jacobian[:, sequence] for jacobian in jacobians])


def lyapunov_exponents(jacobians: Tensor, warm_up: int = 0) -> Tensor:
    r"""The Lyapunov exponents of a trajectory, per step, the largest first; `(H,)` in float64.

    $$Q_t R_t = J_t Q_{t-1}, \qquad \lambda_i = \frac{1}{T} \sum_t \log |R_{t,ii}|$$

    from a random orthonormal $Q_0$. The largest is the rate at which the distance of two neighbouring
    states grows (above 0, chaos) or shrinks. By Benettin, Galgani, Giorgilli and Strelcyn 1980; for
    recurrent networks Engelken, Wolf and Abbott 2023 (arXiv 2006.02427). Cost: T matrix products and QRs.

    Args:
        jacobians: $J_1 \dots J_T$, `(T, H, H)`, as `step_jacobians` gives them.
        warm_up: first steps that turn $Q$ towards the leading directions and aren't counted.

    Raises:
        ValueError: if no step is left to count.
    """
    T, H = jacobians.shape[:2]
    if not 0 <= warm_up < T:
        raise ValueError(f"warm_up: expected 0 to {T - 1} for {T} steps, got {warm_up}")
    jacobians = jacobians.detach().double()
    start = torch.randn(H, H, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, growth = torch.linalg.qr(start.to(jacobians.device))[0], []
    for jacobian in jacobians:
        q, r = torch.linalg.qr(jacobian @ q)
        growth.append(r.diagonal().abs().log())
    return torch.stack(growth[warm_up:]).mean(0).sort(descending=True).values
