r"""The picture of a run: the twins' losses and, below, how far the gradients of each parameter differ."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.history import History

POINTS = 120
LOOKS = {"builtin": ("nn.RNN", "tab:blue", "-", 2.5), "manual": ("ManualRNN", "tab:orange", "--", 1.2)}


def draw_run(history: History, path: Path) -> None:
    """Both loss curves on one axis; below, each parameter's gradient difference over steps on a log axis."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    losses, differences = figure.subplots(2, 1, sharex=True)
    draw_losses(losses, history)
    draw_differences(differences, history)
    figure.savefig(path, dpi=120)


def draw_losses(axes: Axes, history: History) -> None:
    for name, values in history.losses.items():
        label, colour, style, width = LOOKS[name]
        steps, means = stretches(history.steps, values, np.mean)
        axes.plot(steps, means, style, color=colour, linewidth=width, label=label)
    if all(v > 0 for values in history.losses.values() for v in values):
        axes.set_yscale("log")
    axes.set(title="Training loss of the twins", ylabel="loss")
    axes.legend()
    axes.grid(alpha=0.3, which="both")


def draw_differences(axes: Axes, history: History) -> None:
    if len(history.differences) > 10:
        axes.set_prop_cycle(color=colormaps["tab20"](np.arange(20)))
    for name, values in history.differences.items():
        steps, largest = stretches(history.compared, values, np.max)
        largest[largest == 0] = np.nan  # a log axis has no zero
        axes.plot(steps, largest, ".-", linewidth=1, markersize=3, label=name)
    if any(v > 0 for values in history.differences.values() for v in values):
        axes.set_yscale("log")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "every difference is exactly 0", transform=axes.transAxes, ha="center")
    axes.set(title="Gradient of ManualRNN against nn.RNN at the same weights")
    axes.set(xlabel="optimizer step", ylabel="largest |difference|")
    axes.grid(alpha=0.3)


def stretches(
    steps: list[int], values: list[float], reduce: Callable[[np.ndarray], float]
) -> tuple[np.ndarray, np.ndarray]:
    """At most ``POINTS`` points: each is ``reduce`` of one stretch of steps, drawn at its last step."""
    parts = np.array_split(np.arange(len(steps)), min(len(steps), POINTS))
    return np.array([steps[p[-1]] for p in parts]), np.array([reduce(np.array(values)[p]) for p in parts])
