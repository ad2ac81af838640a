"""Training within a test: small runs from Python, and command lines in a folder of their own."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import training
from training import train
from training.__main__ import main
from training.callbacks import CompareGradients
from training.datamodule import Task
from training.report import Record
from training.tasks import Adding
from training.twins import Twins

CommandLine = Callable[..., str]

WARNINGS = [
    # Lightning 2.6 compares tree specs by a class that torch 2.13 has renamed
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    # no workers for tasks that are drawn in a millisecond
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    # a resumed run has a folder and checkpoints of its own
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks"),
    # runs here are shorter than the logging interval
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]

QUIET = "--trainer.enable_progress_bar=false"
SMALL = [
    QUIET,
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=1",
    "--data=Adding",
    "--data.train_batches=4",
    "--data.val_batches=1",
    "--data.batch_size=8",
    "--model.hidden_size=6",
]


def small(kind: type[Task] = Adding, **options: Any) -> Task:
    """A task of four batches of eight sequences."""
    return kind(**{"train_batches": 4, "val_batches": 1, "batch_size": 8, **options})


def trained(
    task: Task | None = None, model: dict[str, Any] | None = None, compare: Any = None, **trainer: Any
) -> tuple[Record, Twins]:
    """A run of two epochs from Python, and its twins."""
    task = task or small()
    twins = Twins.for_task(task, **{"hidden_size": 6, **(model or {})})
    options = {"max_epochs": 2, "enable_progress_bar": False, "log_every_n_steps": 1, **trainer}
    return train(task, twins, compare or CompareGradients(), **options), twins


def command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[CommandLine]:
    """A fixture yields from it: a function that runs a command line and returns the words that it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of names that Lightning still uses
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("PYTHONPATH", str(Path(training.__path__[0]).parent))

    def run(*args: str, small: list[str] = SMALL) -> str:
        main([*args[:1], *small, *args[1:]] if args and not args[0].startswith("-") else [*small, *args])
        return re.sub(r"\s+", " ", capsys.readouterr().out)

    yield run
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


def started(command: list[str], folder: Path, **streams: Any) -> subprocess.Popen[str]:
    """A process that hears Ctrl-C, though a shell has it ignored where the tests run in the background."""
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, cwd=folder, text=True, preexec_fn=hears, **streams)


def checkpoint(folder: Path, name: str = "last") -> Path:
    return folder / "checkpoints" / f"{name}.ckpt"


def wait_for(path: Path, run: subprocess.Popen[str], seconds: float = 120) -> None:
    """Until that run has written the file, or ends without it, or takes too long and is killed."""
    deadline = time.monotonic() + seconds
    while not path.is_file():
        if run.poll() is not None or time.monotonic() > deadline:
            run.kill()
            raise AssertionError(f"expected {path} within {seconds} s, got none; exit status {run.poll()}")
        time.sleep(0.01)


def last(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(checkpoint(folder), weights_only=True)
    return content


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = last(folder)["state_dict"]
    return found


def assert_equal_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
