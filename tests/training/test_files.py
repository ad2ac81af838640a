"""Files: written whole, read without running their code, found by name; folders that are one run's alone."""

import os
import pickle
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import started, wait_for

from training.checkpoints import read_checkpoint
from training.files import WholeCheckpoints, write_whole
from training.folders import find_checkpoint, new_folder


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
    assert torch.equal(WholeCheckpoints().load_checkpoint(path)["w"], torch.ones(2))


@pytest.mark.parametrize("code", ["", "import time; time.sleep(60)"])
def test_a_wait_for_a_file_ends(tmp_path: Path, code: str) -> None:
    """When the process has ended, and when it takes too long."""
    start = time.monotonic()
    with (
        started([sys.executable, "-c", code], tmp_path) as run,
        pytest.raises(AssertionError, match="got none"),
    ):
        wait_for(tmp_path / "last.ckpt", run, seconds=0.5)
    assert run.returncode is not None
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("load", [read_checkpoint, WholeCheckpoints().load_checkpoint])
def test_no_code_of_a_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "hyper_parameters": Payload()}, "bad.ckpt")
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        load(Path("bad.ckpt"))
    assert not Path("it_ran").exists()
    torch.load("bad.ckpt", weights_only=False)
    assert Path("it_ran").exists()


def test_a_checkpoint_that_names_a_function_is_refused(tmp_path: Path) -> None:
    settings = {"_instantiator": "os.system"}
    content: dict[str, Any] = {
        "hyper_parameters": settings,
        "datamodule_hyper_parameters": {},
        "state_dict": {},
    }
    content["pytorch-lightning_version"] = "2.6"
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match="asks for another function"):
        read_checkpoint(tmp_path / "bad.ckpt")


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


def test_last_and_best_are_those_of_the_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(["Adding/b", "Adding/a", "Parity/c"]):
        path = Path("runs") / name / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        torch.save({}, path)
        os.utime(path, (age, age))
    assert find_checkpoint("last", "Adding").parts[2] == "a"
    assert find_checkpoint("last").parts[2] == "c"
    assert find_checkpoint(path.absolute().as_uri()) == path.absolute()
    with pytest.raises(FileNotFoundError, match=r"expected a run of Adding with a best\.ckpt"):
        find_checkpoint("best", "Adding")
    for url in "http://localhost/last.ckpt", "s3://bucket/last.ckpt":
        with pytest.raises(ValueError, match=f"expected a checkpoint on this machine, got {url}"):
            find_checkpoint(url)
