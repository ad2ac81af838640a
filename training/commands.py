r"""The commands beside Lightning's own: tasks, inspect, export, and sweep, many runs in this process."""

import contextlib
import csv
import logging
import os
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jsonargparse import auto_cli
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from manual_rnn.pictures import write_pictures

from . import quieten
from .__main__ import as_words, grouped, prog
from .cli import build
from .curves import draw_sweep
from .files import RUNS, find_checkpoint, new_folder, save_whole, write_whole
from .messages import ENDED, INTERRUPTED, REFUSED, InFewWords, told, usage_error
from .report import NAMES, Record
from .resume import in_words, load_model, load_task
from .tasks import TASKS
from .twins import Network

USAGE = """usage: {prog} sweep [options of fit, some with several values]

Runs fit once for each combination of the values, one run after the other, and ends with a table and a
picture of all: --seeds 0 1 2 --model.hidden_size 32 64 are six runs. --seeds is another name for
--seed_everything, and --name is that of the sweep, its runs are NAME_run_0 and so on. Every other option,
--config among them, is as fit has it: `{prog} fit --help`.
"""
VERDICTS = {0: "sound", REFUSED: "refused", INTERRUPTED: "stopped", ENDED: "stopped"}
QUIET = "--trainer.enable_progress_bar=false"
SHORT = {"--seed_everything": "seed"}
Setting = dict[str, str]


def list_tasks() -> None:
    """List the tasks."""
    table = Table("--data", "metric", "chance", "solved", "task and source", box=SIMPLE_HEAD)
    for name, kind in TASKS.items():
        task, about = kind(), (kind.__doc__ or "").strip().splitlines()[0].replace("``", "`")
        figures = (f"{task.chance:.3g}", f"{task.solved:.4g}")
        table.add_row(name, task.metric, *figures, f"{about}\n[dim]{task.source}[/]", end_section=True)
    Console().print(table)


def export_twin(
    ckpt_path: str,
    output: Path = Path("rnn.pt"),
    onnx: Path | None = None,
    twin: Literal["manual", "builtin"] = "manual",
) -> None:
    """Write the weights of a trained twin as a plain nn.RNN state_dict, and the network as ONNX.

    Args:
        ckpt_path: a checkpoint of a run; or last or best of the newest run.
        output: the file for the state_dict; `nn.RNN(...).load_state_dict(torch.load(output))` takes it.
        onnx: a file for the whole network, from input (batch, time, input_size) to every step's output.
        twin: which of the twins.
    """
    network = load_model(find_checkpoint(ckpt_path)).twins[twin]
    save_whole(dict(network.rnn.state_dict()), output)
    print(f"state_dict of {network.rnn}: {output}")
    if onnx is not None:
        write_onnx(network, onnx)
        print(f"ONNX of the network: {onnx}")


def write_onnx(network: Network, path: Path) -> None:
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    rnn: Any = network.rnn
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # its news is that there is no torchvision
    example = torch.zeros(2, 3, rnn.input_size)  # the program takes any batch and any number of steps
    names: Any = {"input_names": ["input"], "output_names": ["output", "h_n"]}
    shapes = {"input": {0: batch, 1: time}}
    program: Any = torch.onnx.export(
        network, (example,), dynamic_shapes=shapes, dynamo=True, verbose=False, **names
    )
    write_whole(path, program.model_proto.SerializeToString())


def draw_inside(ckpt_path: str, folder: Path | None = None, data: str | None = None) -> None:
    """Write pictures of a trained ManualRNN at its task: states, gradients in time, eigenvalues.

    Args:
        ckpt_path: a checkpoint of a run; or last or best of the newest run.
        folder: for the pictures; beside the checkpoint where none is given.
        data: the class of the run's task, where it is one of your own, such as my_module.MyTask.
    """
    path = find_checkpoint(ckpt_path)
    task, model = load_task(path, data), load_model(path)
    rnn: Any = model.manual.rnn
    for picture in write_pictures(rnn, task.batch("test", 0).input, folder or path.parent / "inspect"):
        print(picture)


