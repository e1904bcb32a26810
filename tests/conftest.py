"""What tests of several folders share."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: small tensors gain nothing from threads that wait

import pytest
from ranks import Ranks


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    """Two processes in a gloo group, started once."""
    ranks = Ranks(2)
    yield ranks
    ranks.close()
