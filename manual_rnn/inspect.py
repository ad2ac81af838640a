r"""What happens inside: every state and pre-activation, and what they tell about gradients.

    a_t = x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh        the pre-activation
    h_t = phi(a_t)                                         the state

`trace` (in `tracing.py`) gives them as tensors in the graph; the functions here are pure functions of
tensors. Pictures of both are in `manual_rnn.pictures`. Letters: `T` steps, `H` hidden size.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import validation
from .tracing import Pass, Trace, trace, trace_of, traces_in_graph

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


def gradient_norms(loss: Tensor, states: Sequence[Tensor]) -> Tensor:
    r"""$\lVert \partial\,loss / \partial h_t \rVert_2$ over all entries of each state; `(T,)`.

    Where it falls or grows exponentially with the distance from the loss, gradients vanish or explode:
    Bengio, Simard and Frasconi 1994; Pascanu, Mikolov and Bengio 2013. A state that `loss` doesn't
    depend on, one of a later step say, has norm 0. The graph is kept.

    Args:
        loss: a scalar, computed from what one `trace` returned.
        states: of the same trace; or tensors of a loop of your own.

    Raises:
        TypeError: for anything but a tensor and a sequence of tensors.
        RuntimeError: if `loss` was computed from another run than the states, a call of the module say: it
            doesn't depend on them, nor on anything else of their run.

    Example:
        >>> from manual_rnn import ManualRNN
        >>> seen = trace(ManualRNN(3, 4), torch.randn(5, 1, 3))
        >>> gradient_norms(seen.output[-1].sum(), seen.passes[0].states)[-1].item()  # of h_T: four ones
        2.0
    """
    validation.check_kind("loss", loss, Tensor)
    validation.check_kind("states", states, Sequence)
    for h in states:
        validation.check_kind("states", h, Tensor)
    grads = torch.autograd.grad(loss, list(states), retain_graph=True, allow_unused=True)
    unreached = {trace_of(h) for h, g in zip(states, grads, strict=True) if g is None}
    if any(g is not None for g in grads):
        unreached.discard(None)  # states of nobody's run, some of which the loss depends on
    if unreached - traces_in_graph(loss):
        raise RuntimeError(
            "states: expected those of the run that loss was computed from, got some of which nothing is in "
            "its graph; compute loss from the output, h_n or states of the same trace"
        )
    pairs = zip(states, grads, strict=True)
    return torch.stack([torch.linalg.vector_norm(torch.zeros_like(h) if g is None else g) for h, g in pairs])


def saturation(
    preactivation: Tensor, phi: Callable[[Tensor], Tensor] = torch.tanh, floor: float = 0.1
) -> Tensor:
    r"""The share of entries with $|\phi'(a)| <$ `floor`, which pass on less than that of their gradient.

    For tanh and the default they are those with $|h| > 0.949$, for ReLU those that are off. After Glorot
    and Bengio 2010, who watch activations approach their asymptotes.

    Args:
        preactivation: of any shape; of several steps, stack or concatenate them.
        phi: elementwise.

    Raises:
        TypeError: for anything but a tensor, a function and a number.

    Example:
        >>> saturation(torch.tensor([-4.0, 0.0, 0.5, 4.0])).item()
        0.5
    """
    validation.check_kind("preactivation", preactivation, Tensor)
    validation.check_function("phi", phi)
    validation.check_kind("floor", floor, float, int)
    slope = torch.func.grad(lambda a: phi(a).sum())(preactivation.detach())
    return (slope.abs() < floor).double().mean()


def spectral_radius(weight_hh: Tensor) -> Tensor:
    r"""$\rho(W) = \max_i |\lambda_i(W)|$ of `(..., H, H)`.

    Below 1 a linear network forgets, above 1 it explodes: Jaeger 2001; Pascanu, Mikolov and Bengio 2013.

    Raises:
        TypeError, ValueError: for anything but square matrices.

    Example:
        >>> spectral_radius(torch.diag(torch.tensor([1.0, -2.0]))).item()
        2.0
    """
    return eigenvalues(weight_hh).abs().amax(-1)


def eigenvalues(weight_hh: Tensor) -> Tensor:
    """Complex, `(..., H)`; computed in float32 at least, since no half precision is known to LAPACK.

    Raises:
        TypeError, ValueError: for anything but square matrices.

    Example:
        >>> eigenvalues(torch.diag(torch.tensor([0.5, -1.0]))).real.sort().values
        tensor([-1.0000,  0.5000])
    """
    validation.check_kind("weight_hh", weight_hh, Tensor)
    if weight_hh.dim() < 2 or weight_hh.size(-1) != weight_hh.size(-2):
        raise ValueError(f"weight_hh: expected shape (..., H, H), got {tuple(weight_hh.shape)}")
    return torch.linalg.eigvals(weight_hh.to(torch.promote_types(weight_hh.dtype, torch.float32)))


@torch.enable_grad()
def step_jacobians(run: Pass, sequence: int = 0) -> Tensor:
    r"""$J_t = \partial h_t / \partial h_{t-1}$ of one sequence, in the order of its steps; `(T, H, H)`.

    By reverse-mode differentiation of each step, so it holds for a `step` of your own too.

    Raises:
        TypeError, ValueError: for anything but a pass and a sequence in its batch.

    Example:
        >>> from manual_rnn import ManualRNN
        >>> rnn = ManualRNN(3, 4)
        >>> (run,) = trace(rnn, torch.randn(5, 1, 3)).passes
        >>> J, h = step_jacobians(run), torch.stack(run.walk())[:, 0]  # (T, H, H) and (T, H)
        >>> by_hand = (1 - h**2).unsqueeze(-1) * rnn.weight_hh_l0  # diag(1 - h_t^2) W_hh
        >>> torch.allclose(J, by_hand, atol=1e-6)
        True
    """
    validation.check_kind("run", run, Pass)
    after = run.walk(sequence)
    before = [run.start, *after[:-1]]
    rows = torch.eye(run.start.size(-1), dtype=run.start.dtype, device=run.start.device)
    jacobians = []
    for h_before, h in zip(before, after, strict=True):
        (found,) = torch.autograd.grad(
            h[sequence], h_before, rows, is_grads_batched=True, retain_graph=True, allow_unused=True
        )
        jacobians.append(rows.new_zeros(len(rows), *h_before.shape) if found is None else found)
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
        TypeError, ValueError: for anything but Jacobians, or if no step is left to count.

    Example:
        >>> half = torch.eye(2).expand(10, 2, 2) / 2  # distances halve at each step
        >>> bool((lyapunov_exponents(half) - torch.tensor(0.5).log()).abs().max() < 1e-6)
        True
    """
    validation.check_kind("jacobians", jacobians, Tensor)
    validation.check_kind("warm_up", warm_up, int)
    if jacobians.dim() != 3 or jacobians.size(1) != jacobians.size(2):
        raise ValueError(f"jacobians: expected shape (T, H, H), got {tuple(jacobians.shape)}")
    T, H = jacobians.shape[:2]
    if not 0 <= warm_up < T:
        raise ValueError(f"warm_up: expected 0 to {T - 1} for {T} steps, got {warm_up}")
    jacobians = jacobians.detach().double()
    drawn = torch.Generator("cpu").manual_seed(0)
    start = torch.randn(H, H, dtype=torch.float64, device="cpu", generator=drawn)
    q, growth = torch.linalg.qr(start.to(jacobians.device))[0], []
    for jacobian in jacobians:
        q, r = torch.linalg.qr(jacobian @ q)
        growth.append(r.diagonal().abs().log())
    return torch.stack(growth[warm_up:]).mean(0).sort(descending=True).values
