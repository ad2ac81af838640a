r"""Pictures of the benchmark: ratio against hidden size, time against the number of steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cases import Case
from .timing import MODES, cpu_clock, measure

NAMES = ["nn.RNN", "torch", "native", "limit"]
HIDDEN_SIZES = [16, 32, 64, 128, 256, 512]
LABELS = {"limit": "the processor's peak"}
STEPS = [1, 10, 100, 1000]


def plot_ratio_by_hidden_size(folder: Path, seconds: float, quick: bool = False) -> Path:
    """`nn.RNN` / contender at T=100, B=32, I=H; three sizes if quick."""
    sizes = HIDDEN_SIZES[: 3 if quick else None]

    def draw(axes: Any, times: list[dict[str, float]]) -> None:
        for name in NAMES[1:]:
            ratios = [row["nn.RNN"] / row[name] for row in times]
            axes.plot(sizes[: len(ratios)], ratios, marker="o", label=LABELS.get(name, name))
        axes.axhline(1.0, color="grey", linewidth=1, label="nn.RNN")
        axes.set(xscale="log", yscale="log", xlabel="hidden size H (T=100, B=32, I=H)")
        axes.set_ylabel("times faster than nn.RNN")
        axes.set_xticks(sizes, [str(H) for H in sizes])
        axes.set_yticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        axes.minorticks_off()

    return _picture(folder / "ratio_by_hidden_size.png", [Case(100, 32, H, H) for H in sizes], seconds, draw)


def plot_time_by_steps(folder: Path, seconds: float, quick: bool = False) -> Path:
    """Milliseconds of a call at B=32, I=H=64; three lengths if quick."""
    steps = STEPS[: 3 if quick else None]

    def draw(axes: Any, times: list[dict[str, float]]) -> None:
        for name in NAMES:
            milliseconds = [1e3 * row[name] for row in times]
            axes.plot(steps[: len(milliseconds)], milliseconds, marker="o", label=LABELS.get(name, name))
        axes.set(xscale="log", yscale="log", xlabel="steps T (B=32, I=H=64)", ylabel="time of a call in ms")

    return _picture(folder / "time_by_steps.png", [Case(T, 32, 64, 64) for T in steps], seconds, draw)


def _picture(path: Path, cases: list[Case], seconds: float, draw: Callable[[Any, Any], None]) -> Path:
    """Measures case after case, and draws the picture anew with each: what was measured stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    measured: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for case in cases:
        for mode, times in measured.items():
            times.append(measure(case, "float32", mode, NAMES, seconds, cpu_clock)["seconds"])
        _write(path, measured, draw)
    return path


def _write(path: Path, measured: dict[str, Any], draw: Callable[[Any, Any], None]) -> None:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise SystemExit("pictures need matplotlib: pip install 'manual_rnn[plot]'") from None

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (mode, times) in zip(figure.subplots(1, 2), measured.items(), strict=True):
        draw(axes, times)
        axes.set_title(mode)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
