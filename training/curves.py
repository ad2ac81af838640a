r"""The picture of a run: the twins' losses, how well they do the task, how far their gradients part."""

from collections.abc import Callable
from math import ceil, isfinite
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .datamodule import Task
from .history import History

POINTS = 120
LOOKS = {"builtin": ("nn.RNN", "tab:blue", "-", 2.5), "manual": ("ManualRNN", "tab:orange", "--", 1.2)}


def draw_run(history: History, task: Task, tolerance: float, path: Path) -> None:
    """Writes the picture: losses, the task's metric, and each parameter's parting, over the steps."""
    figure = Figure(figsize=(9, 9.5), layout="constrained")
    losses, metric, partings = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 3))
    draw_losses(losses, history)
    draw_scores(metric, history, task)
    draw_partings(partings, history, tolerance)
    figure.suptitle(f"nn.RNN and ManualRNN side by side on {type(task).__name__}")
    figure.savefig(path, dpi=120)


def draw_losses(axes: Axes, history: History) -> None:
    for name, values in history.losses.items():
        label, colour, style, width = LOOKS[name]
        steps, means = stretches(history.steps, values, np.mean)
        axes.plot(steps, means, style, color=colour, linewidth=width, label=label)
    if all(v > 0 for values in history.losses.values() for v in values):
        axes.set_yscale("log")
    axes.set(title="Training loss", ylabel="loss")
    if history.losses:
        axes.legend()
    axes.grid(alpha=0.3, which="both")


def draw_scores(axes: Axes, history: History, task: Task) -> None:
    """The validations, between what guessing gives and where the task counts as solved."""
    for name, values in history.scores.items():
        label, colour, style, width = LOOKS[name]
        axes.plot(history.validated, values, style, color=colour, linewidth=width, marker=".", label=label)
    for level, name, colour in (task.chance, "chance", "tab:gray"), (task.solved, "solved", "tab:green"):
        axes.axhline(level, color=colour, linestyle=":", label=f"{name}: {level:.3g}")
    if not task.more_is_better and all(v > 0 for values in history.scores.values() for v in values):
        axes.set_yscale("log")
    better = "more" if task.more_is_better else "less"
    axes.set(title=f"Validation {task.metric} ({better} is better)", ylabel=task.metric)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


def draw_partings(axes: Axes, history: History, tolerance: float) -> None:
    count = len(history.partings)
    colours = (
        colormaps["tab10"](range(count)) if count <= 10 else colormaps["turbo"](np.linspace(0, 1, count))
    )
    widths = np.linspace(3, 1, count)  # of two equal lines both are seen
    for (name, values), colour, width in zip(history.partings.items(), colours, widths, strict=True):
        steps, largest = stretches(history.compared, values, np.max)
        largest[largest == 0] = np.nan  # a log axis has no zero
        axes.plot(steps, largest, ".-", color=colour, linewidth=width, markersize=3, label=name)
    if isfinite(tolerance) and tolerance > 0:
        axes.axhline(tolerance, color="black", linestyle="--", label=f"tolerance: {tolerance:g}")
    axes.set_yscale("log")
    if not any(v > 0 for values in history.partings.values() for v in values):
        axes.text(0.5, 0.5, "every difference is exactly 0", transform=axes.transAxes, ha="center")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=4, fontsize="small")
    axes.set(
        title="How far ManualRNN's gradient is from nn.RNN's at the same weights (largest of each stretch)"
    )
    axes.set(xlabel="optimizer step", ylabel="times round-off")
    axes.grid(alpha=0.3)


def stretches(
    steps: list[int], values: list[float], reduce: Callable[[np.ndarray], float]
) -> tuple[np.ndarray, np.ndarray]:
    """At most ``POINTS`` points, each ``reduce`` of one stretch of equally many, at its last step."""
    size = max(1, ceil(len(steps) / POINTS))
    parts = [slice(first, first + size) for first in range(0, len(steps), size)]
    return np.array([steps[p][-1] for p in parts]), np.array([reduce(np.array(values[p])) for p in parts])
