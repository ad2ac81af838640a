r"""Several runs one after the other, each in a process of its own."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import FrameType

from .early import judge
from .folders import RUNS, new_folder
from .options import ENDED, INTERRUPTED, REFUSED, grouped, name_of, values_of
from .parser import PROG, usage_error

USAGE = f"""usage: {PROG} sweep [options of fit, some with several values]

Runs fit once for each combination of the values, one process after the other, and ends with a table and a
picture of all: --seeds 0 1 2 --model.hidden_size 32 64 are six runs. --seeds is another name for
--seed_everything, and --name is that of the sweep, its runs are NAME_run_0 and so on. Every other option,
--config among them, is as fit has it: `{PROG} fit --help`.
"""
ALIASES = {"--seeds": "--seed_everything"}
Setting = tuple[str, str]


def run(options: list[str]) -> None:
    """Runs a sweep. Its exit code is that of the first run that wasn't sound, 0 where all were."""
    if not options or {"-h", "--help"} & set(options):
        print(USAGE, end="")
        return
    common, own, name = combinations(options)
    for settings in own:
        judge("fit", [*common, *as_options(settings)])
    try:
        folder = new_folder(RUNS / "sweeps", name)
    except ValueError as refusal:
        usage_error(str(refusal))
    signal.signal(signal.SIGTERM, end)
    runs = list(one_after_the_other(common, own, name or folder.name.replace("version", "sweep")))
    if runs[0][1] == REFUSED:  # which the run has said
        folder.rmdir()
        sys.exit(REFUSED)
    from .outcome import Run, show

    show([Run(in_words(own), by_column(own), code, path) for own, code, path in runs], folder)
    sys.exit(next((code for _, code, _ in runs if code), 0))


def end(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends the run at hand, and the sweep with what there is."""
    raise SystemExit(ENDED)


def one_after_the_other(
    common: list[str], own: list[list[Setting]], name: str
) -> Iterator[tuple[list[Setting], int, Path]]:
    """Each run's settings, exit code and folder, up to one that was stopped or refused."""
    for number, settings in enumerate(own):
        print(f"run {number + 1} of {len(own)}: {in_words(settings)}", flush=True)
        run_name = f"{name}_run_{number}"
        bar = "--trainer.enable_progress_bar=false"
        code = exit_code_of([bar, *common, *as_options(settings), f"--name={run_name}"])
        yield settings, code, next(RUNS.glob(f"*/{run_name}"), Path())
        if code in (REFUSED, INTERRUPTED, ENDED):
            return


def exit_code_of(options: list[str]) -> int:
    """Runs fit in a process of its own, which is told where this one is interrupted or ended."""
    command = [sys.executable, "-m", str(__package__), "fit", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal has told it too
            process.wait()
            return INTERRUPTED
        except SystemExit:
            process.terminate()
            process.wait()
            return ENDED


def combinations(options: list[str]) -> tuple[list[str], list[list[Setting]], str | None]:
    """The options that all runs share; for each run its own, one of several values each; the sweep's name."""
    if not options[0].startswith("-"):
        usage_error(f"expected options, such as --seeds 0 1 2, got {options[0]}")
    given = [(ALIASES.get(name_of(group), name_of(group)), values_of(group)) for group in grouped(options)]
    several = {name: values for name, values in given if len(values) > 1}
    common = [word for name, values in given if name not in (*several, "--name") for word in (name, *values)]
    pairs = [[(name, value) for value in values] for name, values in several.items()]
    named = next((values[0] for name, values in given if name == "--name" and values), None)
    return common, [list(settings) for settings in product(*pairs)], named


def as_options(settings: list[Setting]) -> list[str]:
    return [f"{option}={value}" for option, value in settings]


def by_column(settings: list[Setting]) -> dict[str, str]:
    return {short(option): value for option, value in settings}


def in_words(settings: list[Setting]) -> str:
    return ", ".join(f"{short(name)} {value}" for name, value in settings) or "alone"


def short(option: str) -> str:
    """``hidden_size`` of ``--model.hidden_size``, ``seed`` of ``--seed_everything``."""
    return {"--seed_everything": "seed"}.get(option, option.rpartition(".")[2].lstrip("-"))
