r"""Pictures of the benchmark: ratio against hidden size, time against the number of steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cases import Case
from .timing import seconds_per_call

__all__ = ["plot_ratio_by_hidden_size", "plot_time_by_steps"]

NAMES = ["nn.RNN", "torch", "native", "limit"]
HIDDEN_SIZES = [16, 32, 64, 128, 256, 512]
STEPS = [1, 10, 100, 1000]


def plot_ratio_by_hidden_size(folder: Path, seconds: float) -> Path:
    """`nn.RNN` / contender at T=100, B=32, I=H."""
    measured = _measure([Case(100, 32, H, H) for H in HIDDEN_SIZES], seconds)

    def draw(axes: Any, times: list[dict[str, float]]) -> None:
        for name in NAMES[1:]:
            ratios = [row["nn.RNN"] / row[name] for row in times]
            axes.plot(
                HIDDEN_SIZES, ratios, marker="o", label="one matrix product" if name == "limit" else name
            )
        axes.axhline(1.0, color="grey", linewidth=1, label="nn.RNN")
        axes.set(xscale="log", yscale="log", xlabel="hidden size H (T=100, B=32, I=H)")
        axes.set_ylabel("times faster than nn.RNN")
        axes.set_xticks(HIDDEN_SIZES, [str(H) for H in HIDDEN_SIZES])
        axes.set_yticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        axes.minorticks_off()

    return _picture(folder / "ratio_by_hidden_size.png", measured, draw)


def plot_time_by_steps(folder: Path, seconds: float) -> Path:
    """Milliseconds of a call at B=32, I=H=64."""
    measured = _measure([Case(T, 32, 64, 64) for T in STEPS], seconds)

    def draw(axes: Any, times: list[dict[str, float]]) -> None:
        for name in NAMES:
            milliseconds = [1e3 * row[name] for row in times]
            axes.plot(
                STEPS, milliseconds, marker="o", label="one matrix product" if name == "limit" else name
            )
        axes.set(xscale="log", yscale="log", xlabel="steps T (B=32, I=H=64)", ylabel="time of a call in ms")

    return _picture(folder / "time_by_steps.png", measured, draw)


def _measure(cases: list[Case], seconds: float) -> dict[str, list[dict[str, float]]]:
    return {
        mode: [seconds_per_call(case, NAMES, mode == "training step", seconds) for case in cases]
        for mode in ("forward", "training step")
    }


def _picture(path: Path, measured: dict[str, Any], draw: Callable[[Any, Any], None]) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (mode, times) in zip(figure.subplots(1, 2), measured.items(), strict=True):
        draw(axes, times)
        axes.set_title(mode)
        axes.grid(alpha=0.3)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
