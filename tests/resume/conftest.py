"""Where the lines of this folder's tests run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from killing import Start
from lines import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def start(nursery: Nursery, tmp_path: Path) -> Start:
    (tmp_path / "streams").mkdir()
    return lambda argv: nursery.start(argv, folder=tmp_path / "streams")
