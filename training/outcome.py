r"""What the runs of a sweep came to: a table and a picture."""

import csv
from dataclasses import dataclass
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .checkpoints import read_checkpoint
from .history import History, unpack

VERDICTS = {0: "sound", 1: "FAILED", 2: "refused", 130: "stopped", 143: "stopped"}


@dataclass
class Run:
    """One run of a sweep.

    Attributes:
        name: what is its own, in words.
        settings: the same by column of the table.
        code: with which its process ended.
        folder: of the run.
    """

    name: str
    settings: dict[str, str]
    code: int
    folder: Path

    def __post_init__(self) -> None:
        self.history = history_of(self.folder / "checkpoints" / "last.ckpt")

    def row(self) -> dict[str, str]:
        history = self.history
        reached = {twin: f"{values[-1]:.4g}" for twin, values in history.scores.items()}
        parting = max((max(values) for values in history.partings.values()), default=float("nan"))
        return {
            **self.settings,
            "steps": str(int(history.steps[-1])) if history.steps else "0",
            "nn.RNN": reached.get("builtin", ""),
            "ManualRNN": reached.get("manual", ""),
            "parting": f"{parting:.2g}",
            "verdict": VERDICTS.get(self.code, f"exit code {self.code}"),
            "run": self.folder.name,
        }


def history_of(checkpoint: Path) -> History:
    """What a run's last checkpoint has seen; nothing where there is none."""
    if not checkpoint.is_file():
        return History()
    state = read_checkpoint(checkpoint)["callbacks"]["Report"]["history"]
    return History(**{name: unpack(value) for name, value in state.items()})


def show(runs: list[Run], folder: Path) -> None:
    """Prints the table, and writes it and the picture, if there is anything to see, into ``folder``."""
    rows = [each.row() for each in runs]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in rows[0]:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"table: {folder / 'table.csv'}")
    if any(each.history.validated for each in runs):
        draw(runs, folder / "sweep.png")
        print(f"picture: {folder / 'sweep.png'}")
    else:
        print("picture: none, for no run came to a validation")


def draw(runs: list[Run], path: Path) -> None:
    """The validations of all runs: a colour each, ManualRNN's line whole and nn.RNN's dashed over it."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["turbo"]([(i + 0.5) / len(runs) for i in range(len(runs))])
    for each, colour in zip(runs, colours, strict=True):
        steps, scores = each.history.validated, each.history.scores
        axes.plot(steps, scores.get("manual", []), color=colour, linewidth=2.5, label=each.name)
        axes.plot(steps, scores.get("builtin", []), "k--", linewidth=0.8)
    axes.plot([], [], "k--", linewidth=0.8, label="nn.RNN of each")
    axes.set(title="ManualRNN's validations in each run", xlabel="optimizer step", ylabel="the task's metric")
    found = [v for each in runs for values in each.history.scores.values() for v in values]
    if found and min(found) > 0 and max(found) > 10 * min(found):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
