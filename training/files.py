r"""Files that last: a checkpoint is whole, or the one before."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and reads tensors and numbers alone: no code of it runs."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        save_whole(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        return super().load_checkpoint(path, map_location or "cpu", weights_only=True)  # type: ignore[arg-type]


def save_whole(content: Any, path: Path) -> None:
    """``torch.save``, whole or not at all. Raises OSError as :func:`write_whole`."""
    file = io.BytesIO()
    torch.save(content, file)
    write_whole(path, file.getvalue())


def write_whole(path: Path, content: bytes) -> None:
    """Writes beside ``path``, waits for the disk, and renames: a kill or a full disk leaves what was there.

    Raises:
        OSError: where it can't be written, with what was there as it was.
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
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Waits until the names in it are on the disk, where the system can tell."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        os.fsync(handle)
        os.close(handle)
