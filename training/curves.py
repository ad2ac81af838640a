r"""Pictures: of a run its losses, its scores and how far its gradients part; of a sweep all its runs."""

from bisect import bisect_right
from collections.abc import Callable
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .datamodule import Task
from .report import NAMES, Record

POINTS = 120
LOOKS: dict[str, dict[str, Any]] = {
    "builtin": {"color": "tab:blue", "linestyle": "-", "linewidth": 3.5},
    "manual": {"color": "tab:orange", "linestyle": "--", "linewidth": 1.4},
}


def draw_run(record: Record, task: Task, path: Path) -> None:
    """Writes the picture: losses, the task's metric, and each parameter's parting, over the steps."""
    figure = Figure(figsize=(9, 9.5), layout="constrained")
    losses, metric, partings = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 3))
    draw_losses(losses, record)
    draw_scores(metric, record, task)
    draw_partings(partings, record)
    figure.suptitle(f"nn.RNN and ManualRNN side by side on {type(task).__name__}")
    figure.savefig(path, dpi=120)


def draw_losses(axes: Axes, record: Record) -> None:
    for name, values in record.losses.items():
        axes.plot(*stretches(record.steps, values, np.mean), label=NAMES[name], **LOOKS[name])
    if all(v > 0 for values in record.losses.values() for v in values):
        axes.set_yscale("log")
    axes.set(title="Training loss", ylabel="loss")
    if record.losses:
        axes.legend()
    axes.grid(alpha=0.3, which="both")


def draw_scores(axes: Axes, record: Record, task: Task) -> None:
    """The validations, between what guessing gives and where the task counts as solved."""
    for name, values in record.scores.items():
        axes.plot(record.validated, values, marker=".", label=NAMES[name], **LOOKS[name])
    for level, name, colour in (task.chance, "chance", "tab:gray"), (task.solved, "solved", "tab:green"):
        axes.axhline(level, color=colour, linestyle=":", label=f"{name}: {level:.3g}")
    more = task.objective.mode == "max"
    if not more and all(v > 0 for values in record.scores.values() for v in values):
        axes.set_yscale("log")
    axes.set(title=f"Validation {task.metric} ({'more' if more else 'less'} is better)", ylabel=task.metric)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


def draw_partings(axes: Axes, record: Record) -> None:
    """How far the gradients at the same weights are apart, one line for each parameter."""
    count, tolerance = len(record.partings), record.tolerance
    colours = colormaps["tab10" if count <= 10 else "turbo"](np.linspace(0, 1, max(count, 10))[:count])
    widths = np.linspace(3, 1, count)  # of two equal lines both are seen
    for (name, values), colour, width in zip(record.partings.items(), colours, widths, strict=True):
        steps, largest = stretches(record.compared, values, np.max)
        largest[largest == 0] = np.nan  # a log axis has no zero
        axes.plot(steps, largest, ".-", color=colour, linewidth=width, markersize=3, label=name)
    if isfinite(tolerance) and tolerance > 0:
        axes.axhline(tolerance, color="black", linestyle="--", label=f"tolerance: {tolerance:g}")
    axes.set_yscale("log")
    if not any(v > 0 for values in record.partings.values() for v in values):
        axes.text(0.5, 0.5, "every difference is exactly 0", transform=axes.transAxes, ha="center")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=4, fontsize="small")
    title = "How far ManualRNN's gradient is from nn.RNN's at the same weights (largest of each stretch)"
    axes.set(title=title, xlabel="optimizer step", ylabel="times round-off")
    axes.grid(alpha=0.3)


def stretches(
    steps: list[int], values: list[float], reduce: Callable[[np.ndarray], float]
) -> tuple[np.ndarray, np.ndarray]:
    """At most ``POINTS`` points, each ``reduce`` of one stretch of equally many, at its last step."""
    size = max(1, ceil(len(steps) / POINTS))
    parts = [slice(first, first + size) for first in range(0, len(steps), size)]
    return np.array([steps[p][-1] for p in parts]), np.array([reduce(np.array(values[p])) for p in parts])


def draw_sweep(runs: list[tuple[str, Record]], metric: str, path: Path) -> None:
    """ManualRNN's validations: a colour for each setting, thin lines for seeds, their mean as a thick one."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    groups = list(dict.fromkeys(name for name, _ in runs))
    colours = colormaps["turbo"]([(i + 0.5) / len(groups) for i in range(len(groups))])
    for group, colour in zip(groups, colours, strict=True):
        records = [record for name, record in runs if name == group]
        for record in records:
            axes.plot(record.validated, record.scores.get("manual", []), ".-", color=colour, lw=0.8)
            axes.plot(record.validated, record.scores.get("builtin", []), "k:", marker=".", ms=2, lw=0.8)
        steps, means = mean_over_seeds(records)
        seeds = f", mean of {len(records)} seeds" if len(records) > 1 else ""
        axes.plot(steps, means, "o-", color=colour, linewidth=2.5, label=f"{group}{seeds}")
    axes.plot([], [], "k:", marker=".", ms=2, linewidth=0.8, label="nn.RNN of each")
    title = "ManualRNN's validations in each run"
    axes.set(title=title, xlabel="optimizer step", ylabel=f"validation {metric}")
    found = [v for _, record in runs for values in record.scores.values() for v in values]
    if found and min(found) > 0 and max(found) > 10 * min(found):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def mean_over_seeds(records: list[Record]) -> tuple[list[int], list[float]]:
    """The mean of ManualRNN's scores, from the first step of all; a run that ended keeps its last one."""
    runs = [(r.validated, r.scores["manual"]) for r in records if "manual" in r.scores]
    first = max((validated[0] for validated, _ in runs), default=0)
    steps = sorted({step for validated, _ in runs for step in validated if step >= first})
    return steps, [float(np.mean([v[bisect_right(at, step) - 1] for at, v in runs])) for step in steps]
