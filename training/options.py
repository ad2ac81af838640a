r"""The options of a run: what holds where none is given, and what no run can have. It loads no torch."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from .folders import no_file

REFUSED, INTERRUPTED, ENDED = 2, 130, 143
"""Exit codes: of a usage error, after Ctrl-C, after SIGTERM."""
TASK, OPTIMIZER, LEARNING_RATE = "Adding", "Adam", 5e-3
TRAINER = {
    "accelerator": "cpu",
    "max_epochs": 12,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "enable_autolog_hparams": False,
}
"""Options of Lightning's Trainer, where they are other than its own."""
UNFIT = {
    "LBFGS": "moves each parameter by itself",  # it has one search direction for all
    "SparseAdam": "takes dense gradients",
}
ELSEWHERE = (
    "ddp_spawn",
    "ddp_fork",
    "ddp_notebook",
)  # these train in other processes, and the report with them


def add_options_of_a_run(parser: ArgumentParser) -> None:
    """Those that are neither the twins', the task's, the optimizer's nor Lightning's."""
    parser.add_argument(
        "--threads", type=PositiveInt, default=1, help="of torch on the CPU; small networks lose by more"
    )
    parser.add_argument(
        "--stop_when_solved", type=bool, default=True, help="stop once both twins have solved the task"
    )
    parser.add_argument(
        "--save_every",
        type=PositiveInt | None,
        default=None,
        help="steps between two more writes of last.ckpt than that of each validation",
    )
    parser.add_argument("--name", type=str | None, default=None, help="of the run's folder; else version_<n>")


def check_run(trainer: Any, optimizer: str) -> None:
    """Raises ValueError for an optimizer, or options of Lightning's Trainer, that no run can have."""
    name = optimizer.rpartition(".")[2]
    if name in UNFIT:
        raise ValueError(f"expected an optimizer that {UNFIT[name]}, got {name}")
    at_least(1, **{"trainer.accumulate_grad_batches": trainer["accumulate_grad_batches"]})
    if trainer["barebones"]:
        raise ValueError("expected a run that logs, for the report; got --trainer.barebones true")
    if str(trainer["strategy"]).startswith(ELSEWHERE):
        raise ValueError(
            "expected --trainer.strategy to leave the report in this process, as auto and ddp do; got "
            f"{trainer['strategy']}"
        )


def check_twins(
    compare_every: int,
    tolerance: float,
    tbptt_steps: int | None,
    bidirectional: bool,
    nonlinearity: str | None,
    init_from: Path | None,
) -> None:
    """Raises ValueError for options of the twins that no run can have, FileNotFoundError for no file."""
    at_least(1, compare_every=compare_every)
    if not tolerance >= 0:
        raise ValueError(f"expected a tolerance of at least 0, got {tolerance}")
    if tbptt_steps is not None:
        at_least(1, tbptt_steps=tbptt_steps)
        if bidirectional:
            raise ValueError("expected one direction with tbptt_steps, got bidirectional=True")
    if init_from is not None and nonlinearity is None:
        raise ValueError("expected a nonlinearity with init_from, since a file of weights doesn't say it")
    if init_from is not None and not Path(init_from).is_file():
        what = no_file(Path(init_from))
        raise FileNotFoundError(f"expected a file with nn.RNN weights, got {init_from}: {what}")


def at_least(smallest: int, **values: int) -> None:
    """Raises ValueError for the first of the named ``values`` that is below ``smallest``."""
    for name, value in values.items():
        if value < smallest:
            raise ValueError(f"expected {name} of at least {smallest}, got {value}")


def grouped(words: Sequence[str]) -> list[list[str]]:
    """Each option of a command line with the words after it; those before the first are a group too."""
    groups: list[list[str]] = []
    for word in words:
        if re.match("--?[A-Za-z]", word) or not groups:
            groups.append([])
        groups[-1].append(word)
    return groups


def name_of(group: list[str]) -> str:
    """``--name`` of ``--name=value``, or of ``--name value``."""
    name = group[0].partition("=")[0]
    return "--config" if name == "-c" else name


def values_of(group: list[str]) -> list[str]:
    _, equals, value = group[0].partition("=")
    return [value] * bool(equals) + group[1:]
