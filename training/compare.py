r"""Pure functions that compare the gradients of one network with those of another.

    round-off   r   = max(|| g_builtin - g_64 ||,  || g_nudged - g_64 ||)
    parting     d_p = || g_manual,p - g_builtin,p || / r         for one parameter p, in units of r

``g_64`` is the gradient of the same loss at the same weights in float64. So the first term of ``r`` is
what nn.RNN itself loses to its precision. ``g_nudged`` is ``g_64`` once more, with every weight moved at
random by about one unit in its last place: the best that a sound algorithm promises is the exact answer
to such a neighbouring question (backward error analysis, Wilkinson 1963; by random nudges, Parker 1997).
Two terms, because either can by luck be small: over thousands of steps a sound ``d_p`` was up to 17 in
units of the first alone and up to 5 in units of both. A ReLU has a kink besides: where an argument is
within round-off of 0 either slope is right, and a nudge crosses the kink half of the time; so what is
beyond a quarter of the tolerance is judged again by many nudges. Norms in ``r`` are over all parameters.

So the tolerance needs no tuning to the task or the precision, while a relative difference grows without
bound where a gradient cancels. In float32, a gradient wrong by one part in a thousand has a ``d_p`` from
hundreds to thousands.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import hypot
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

Gradients = Mapping[str, Tensor]
Weights = Mapping[str, Tensor]
"""All that a network holds, its buffers too; what is trained requires a gradient."""
Loss = Callable[[nn.Module], Tensor]
LossOnBatch = Callable[[nn.Module, Any], Tensor]
MANY = 20
"""Nudges for a second judgement: a kink that each misses half of the time escapes them once in a million."""


@dataclass
class Comparison:
    """One step's gradients of ManualRNN against nn.RNN's at the same weights, by parameter name."""

    absolute: dict[str, float]
    relative: dict[str, float]
    partings: dict[str, float]
    """In units of round-off."""
    loss: float
    """The absolute difference of the losses."""
    diverged: bool = False
    """Whether nn.RNN's own loss or gradients aren't finite; the finite ones are compared."""


def compare(
    builtin: nn.Module,
    manual: nn.Module,
    loss: LossOnBatch,
    batch: Any,
    tolerance: float = 16.0,
    seed: int = 0,
) -> Comparison:
    r"""Compares the gradients of ``loss`` at the weights of ``builtin``; the networks stay as they are.

    A parameter whose gradient by ``builtin`` isn't finite says nothing of ``manual``, and is left out.

    Args:
        builtin: the network whose weights and gradients count as given.
        manual: a network with parameters of the same names, whose own values don't matter.
        loss: ``loss(network, batch)``, of either network; of both in float64 where the batch is in float64.
        batch: tensors, in any nesting of tuples, lists and dictionaries.
        tolerance: the parting of which a quarter makes many nudges judge again.
        seed: of the nudges, and of what the networks draw (dropout), which is the same for all.

    Raises:
        ValueError: where the networks have parameters of different names.
    """
    own, others = (sorted(dict(network.named_parameters())) for network in (builtin, manual))
    if own != others:
        raise ValueError(f"expected networks with parameters of the same names, got {own} and {others}")
    device, weights = next(builtin.parameters()).device, weights_of(builtin)
    exact_weights, exact_batch = doubled(weights), doubled(batch)

    def of(network: nn.Module, weights: Weights, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        with same_random_numbers(seed, device):
            return gradients(network, lambda network: loss(network, batch), weights)

    (loss_given, given), (loss_found, found) = (of(network, weights, batch) for network in (builtin, manual))
    finite = {name: gradient for name, gradient in given.items() if gradient.isfinite().all()}

    def judge(nudges: int) -> dict[str, float]:
        generator, size = torch.Generator().manual_seed(seed), unit_in_the_last_place(builtin)
        every = [exact_weights, *(nudged(exact_weights, size, generator) for _ in range(nudges))]
        exact, *beside = (of(builtin, each, exact_batch)[1] for each in every)
        return partings(found, finite, round_off(finite, exact, beside))

    parted = judge(nudges=1)
    if tolerance and not all(parting <= tolerance / 4 for parting in parted.values()):
        parted = judge(nudges=MANY)
    loss_is_finite = bool(loss_given.isfinite())
    return Comparison(
        {name: largest(found[name] - gradient) for name, gradient in finite.items()},
        relative_differences(found, finite),
        parted,
        loss=(loss_found - loss_given).abs().item() if loss_is_finite else 0.0,
        diverged=not loss_is_finite or len(finite) < len(given),
    )


def weights_of(network: nn.Module) -> Weights:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def doubled(value: Any) -> Any:
    """Floating-point tensors in float64, all else as it is."""

    def double(x: Tensor) -> Tensor:
        return x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x

    return apply_to_collection(value, Tensor, double)


def nudged(weights: Weights, size: float, generator: torch.Generator) -> Weights:
    """With every trained weight ``w`` moved by ``size * w * u``, ``u`` standard normal."""
    moved = dict(weights)
    for name, w in weights.items():
        if w.requires_grad:
            u = torch.randn(w.shape, generator=generator, dtype=w.dtype).to(w.device)
            moved[name] = (w * (1 + size * u)).detach().requires_grad_()
    return moved


class LossOf(nn.Module):
    """The loss of a network as a module, for ``torch.func.functional_call``."""

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self) -> Tensor:
        return self.loss(self.network)


def gradients(
    network: nn.Module, loss: Loss, weights: Weights | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The value of ``loss(network)`` and its gradients by name, at other weights than the network's own too.

    Detached tensors take the weights' places: neither ``.grad`` nor a hook of a parameter is touched, and
    modules that can't be copied (pruned ones, say) can be compared.
    """
    weights = weights or weights_of(network)
    leaves = {name: w.detach().requires_grad_() for name, w in weights.items() if w.requires_grad}
    fixed = {name: w.detach().clone() for name, w in weights.items() if not w.requires_grad}
    called_with = {f"network.{name}": w for name, w in {**leaves, **fixed}.items()}
    value = torch.func.functional_call(LossOf(network, loss), called_with, ())
    with torch.autocast(value.device.type, enabled=False):  # Lightning's backward is outside of it, too
        found = torch.autograd.grad(value, list(leaves.values()))
    return value.detach(), dict(zip(leaves, found, strict=True))