class Outcome(NamedTuple):
    """One run of a sweep: its own settings, the exit code of its ``fit``, its folder, metric and record."""

    settings: Setting
    code: int
    folder: Path
    metric: str
    record: Record

    @property
    def group(self) -> str:
        """Its settings but for the seed: over the runs that share them the picture averages."""
        return in_words({name: value for name, value in self.settings.items() if name != "seed"}) or "alone"

    def row(self) -> dict[str, str]:
        scores = {NAMES[twin]: f"{score:.4g}" for twin, score in self.record.reached.items()}
        return {
            **self.settings,
            "steps": str(max(self.record.steps, default=0)),
            **{name: scores.get(name, "") for name in NAMES.values()},
            "times round-off": f"{self.record.largest_parting:.2g}",
            "verdict": VERDICTS.get(self.code, "FAILED"),
            "run": self.folder.name,
        }


def sweep(options: list[str]) -> None:
    """Runs ``fit`` for each combination of the options' values.

    Raises SystemExit with the exit code of the first run that wasn't sound, 0 where all were.
    """
    if not options or {"-h", "--help"} & set(options):
        print(USAGE.format(prog=prog()), end="")
        return
    common, own, name = combinations(options)
    every = [[QUIET, *common, *as_words((option, [value]) for option, value in each.items())] for each in own]
    for words in every:  # nothing is trained where one of them is refused
        build("fit", words)
    folder = new_folder(RUNS / "sweeps", name)
    runs: list[Outcome] = []
    for number, (each, words) in enumerate(zip(own, every, strict=True)):
        settings = {SHORT.get(option, option.rpartition(".")[2]): value for option, value in each.items()}
        print(f"run {number + 1} of {len(own)}: {in_words(settings) or 'alone'}", flush=True)
        run_name = f"{name or folder.name.replace('version', 'sweep')}_run_{number}"
        runs.append(run_one([*words, f"--name={run_name}"], settings))
        if runs[-1].code in (INTERRUPTED, ENDED):
            break
    show(runs, folder)
    sys.exit(next((run.code for run in runs if run.code), 0))


def combinations(options: list[str]) -> tuple[list[str], list[Setting], str | None]:
    """The options that all runs share; for each run its own, one of several values each; the sweep's name."""
    if not options[0].startswith("-"):
        usage_error(f"expected options, such as --seeds 0 1 2, got {options[0]}")
    given = [
        ("--seed_everything" if name == "--seeds" else name, values) for name, values in grouped(options)
    ]
    several = {name: values for name, values in given if len(values) > 1}
    common = as_words((name, values) for name, values in given if name not in (*several, "--name"))
    own = [dict(zip(several, values, strict=True)) for values in product(*several.values())]
    return common, own, next((values[0] for name, values in given if name == "--name" and values), None)


def run_one(options: list[str], settings: Setting) -> Outcome:
    """Trains once, with what ``fit`` prints left out; no error ends the sweep."""
    code: str | int | None = 0
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        lab = build("fit", options)
        try:
            lab.start()
        except SystemExit as exit:
            code = exit.code
        except Exception as problem:  # of a file that can't be written, or of the user's own task
            code = f"training: {told(problem, anywhere=True)}"
        except KeyboardInterrupt:
            code = INTERRUPTED
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    return Outcome(settings, code or 0, lab.folder or Path(), lab.datamodule.metric, lab.record)


def show(runs: list[Outcome], folder: Path) -> None:
    """Prints the table, and writes it and the picture, if there is anything to see, into ``folder``."""
    rows = [run.row() for run in runs]
    table = Table(*(Column(name, overflow="fold") for name in rows[0]), box=SIMPLE_HEAD, padding=0)
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"table: {folder / 'table.csv'}")
    picture = folder / "sweep.png"
    if drawn := any(run.record.validated for run in runs):
        draw_sweep([(run.group, run.record) for run in runs], runs[0].metric, picture)
    print(f"picture: {picture if drawn else 'none, for no run came to a validation'}")


COMMANDS: dict[str, Callable[..., None]] = {
    "tasks": list_tasks,
    "export": export_twin,
    "inspect": draw_inside,
}


def main(name: str, options: list[str]) -> None:
    """One command line. What goes wrong is a usage error, but for a file that can't be written."""
    quieten()
    try:
        if name == "sweep":
            sweep(options)
        else:
            called = f"{prog()} {name}"
            auto_cli(COMMANDS[name], options, as_positional=False, parser_class=InFewWords, prog=called)
    except Exception as problem:
        if isinstance(problem, OSError) and not isinstance(problem, FileNotFoundError):
            raise
        usage_error(told(problem, anywhere=True))
