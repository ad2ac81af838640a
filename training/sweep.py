r"""Several runs one after the other, each in a process of its own: a table and a picture of all."""

import csv
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .checkpoints import read_checkpoint
from .files import RUNS, new_folder
from .history import History, unpack
from .parser import PROG, usage_error

USAGE = f"""usage: {PROG} sweep [options of fit, some with several values]

Runs fit once for each combination of the values, one process after the other, and ends with a table and a
picture of all: --seeds 0 1 2 --model.hidden_size 32 64 are six runs. --seeds is another name for
--seed_everything. Every other option, --config among them, is as fit has it: `{PROG} fit --help`.
"""
ALIASES = {"--seeds": "--seed_everything"}
VERDICTS = {0: "sound", 1: "FAILED", 130: "stopped"}
Setting = tuple[str, str]


class UsageError(Exception):
    """One of fit's."""


@dataclass
class Run:
    """One run of a sweep: what is its own, and what became of it."""

    settings: list[Setting]
    folder: Path
    code: int
    history: History

    @property
    def name(self) -> str:
        return in_words(self.settings)

    def row(self) -> dict[str, str]:
        history = self.history
        reached = {twin: f"{values[-1]:.4g}" for twin, values in history.scores.items()}
        parting = max((max(values) for values in history.partings.values()), default=float("nan"))
        return {
            **{short(option): value for option, value in self.settings},
            "steps": str(int(history.steps[-1])) if history.steps else "0",
            "nn.RNN": reached.get("builtin", ""),
            "ManualRNN": reached.get("manual", ""),
            "parting": f"{parting:.2g}",
            "verdict": VERDICTS.get(self.code, f"exit code {self.code}"),
            "run": self.folder.name,
        }


def run(options: list[str]) -> None:
    """Runs a sweep. Its exit code is that of the first run that wasn't sound, 0 where all were."""
    if not options or {"-h", "--help"} & set(options):
        print(USAGE, end="")
        return
    common, own = combinations(options)
    folder = new_folder(RUNS / "sweeps")
    try:
        runs = list(one_after_the_other(common, own, folder.name.replace("version", "sweep")))
    except UsageError:  # which the run has said
        folder.rmdir()
        sys.exit(2)
    show(runs, folder)
    sys.exit(next((each.code for each in runs if each.code), 0))


def one_after_the_other(common: list[str], own: list[list[Setting]], name: str) -> Iterator[Run]:
    """The runs, up to one that was stopped."""
    for number, settings in enumerate(own):
        print(f"run {number + 1} of {len(own)}: {in_words(settings)}", flush=True)
        found = one_run(common, settings, f"{name}_run_{number}")
        yield found
        if found.code == 130:
            return


def combinations(options: list[str]) -> tuple[list[str], list[list[Setting]]]:
    """The options that all runs share; and for each run its own, one of several values each."""
    several = {name: values for name, values in named(options) if len(values) > 1}
    common = [word for name, values in named(options) if name not in several for word in (name, *values)]
    pairs = [[(name, value) for value in values] for name, values in several.items()]
    return common, [list(settings) for settings in product(*pairs)]


def named(options: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each option with its values: ``--name=value``, or ``--name`` and the words up to the next option."""
    starts = [i for i, word in enumerate(options) if word.startswith("--")]
    if starts[:1] != [0]:
        usage_error(f"expected options, such as --seeds 0 1 2, got {options[0]}")
    for start, end in zip(starts, [*starts[1:], len(options)], strict=True):
        name, equals, value = options[start].partition("=")
        yield ALIASES.get(name, name), [value] * bool(equals) + options[start + 1 : end]


def in_words(settings: list[Setting]) -> str:
    return ", ".join(f"{short(name)} {value}" for name, value in settings) or "alone"


def short(option: str) -> str:
    """``hidden_size`` of ``--model.hidden_size``, ``seed`` of ``--seed_everything``."""
    return {"--seed_everything": "seed"}.get(option, option.rpartition(".")[2].lstrip("-"))


def one_run(common: list[str], settings: list[Setting], name: str) -> Run:
    """Runs fit in a process of its own."""
    own = [f"{option}={value}" for option, value in settings]
    bar = "--trainer.enable_progress_bar=false"
    command = [sys.executable, "-m", str(__package__), "fit", bar, *common, *own, f"--name={name}"]
    try:
        code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    except KeyboardInterrupt:
        code = 130
    if code == 2:
        raise UsageError
    folder = next(RUNS.glob(f"*/{name}"), Path())
    return Run(settings, folder, code, history_of(folder / "checkpoints" / "last.ckpt"))


def history_of(checkpoint: Path) -> History:
    """What a run's last checkpoint has seen; nothing where there is none."""
    if not checkpoint.is_file():
        return History()
    state = read_checkpoint(checkpoint)["callbacks"]["Report"]["history"]
    return History(**{name: unpack(value) for name, value in state.items()})


def show(runs: list[Run], folder: Path) -> None:
    """Prints the table, and writes it and the picture into ``folder``."""
    rows = [each.row() for each in runs]
    table = Table(box=SIMPLE_HEAD)
    for heading in rows[0]:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(runs, folder / "sweep.png")
    print(f"table: {folder / 'table.csv'}\npicture: {folder / 'sweep.png'}")


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
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
