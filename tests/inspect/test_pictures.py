"""Pictures, against what was traced."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from manual_rnn import ManualRNN
from manual_rnn.inspect import gradient_norms, trace
from manual_rnn.pictures import eigenvalue_picture, gradient_picture, state_picture, write_pictures


def test_pictures_are_written(tmp_path: Path) -> None:
    rnn = ManualRNN(2, 6, 2, bidirectional=True).requires_grad_(False)
    with torch.no_grad():
        paths = write_pictures(rnn, torch.randn(9, 3, 2), tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["states.png", "gradients.png", "eigenvalues.png"]
    for path in paths:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        assert 400 <= int.from_bytes(data[16:20], "big") <= 1000, "its width in pixels, for a README"


def test_pictures_show_what_was_traced() -> None:
    rnn = ManualRNN(2, 6, bidirectional=True, dtype=torch.float64)
    packed = pack_sequence([torch.randn(n, 2).double() for n in (3, 7)], enforce_sorted=False)
    passes = trace(rnn, packed).passes
    heat = state_picture(passes)
    for run, ax in zip(passes, heat.axes[:2], strict=True):
        shown = torch.as_tensor(ax.images[0].get_array())
        assert torch.equal(shown, torch.stack([h[0] for h in run.states], 1).detach())

    (ax,) = gradient_picture(passes).axes
    assert ax.get_yscale() == "log"
    for run, line in zip(passes, ax.lines[::2], strict=False):
        walk = run.walk()
        norms = gradient_norms(walk[-1].sum(), walk).flip(0)
        torch.testing.assert_close(torch.as_tensor(line.get_ydata()), norms / norms[0])

    for run, ax in zip(passes, eigenvalue_picture(passes).axes, strict=True):
        shown = torch.as_tensor(ax.lines[0].get_xydata()).contiguous()
        torch.testing.assert_close(torch.view_as_complex(shown), torch.linalg.eigvals(run.weight_hh).detach())


@pytest.mark.parametrize("scale", [0.0, 1e30], ids=["dead", "exploding"])
def test_pictures_of_a_net_at_its_limits(scale: float, tmp_path: Path) -> None:
    rnn = ManualRNN(1, 4, nonlinearity="relu")
    nn.init.constant_(rnn.all_weights[0][1], scale)
    assert len(write_pictures(rnn, torch.ones(5, 1, 1), tmp_path)) == 3


def test_pictures_need_a_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected an input of at least one step, got none"):
        write_pictures(ManualRNN(2, 3), torch.randn(0, 1, 2), tmp_path)


def test_pictures_go_into_axes_that_are_there() -> None:
    """As panels of a figure of somebody's own: one Axes, a list, or an array of them."""
    from matplotlib.figure import Figure

    passes = trace(ManualRNN(2, 6, 2), torch.randn(9, 3, 2)).passes
    figure = Figure()
    axes = figure.subplots(2, 3)
    assert state_picture(passes, ax=axes[:, 0]) is figure
    assert gradient_picture(passes, ax=axes[0, 1]) is figure
    assert eigenvalue_picture(passes, ax=[axes[0, 2], axes[1, 2]]) is figure
    drawn = [bool(ax.lines or ax.images) for ax in axes.flat]
    assert drawn == [True, True, True, True, False, True]
    pictures: list[tuple[Callable[..., Figure], Any]] = [
        (state_picture, axes[0]), (gradient_picture, axes), (eigenvalue_picture, axes[0, 0])
    ]  # fmt: skip
    for picture, ax in pictures:
        with pytest.raises(ValueError, match=r"ax: expected . Axes, got .$"):
            picture(passes, ax=ax)


@pytest.mark.parametrize(("format", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_pictures_for_print(format: str, start: bytes, tmp_path: Path) -> None:
    paths = write_pictures(ManualRNN(2, 3), torch.randn(4, 1, 2), tmp_path, format=format)
    assert {path.suffix for path in paths} == {f".{format}"}
    assert all(path.read_bytes().startswith(start) for path in paths)
