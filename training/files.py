r"""Files of runs: written whole, read without running code, found by name; a folder for one run alone."""

import io
import os
import warnings
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch import Tensor

RUNS = Path("runs")
STARTED = RUNS / "started.txt"
"""The folders of the runs, in the order of their first checkpoints."""
CHECKPOINT = "a checkpoint that python -m training wrote"
PARTS = ("pytorch-lightning_version", "hyper_parameters", "datamodule_hyper_parameters", "state_dict")
STATE = ("optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step")
"""What a training goes on from, beside the weights."""
FIRST = "weight_ih_l0"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        save_whole(checkpoint, Path(path))


def save_whole(content: Any, path: Path) -> None:
    """``torch.save``, whole or not at all."""
    file = io.BytesIO()
    torch.save(content, file)
    write_whole(path, file.getvalue())


def write_whole(path: Path, content: bytes) -> None:
    """Writes beside ``path``, waits for the disk, renames: a kill or a full disk leaves what was there.

    What a killed process left beside it is written over: the name is always the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as problem:
        part.unlink(missing_ok=True)
        if isinstance(problem, OSError):
            problem.filename = str(path)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the new name is on the disk too, where the system can tell
        handle = os.open(path.parent, os.O_DIRECTORY)
        os.fsync(handle)
        os.close(handle)


def existing(path: Path, expected: str) -> Path:
    """Returns the path of a file. Raises FileNotFoundError where there is no file."""
    if not path.is_file():
        why = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"expected {expected}, got {path}: {why}")
    return path


def read_text(path: Path, expected: str) -> str:
    """The text of a file. Raises ValueError where it isn't in UTF-8, FileNotFoundError where it is none."""
    try:
        return existing(path, expected).read_text("utf-8")
    except UnicodeDecodeError as problem:
        raise ValueError(f"expected {expected} in UTF-8, got {path}: {problem.reason}") from None


def read(path: Path, expected: str) -> dict[str, Any]:
    """The dictionary in a file of tensors, numbers and names (``weights_only=True``).

    Raises ValueError for any other content, FileNotFoundError where there is no such file.
    """
    existing(path, expected)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of TorchScript, which is refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # whatever a broken file leads the unpickler to
        broken = "it isn't whole, or holds more than tensors and names"
        why = problem if isinstance(problem, OSError) else broken
        raise ValueError(f"expected {expected}, got {path}, which can't be read: {why}") from None
    if not isinstance(content, dict):
        raise ValueError(f"expected {expected}, got a {type(content).__name__} in {path}")
    return content


def read_checkpoint(path: Path, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """The content of a checkpoint that a run wrote, with these parts. Raises as :func:`read` for others."""
    content = read(path, CHECKPOINT)
    missing = [part for part in (*PARTS, *needed) if part not in content]
    if missing:
        raise ValueError(f"expected {CHECKPOINT}, got {path} without {', '.join(missing)}")
    return content


def rnn_weights(path: Path) -> dict[str, Tensor]:
    """The state_dict of the one RNN in ``path``, without its prefix. Raises as :func:`read` does."""
    content = read(path, "a file with nn.RNN weights")
    state = content.get("state_dict", content)
    prefixes = [name.removesuffix(FIRST) for name in state if str(name).endswith(FIRST)]
    if len(prefixes) != 1:
        raise ValueError(f"expected one RNN ('...{FIRST}') in {path}, got {prefixes or 'none'}")
    kinds = tuple(prefixes[0] + kind for kind in ("weight_ih_l", "weight_hh_l", "bias_ih_l", "bias_hh_l"))
    return {name.removeprefix(prefixes[0]): w for name, w in state.items() if name.startswith(kinds)}


def find_checkpoint(given: str, task: str = "*") -> Path:
    """The file that is meant: by a path, a ``file://`` of one, or ``last`` or ``best`` of the newest run.

    Raises FileNotFoundError where there is no such file or run of the task.
    """
    if given in ("last", "best"):
        return newest(given, task)
    path = Path(unquote(urlsplit(given).path) if given.startswith("file://") else given)
    return existing(path, "a checkpoint, or last or best")


def newest(name: str, task: str) -> Path:
    """The checkpoint of the run whose first one is the newest; where none was noted, that of the most steps.

    No clock is asked: copying, touching and unpacking files change their times.
    """
    started = map(Path, STARTED.read_text().splitlines() if STARTED.is_file() else ())
    of_task = [folder for folder in started if task in ("*", folder.parent.name)]  # or of a user's logger
    noted = [path for folder in of_task if (path := folder / "checkpoints" / f"{name}.ckpt").is_file()]
    if noted:
        return noted[-1]
    found = list(RUNS.glob(f"{task}/*/checkpoints/{name}.ckpt"))
    if not found:
        of = "" if task == "*" else f" of {task}"
        raise FileNotFoundError(f"expected a run{of} with a {name}.ckpt in {RUNS}, got none; fit one first")
    return max(found, key=lambda path: read(path, CHECKPOINT).get("global_step", -1))


def note_start(folder: Path) -> None:
    """Adds a run that has its first checkpoint to the list of starts."""
    STARTED.parent.mkdir(exist_ok=True)
    with STARTED.open("a") as file:
        file.write(f"{folder}\n")


def new_folder(parent: Path, name: str | None = None) -> Path:
    """Makes ``parent/name`` or the next ``version_<n>`` for one run alone: of two at once each has its own.

    Raises ValueError where the folder ``name`` is there already, or the name isn't that of a folder.
    """
    if name is not None and (Path(name).name != name or name in ("", "..")):
        raise ValueError(f"expected the name of a folder, got {name}")
    taken = (path.name.removeprefix("version_") for path in parent.glob("version_*"))
    largest = max(map(int, filter(str.isdigit, taken)), default=0)
    for each in (f"version_{number}" for number in count(largest)) if name is None else [name]:
        with suppress(FileExistsError):  # of another run, which may have begun at the same time
            (parent / each).mkdir(parents=True)
            return parent / each
    raise ValueError(f"expected a new name, got {name}: {parent / str(name)} is there already")
