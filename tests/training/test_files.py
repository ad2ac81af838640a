"""Files: written whole, read without running their code, found by name; folders that are one run's alone."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from training.files import (
    WholeCheckpoints,
    find_checkpoint,
    new_folder,
    note_start,
    read_checkpoint,
    write_whole,
)


class Payload:
    """What a pickle of it does when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("it_ran"),)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    write_whole(path, b"before")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*last\.ckpt'"):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_written_is_beside_the_target_until_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    seen: list[set[str]] = []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append({p.name for p in tmp_path.iterdir()}))
    WholeCheckpoints().save_checkpoint({"w": torch.ones(2)}, path)
    assert seen[0] == {"last.ckpt.part"}
    assert seen[-1] == {"last.ckpt"}
    assert torch.equal(torch.load(path, weights_only=True)["w"], torch.ones(2))


def test_no_code_of_a_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "hyper_parameters": Payload()}, "bad.ckpt")
    with pytest.raises(ValueError, match="holds more than tensors and names"):
        read_checkpoint(Path("bad.ckpt"))
    assert not Path("it_ran").exists()
    torch.load("bad.ckpt", weights_only=False)
    assert Path("it_ran").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"caf\xe9", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ValueError, match=r"expected a checkpoint that .* got .*other, which can't be read"):
        read_checkpoint(tmp_path / "other")


def test_two_runs_at_once_get_two_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_folder(tmp_path / "Adding"), range(40)))
    assert {folder.name for folder in folders} == {f"version_{i}" for i in range(40)}
    assert new_folder(tmp_path / "Adding", "mine").name == "mine"
    with pytest.raises(ValueError, match="expected a new name, got mine"):
        new_folder(tmp_path / "Adding", "mine")


@pytest.mark.parametrize("name", ["a/b", "../x", "..", ".", "", "/tmp"])
def test_a_name_that_is_none_of_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="expected the name of a folder, got"):
        new_folder(tmp_path / "runs" / "Adding", name)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt.part").write_bytes(b"half of a longer one")
    other = tmp_path / "download.part"
    other.touch()
    write_whole(tmp_path / "last.ckpt", b"whole")
    assert (tmp_path / "last.ckpt").read_bytes() == b"whole"
    assert set(tmp_path.iterdir()) == {tmp_path / "last.ckpt", other}  # another program's is left alone


def run_folder(name: str, step: int, age: int) -> Path:
    """A run folder whose checkpoint was written at a time and is of a step."""
    path = Path("runs") / name / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"global_step": step}, path)
    os.utime(path, (age, age))
    return path.parents[1]


def test_last_and_best_are_those_of_the_run_that_began_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(["Adding/b", "Parity/c", "Adding/a"]):
        note_start(run_folder(name, step=30 - age, age=99 - age))  # neither steps nor times say so
    assert find_checkpoint("last", "Adding").parts[2] == "a"
    assert find_checkpoint("last").parts[2] == "a"
    assert find_checkpoint("last", "Parity").parts[2] == "c"
    with pytest.raises(FileNotFoundError, match=r"expected a run of Adding with a best\.ckpt"):
        find_checkpoint("best", "Adding")


def test_where_no_start_was_noted_last_goes_by_step_and_not_by_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_folder("Adding/a", step=20, age=1)
    run_folder("Adding/b", step=10, age=2)
    assert find_checkpoint("last").parts[2] == "a"


def test_a_checkpoint_is_a_file_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("a b.ckpt").absolute()
    torch.save({}, path)
    assert find_checkpoint(path.as_uri()) == path
    with pytest.raises(FileNotFoundError, match="no such file"):
        find_checkpoint("http://localhost/last.ckpt")
    with pytest.raises(FileNotFoundError, match=r"got \.: a folder"):
        find_checkpoint(".")
