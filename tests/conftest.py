r"""What holds for every test."""

import os

import pytest
import torch


def pytest_configure() -> None:
    """Workers beside each other take one core each."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
