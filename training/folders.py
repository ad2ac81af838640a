r"""Where runs are: a folder for one run alone, and the checkpoints in it by name."""

from itertools import count
from pathlib import Path
from urllib.parse import unquote, urlsplit
from zipfile import is_zipfile

RUNS = Path("runs")
NAMED = ("last", "best")
"""The checkpoints that a run keeps."""
CHECKPOINT = "a checkpoint that python -m training wrote"


def find_checkpoint(given: str, task: str = "*") -> Path:
    """The file that is meant: by a path, a ``file://`` of one, or ``last`` or ``best`` of the newest run.

    Raises:
        ValueError: for any other URL, and for a file that is no checkpoint by its form.
        FileNotFoundError: where there is no such file, or no such run of the task.
    """
    if given in NAMED:
        return newest(given, task)
    url = urlsplit(given)
    if "://" in given and url.scheme != "file":
        raise ValueError(f"expected a checkpoint on this machine, got {given}: download it first")
    path = Path(unquote(url.path)) if "://" in given else Path(given)
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint, or last or best, got {path}: {no_file(path)}")
    if not is_zipfile(path):
        raise ValueError(f"expected {CHECKPOINT}, got {path}: it is none, or a part of one")
    return path


def no_file(path: Path) -> str:
    """Why a path is no file."""
    return "a folder" if path.is_dir() else "no such file"


def newest(name: str, task: str) -> Path:
    found = list(RUNS.glob(f"{task}/*/checkpoints/{name}.ckpt"))
    if not found:
        of = "" if task == "*" else f" of {task}"
        raise FileNotFoundError(f"expected a run{of} with a {name}.ckpt in {RUNS}, got none; fit one first")
    return max(found, key=lambda path: path.stat().st_mtime)


def new_folder(parent: Path, name: str | None = None) -> Path:
    """Makes ``parent/name`` or the next ``version_<n>`` for one run alone: of two at once each has its own.

    Raises:
        ValueError: where the folder ``name`` is there already.
    """
    if name is not None:
        if not made(parent / name):
            raise ValueError(f"expected a new name, got {name}: {parent / name} is there already")
        return parent / name
    taken = [
        int(n) for n in (p.name.removeprefix("version_") for p in parent.glob("version_*")) if n.isdigit()
    ]
    return next(folder for n in count(max(taken, default=-1) + 1) if made(folder := parent / f"version_{n}"))


def made(folder: Path) -> bool:
    """Whether this call made the folder."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True
