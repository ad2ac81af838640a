r"""What holds for every test."""

import os
from collections.abc import Iterator

import pytest
import torch
from standin import Calls, cudnn_on_a_cpu

from manual_rnn.kernels import aten
from manual_rnn.ops import higher_order


def pytest_configure() -> None:
    """Workers beside each other take one core each."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def calls() -> Iterator[Calls]:
    """cuDNN on a CPU: what its operators were given."""
    with cudnn_on_a_cpu() as calls:
        yield calls


@pytest.fixture(autouse=True)
def _any_length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine runs at every length, for the sequences of tests are short. The mark `users_lengths` leaves
    the choice as users have it."""
    if "users_lengths" not in request.keywords:
        monkeypatch.setattr(aten, "SHORT", 0)
        monkeypatch.setattr(aten, "SINGLE", 0)
        monkeypatch.setattr(higher_order, "FEW", 0)
