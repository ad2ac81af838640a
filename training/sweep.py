r"""Several runs one after the other, in this process; at the end a table and a picture of all."""

import contextlib
import csv
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .__main__ import prog
from .cli import build
from .curves import draw_sweep
from .files import RUNS, new_folder
from .messages import ENDED, INTERRUPTED, usage_error
from .options import grouped, name_of, values_of
from .report import Record
from .run import Run

USAGE = """usage: {prog} sweep [options of fit, some with several values]

Runs fit once for each combination of the values, one run after the other, and ends with a table and a
picture of all: --seeds 0 1 2 --model.hidden_size 32 64 are six runs. --seeds is another name for
--seed_everything, and --name is that of the sweep, its runs are NAME_run_0 and so on. Every other option,
--config among them, is as fit has it: `{prog} fit --help`.
"""
SEED = "--seed_everything"
VERDICTS = {0: "sound", 1: "FAILED", 2: "refused", INTERRUPTED: "stopped", ENDED: "stopped"}
QUIET = "--trainer.enable_progress_bar=false"
Setting = tuple[str, str]


@dataclass
class Outcome:
    """One run of a sweep: its own settings, the exit code of its ``fit``, its folder, metric and record."""

    settings: list[Setting]
    code: int
    folder: Path
    metric: str
    record: Record

    @property
    def group(self) -> str:
        """Its settings but for the seed: over the runs that share them the picture averages."""
        return in_words([setting for setting in self.settings if setting[0] != SEED])

    def row(self) -> dict[str, str]:
        record = self.record
        reached = {twin: f"{values[-1]:.4g}" for twin, values in record.scores.items()}
        return {
            **{short(option): value for option, value in self.settings},
            "steps": str(record.steps[-1]) if record.steps else "0",
            "nn.RNN": reached.get("builtin", ""),
            "ManualRNN": reached.get("manual", ""),
            "parting": f"{record.largest_parting:.2g}",
            "verdict": VERDICTS.get(self.code, f"exit code {self.code}"),
            "run": self.folder.name,
        }


def sweep(options: list[str]) -> None:
    """Runs a sweep.

    Args:
        options: those of ``fit``, some with several values.

    Raises:
        SystemExit: with the exit code of the first run that wasn't sound, 0 where all were.
        ValueError: where a folder of the sweep's name is there already.
    """
    if not options or {"-h", "--help"} & set(options):
        print(USAGE.format(prog=prog()), end="")
        return
    common, own, name = combinations(options)
    for settings in own:  # nothing is trained where one of them is refused
        build("fit", [QUIET, *common, *as_options(settings)])
    folder = new_folder(RUNS / "sweeps", name)
    runs: list[Outcome] = []
    for number, settings in enumerate(own):
        print(f"run {number + 1} of {len(own)}: {in_words(settings)}", flush=True)
        run_name = f"{name or folder.name.replace('version', 'sweep')}_run_{number}"
        runs.append(run_one([QUIET, *common, *as_options(settings), f"--name={run_name}"], settings))
        if runs[-1].code in (INTERRUPTED, ENDED):
            break
    show(runs, folder)
    sys.exit(next((run.code for run in runs if run.code), 0))


def run_one(options: list[str], settings: list[Setting]) -> Outcome:
    """Trains once, with what ``fit`` prints left out."""
    with printing_nothing():
        run = Run("fit", options)
        code = exit_code_of(run)
    metric = run.lab.datamodule.objective.metric
    return Outcome(settings, code, run.folder or Path(), metric, run.record)


@contextlib.contextmanager
def printing_nothing() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def exit_code_of(run: Run) -> int:
    """That of a process that ran the same; an error of a run ends the run, and not the sweep."""
    try:
        run.start()
    except SystemExit as exit:
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except OSError as problem:
        print(f"training: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def combinations(options: list[str]) -> tuple[list[str], list[list[Setting]], str | None]:
    """The options that all runs share; for each run its own, one of several values each; the sweep's name."""
    if not options[0].startswith("-"):
        usage_error(f"expected options, such as --seeds 0 1 2, got {options[0]}")
    given = [(name_of(group).replace("--seeds", SEED), values_of(group)) for group in grouped(options)]
    several = {name: values for name, values in given if len(values) > 1}
    common = [word for name, values in given if name not in (*several, "--name") for word in (name, *values)]
    pairs = [[(name, value) for value in values] for name, values in several.items()]
    named = next((values[0] for name, values in given if name == "--name" and values), None)
    return common, [list(settings) for settings in product(*pairs)], named


def as_options(settings: list[Setting]) -> list[str]:
    return [f"{option}={value}" for option, value in settings]


def in_words(settings: list[Setting]) -> str:
    return ", ".join(f"{short(name)} {value}" for name, value in settings) or "alone"


def short(option: str) -> str:
    """``hidden_size`` of ``--model.hidden_size``, ``seed`` of ``--seed_everything``."""
    return "seed" if option == SEED else option.rpartition(".")[2].lstrip("-")


def show(runs: list[Outcome], folder: Path) -> None:
    """Prints the table, and writes it and the picture, if there is anything to see, into ``folder``."""
    rows = [run.row() for run in runs]
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
    if any(run.record.validated for run in runs):
        draw_sweep([(run.group, run.record) for run in runs], runs[0].metric, folder / "sweep.png")
        print(f"picture: {folder / 'sweep.png'}")
    else:
        print("picture: none, for no run came to a validation")
