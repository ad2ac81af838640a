r"""Pure functions that compare the gradients of one network with those of another.

    round-off   r   = max(|| g_builtin - g_64 ||,  || g_nudged - g_64 ||)
    parting     d_p = || g_manual,p - g_builtin,p || / r         for one parameter p, in units of r

``g_64`` is the gradient of the same loss at the same weights in float64. So the first term of ``r`` is
what nn.RNN itself loses to its precision. ``g_nudged`` is ``g_64`` once more, with every weight moved at
random by about one unit in its last place: the best that a sound algorithm promises is the exact answer
to such a neighbouring question (backward error analysis, Wilkinson 1963; by random nudges, Parker 1997).
Two terms, because either can by luck be small: over thousands of steps of the tasks here a sound ``d_p``
was up to 17 in units of the first alone and up to 5 in units of both. A ReLU has a kink besides: where
an argument is within round-off of 0 either slope is right, the two give gradients far apart, and a nudge
crosses the kink half of the time; so what is beyond a quarter of the tolerance is judged again by many
nudges. Norms in ``r`` are over all parameters at once.

So the tolerance needs no tuning to the task, the length, the state of the training or the precision,
while a relative difference grows without bound where a gradient cancels (near a minimum, say). In
float32, a gradient wrong by one part in a thousand has a ``d_p`` from hundreds to thousands.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Gradients = Mapping[str, Tensor]
Loss = Callable[[nn.Module], Tensor]
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
    """Whether nn.RNN's own loss or gradients aren't finite; compared is then what is left of them."""


def compare(
    builtin: nn.Module,
    manual: nn.Module,
    loss: Loss,
    exact_loss: Loss,
    nudge_by: float,
    tolerance: float,
    seed: int = 0,
) -> Comparison:
    """Compares the gradients of ``loss`` at the weights of ``builtin``.

    Args:
        builtin: the network whose weights and gradients count as given.
        manual: a network with parameters of the same names, whose own values don't matter.
        loss: of one of them.
        exact_loss: of a network in float64.
        nudge_by: one unit in the last place of the precision that they run in.
        tolerance: the parting of which a quarter makes many nudges judge again.
        seed: of the nudges.

    A parameter whose gradient by ``builtin`` isn't finite says nothing of ``manual``, and is left out.
    """
    same = deepcopy(manual)
    same.load_state_dict(builtin.state_dict())
    loss_given, all_given = gradients(builtin, loss)
    loss_found, all_found = gradients(same, loss)
    names = [name for name, gradient in all_given.items() if gradient.isfinite().all()]
    given, found = only(names, all_given), only(names, all_found)
    exact = deepcopy(builtin).double()

    def judge(nudges: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed)
        networks = [exact, *(nudge(deepcopy(exact), nudge_by, generator) for _ in range(nudges))]
        here, *beside = (only(names, gradients(network, exact_loss)[1]) for network in networks)
        return partings(found, given, round_off(given, here, beside))

    parted = judge(nudges=1)
    if tolerance and not within(parted, tolerance / 4):
        parted = judge(nudges=MANY)
    finite = bool(loss_given.isfinite())
    return Comparison(
        gradient_differences(found, given),
        relative_differences(found, given),
        parted,
        loss=(loss_found - loss_given).abs().item() if finite else 0.0,
        diverged=not finite or len(names) < len(all_given),
    )


def only(names: Iterable[str], gradients: Gradients) -> Gradients:
    """Those of the named parameters."""
    return {name: gradients[name] for name in names}


def gradients(network: nn.Module, loss: Loss) -> tuple[Tensor, dict[str, Tensor]]:
    """The value of ``loss(network)`` and its gradients by name; ``.grad`` isn't touched."""
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    value = loss(network)
    with torch.autocast(value.device.type, enabled=False):  # Lightning's backward is outside of it, too
        found = torch.autograd.grad(value, list(parameters.values()))
    return value.detach(), dict(zip(parameters, found, strict=True))


def gradient_differences(a: Gradients, b: Gradients) -> dict[str, float]:
    """Per parameter the largest absolute difference, ``max |a - b|``. Both must name the same parameters."""
    return {name: largest(a[name] - b[name]) for name in same_names(a, b)}


def relative_differences(a: Gradients, b: Gradients) -> dict[str, float]:
    """Per parameter ``||a - b||`` over the larger of ``||a||`` and ``||b||``; 0 where both are 0."""
    return {
        name: ratio(norm(a[name] - b[name]), max(norm(a[name]), norm(b[name]))) for name in same_names(a, b)
    }


def round_off(builtin: Gradients, exact: Gradients, nudged: Iterable[Gradients]) -> float:
    """The unit ``r`` of this module: how far apart sound computations of these gradients are."""
    return max(distance(g, exact) for g in (builtin, *nudged))


def partings(manual: Gradients, builtin: Gradients, unit: float) -> dict[str, float]:
    """Per parameter ``|| manual - builtin ||`` in units of ``unit`` (see :func:`round_off`)."""
    return {name: ratio(norm(manual[name] - builtin[name]), unit) for name in same_names(manual, builtin)}


def within(partings: Mapping[str, float], tolerance: float) -> bool:
    """Whether all are; NaN is within no tolerance."""
    return all(parting <= tolerance for parting in partings.values())


def same_names(a: Gradients, b: Gradients) -> list[str]:
    if a.keys() != b.keys():
        raise ValueError(f"expected gradients of the same parameters, got {sorted(a)} and {sorted(b)}")
    return list(a)


def largest(x: Tensor) -> float:
    return x.detach().abs().max().item() if x.numel() else 0.0


def norm(x: Tensor) -> float:
    return torch.linalg.vector_norm(x.detach(), dtype=torch.float64).item()


def ratio(part: float, whole: float) -> float:
    if part == 0:
        return 0.0
    return part / whole if whole else float("inf")


def distance(a: Gradients, b: Gradients) -> float:
    """``|| a - b ||`` over all parameters, in float64."""
    return sum(norm(a[name].double() - b[name].double()) ** 2 for name in same_names(a, b)) ** 0.5


def nudge(network: nn.Module, size: float, generator: torch.Generator) -> nn.Module:
    """Moves every weight ``w`` by ``size * w * u``, ``u`` standard normal; returns the network."""
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(1 + size * torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device))
    return network
