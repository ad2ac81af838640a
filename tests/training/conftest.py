r"""What holds for every test of training."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training_runs import CommandLine, command_line


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As every run has it: the networks here are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[CommandLine]:
    """A function that runs a command line in a folder of its own."""
    yield from command_line(tmp_path, monkeypatch, capsys)
