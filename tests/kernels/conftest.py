r"""What tests of kernels share."""

from collections.abc import Iterator

import pytest
from engine import with_variant


@pytest.fixture
def _variant(request: pytest.FixtureRequest) -> Iterator[None]:
    """The engine by an instruction set: of `engine.every_variant`."""
    with with_variant(request.param):
        yield