def unit_in_the_last_place(network: nn.Module) -> float:
    """One unit in the last place of the precision that the network runs in, autocast considered."""
    weight = next(network.parameters())
    mixed = torch.is_autocast_enabled(weight.device.type)
    return torch.finfo(torch.get_autocast_dtype(weight.device.type) if mixed else weight.dtype).eps


@contextmanager
def same_random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """What is drawn within depends on the seed alone, and what is drawn afterwards doesn't depend on it."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed keeps a traceback of each call
        if on_gpu:
            torch.cuda.manual_seed(seed)
        yield


def relative_differences(a: Gradients, b: Gradients) -> dict[str, float]:
    """Per parameter of ``b`` ``||a - b||`` over the larger of ``||a||`` and ``||b||``; 0 where both are 0."""
    return {name: ratio(norm(a[name] - b[name]), max(norm(a[name]), norm(b[name]))) for name in b}


def round_off(builtin: Gradients, exact: Gradients, nudged: Iterable[Gradients]) -> float:
    """The unit ``r`` of this module: how far apart sound computations of the gradients in ``builtin`` are."""
    return max(hypot(*(norm(g[n].double() - exact[n].double()) for n in builtin)) for g in (builtin, *nudged))


def partings(manual: Gradients, builtin: Gradients, unit: float) -> dict[str, float]:
    """Per parameter of ``builtin`` ``|| manual - builtin ||`` in units of ``unit``."""
    return {name: ratio(norm(manual[name] - builtin[name]), unit) for name in builtin}


def largest(x: Tensor) -> float:
    return x.detach().abs().max().item() if x.numel() else 0.0


def norm(x: Tensor) -> float:
    return torch.linalg.vector_norm(x.detach(), dtype=torch.float64).item()


def ratio(part: float, whole: float) -> float:
    return 0.0 if part == 0 else part / whole if whole else float("inf")
