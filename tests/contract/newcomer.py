"""A copy of the package with one more file in a registry folder, and lines run with that copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import corecli

HERE = Path(__file__).parent


def package(tmp_path_factory: pytest.TempPathFactory, toy_file: str, folder: str) -> Path:
    """Return a folder that holds a copy of the package, with `tests/contract/TOY_FILE` added to `corecli/FOLDER`."""
    place = tmp_path_factory.mktemp("newcomer")
    shutil.copytree(Path(corecli.__file__).parent, place / "corecli")
    shutil.copy(HERE / toy_file, place / "corecli" / folder)
    return place


def python(package: Path, *words: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS...` on the CPU with the copy of the package; return the exit code and the output."""
    environment = {**os.environ, "PYTHONPATH": str(package), "CORECLI_DEVICE": "cpu", "COLUMNS": "100"}
    argv = [sys.executable, *map(str, words)]
    return subprocess.run(argv, cwd=package, env=environment, capture_output=True, text=True, timeout=timeout)
