r"""Pictures of what `manual_rnn.inspect.trace` sees. They need matplotlib.

Each function draws into a new matplotlib Figure, or into the Axes that it is given, and returns the Figure;
`write_pictures` writes all of them as PNG, SVG or PDF.
"""

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .inspect import Pass, eigenvalues, gradient_norms, spectral_radius, step_jacobians, trace
from .module import ManualRNN
from .validation import check_kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["eigenvalue_picture", "gradient_picture", "state_picture", "write_pictures"]

FORMATS = ("png", "svg", "pdf")


@torch.enable_grad()
def write_pictures(
    rnn: ManualRNN,
    input: Tensor | PackedSequence,
    folder: str | Path,
    hx: Tensor | None = None,
    format: str = "png",
) -> list[Path]:
    """Write `states.png`, `gradients.png` and `eigenvalues.png` of one run; return their paths.

    Args:
        rnn: runs as it is: in training mode with its dropout.
        input, hx: as `rnn` takes them. States are shown of the longest sequence.
        folder: made if it isn't there.
        format: "png", "svg" or "pdf", which is also the suffix of the files.

    Raises:
        TypeError: for another module than a `ManualRNN`.
        ValueError: if the input has no step; for another format.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> paths = write_pictures(ManualRNN(3, 4), torch.randn(5, 1, 3), folder, format="svg")
        >>> [path.name for path in paths]
        ['states.svg', 'gradients.svg', 'eigenvalues.svg']
    """
    check_kind("folder", folder, str, Path)
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    passes = trace(rnn, input, hx).passes
    if not passes[0].states:
        raise ValueError("expected an input of at least one step, got none")
    figures = {
        f"states.{format}": state_picture(passes),
        f"gradients.{format}": gradient_picture(passes),
        f"eigenvalues.{format}": eigenvalue_picture(passes),
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(Path(folder, name), dpi=120)
    return [Path(folder, name) for name in figures]


def state_picture(passes: Sequence[Pass], sequence: int = 0, ax: Any = None) -> "Figure":
    """Heat maps of one sequence's states, one for each pass: steps to the right, units downward.

    Args:
        passes: of a `Trace`, or some of them.
        sequence: its number in the batch.
        ax: the matplotlib Axes to draw into, as many as there are passes; new ones if None.

    Raises:
        TypeError, ValueError: for anything but passes, and for another number of Axes.

    Example:
        >>> passes = trace(ManualRNN(3, 4, num_layers=2), torch.randn(5, 1, 3)).passes
        >>> [ax.get_title() for ax in state_picture(passes).axes[:2]]
        ['States of layer 0', 'States of layer 1']
    """
    _check_passes(passes)
    for run in passes:
        run.walk(sequence)
    figure, axes = _panels(ax, len(passes), (8, 0.8 + 1.7 * len(passes)))
    for run, ax in zip(passes, axes, strict=True):
        states = torch.stack([h[sequence] for h in run.states if len(h) > sequence])  # (T, H)
        bound = states.abs().max().item() or 1.0
        image = ax.imshow(
            _numbers(states.T), aspect="auto", cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest"
        )
        ax.set(title=f"States of {run.name}", ylabel="unit")
        _whole_numbers(ax.xaxis, ax.yaxis)
        figure.colorbar(image, ax=ax, label="state $h_t$")
    axes[-1].set_xlabel("step t")
    return figure


@torch.enable_grad()
def gradient_picture(passes: Sequence[Pass], ax: Any = None) -> "Figure":
    r"""How a gradient fades or grows on its way back through the steps of each pass.

    It starts as ones at the last state of the longest sequences; drawn is its norm, relative to that
    start, against the distance in steps, beside $\rho(W_{hh})^{distance}$.

    Args:
        passes: of a `Trace`, or some of them.
        ax: the matplotlib Axes to draw into; new ones if None.

    Raises:
        TypeError, ValueError: for anything but passes, and for more than one Axes.

    Example:
        >>> import io
        >>> from matplotlib.figure import Figure
        >>> left, right = Figure(figsize=(8, 3)).subplots(1, 2)
        >>> passes = trace(ManualRNN(3, 4), torch.randn(5, 1, 3)).passes
        >>> figure = gradient_picture(passes, ax=left)
        >>> figure.savefig(io.BytesIO(), format="pdf")
    """
    _check_passes(passes)
    figure, (ax,) = _panels(ax, 1, (8, 4))
    for run in passes:
        states = run.walk()[::-1]  # the nearest first
        norms = gradient_norms(states[0].sum(), states)
        line = ax.plot(_numbers(norms / norms[0]), label=run.name)[0]
        radius = spectral_radius(_matrix(run)).double().cpu() ** torch.arange(len(states))
        ax.plot(_numbers(radius), color=line.get_color(), linestyle="--", linewidth=0.8)
    ax.plot([], [], color="gray", linestyle="--", linewidth=0.8, label=rf"$\rho({_symbols(passes)})^{{\,k}}$")
    ax.set(
        title="Gradient through time of L = sum of the last state",
        xlabel="distance k to the last state (steps)",
        ylabel=r"$\Vert \partial L / \partial h_{T-k} \Vert$ relative to k = 0",
        yscale="log",
    )
    _whole_numbers(ax.xaxis)
    ax.grid(alpha=0.3)
    ax.legend()
    return figure


def eigenvalue_picture(passes: Sequence[Pass], ax: Any = None) -> "Figure":
    r"""The eigenvalues of every $W_{hh}$ in the complex plane, on the unit circle or off it.

    For a `step` of your own, those of its Jacobian $J = \partial h_T / \partial h_{T-1}$ at the last step of
    the first sequence.

    Args:
        passes: of a `Trace`, or some of them.
        ax: the matplotlib Axes to draw into, as many as there are passes; new ones if None.

    Raises:
        TypeError, ValueError: for anything but passes, and for another number of Axes.

    Example:
        >>> passes = trace(ManualRNN(3, 4), torch.randn(5, 1, 3)).passes
        >>> figure = eigenvalue_picture(passes)
        >>> len(figure.axes[0].lines[0].get_xdata())  # one point for each of four units
        4
    """
    from matplotlib.patches import Circle

    _check_passes(passes)
    columns = min(len(passes), 2)
    rows = -(-len(passes) // columns)
    figure, axes = _panels(ax, len(passes), (4 * columns, 4 * rows), columns)
    for run, ax in zip(passes, axes, strict=True):
        values = eigenvalues(_matrix(run))
        ax.add_patch(Circle((0, 0), 1, fill=False, color="gray"))
        ax.plot(_numbers(values.real), _numbers(values.imag), ".")
        ax.set(
            title=f"Eigenvalues of ${_symbols([run])}$, {run.name}\n"
            f"largest modulus {values.abs().max().item():.3f}",
            xlabel="real part",
            ylabel="imaginary part",
            aspect="equal",
        )
        ax.grid(alpha=0.3)
    return figure


def _matrix(run: Pass) -> Tensor:
    """What a state is multiplied by: `weight_hh`, or the last Jacobian of a step of one's own."""
    return step_jacobians(run)[-1] if run.own_step else run.weight_hh.detach()


def _symbols(passes: Sequence[Pass]) -> str:
    """The matrices in the words of a formula."""
    return ", ".join(sorted({"J" if run.own_step else "W_{hh}" for run in passes}))


def _check_passes(passes: Sequence[Pass]) -> None:
    check_kind("passes", passes, Sequence)
    for run in passes:
        check_kind("passes", run, Pass)
    if not passes:
        raise ValueError("passes: expected one at least, got none")


def _panels(ax: Any, count: int, size: tuple[float, float], columns: int = 1) -> tuple["Figure", list[Any]]:
    """`count` Axes: those that were given, or new ones in a grid."""
    kind = _figure_kind()
    if ax is not None:
        axes = ax.ravel().tolist() if hasattr(ax, "ravel") else list(ax) if isinstance(ax, Sequence) else [ax]
        if len(axes) != count:
            raise ValueError(f"ax: expected {count} Axes, got {len(axes)}")
        return axes[0].figure, axes
    figure = kind(figsize=size, layout="constrained")
    axes = figure.subplots(-(-count // columns), columns, squeeze=False).ravel().tolist()
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


@cache
def _figure_kind() -> type["Figure"]:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            "pictures need matplotlib: pip install 'manual_rnn[plot]'", name=missing.name
        ) from None

    class Picture(Figure):
        """A Figure that a notebook shows, whatever its backend."""

        def _repr_png_(self) -> bytes:
            content = BytesIO()
            self.savefig(content, format="png")
            return content.getvalue()

    return Picture


def _whole_numbers(*axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))


def _numbers(x: Tensor) -> Any:
    return x.detach().double().cpu().numpy()
