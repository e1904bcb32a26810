"""What tests of several folders share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ranks import Ranks


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    """Two processes in a gloo group, started once."""
    ranks = Ranks(2)
    yield ranks
    ranks.close()
