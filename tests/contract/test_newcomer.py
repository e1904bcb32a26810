"""A method that somebody else writes: one file in `ssl/`, nothing else, and it is there like those that were."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import corecli
from corecli.base.checkpoint import read_header

HERE = Path(__file__).parent
TRAIN = ("train-ssl", "--preset", "tiny", "--method", "toy-method", "--data", "digits:8:test", "--batch-size", "16")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package that has one more method."""
    folder = tmp_path_factory.mktemp("newcomer")
    shutil.copytree(Path(corecli.__file__).parent, folder / "corecli")
    shutil.copy(HERE / "toy_method.py", folder / "corecli" / "ssl")
    return folder


def python(package: Path, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(package), "CORECLI_DEVICE": "cpu", "COLUMNS": "100"}
    argv = [sys.executable, *map(str, words)]
    return subprocess.run(argv, cwd=package, env=environment, capture_output=True, text=True, timeout=240)


def test_a_newcomer_trains(package: Path) -> None:
    out = package / "f.safetensors"
    ran = python(package, "-m", "corecli", *TRAIN, "--set", "spread=0.5", "--steps", 3, "--out", out)
    assert (ran.returncode, ran.stdout) == (0, f"{out}\n"), ran
    assert read_header(out)["kind"] == "encoder"
    assert "toy-method for 3 steps" in ran.stderr


def test_a_newcomer_is_offered_and_its_options_are_checked(package: Path) -> None:
    offered = python(package, "-m", "corecli", "train-ssl", "--help")
    assert ",toy-method" in "".join(offered.stdout.split())  # which may be broken at its hyphen
    out = package / "never.safetensors"
    refused = python(package, "-m", "corecli", *TRAIN, "--set", "spred=0.5", "--dry-run", "--out", out)
    assert refused.returncode == 2
    assert "unknown option of toy-method 'spred'" in refused.stderr and "did you mean 'spread'" in refused.stderr
    planned = python(package, "-m", "corecli", *TRAIN, "--set", "spread=0.5", "--dry-run", "--out", out)
    assert planned.returncode == 0
    assert "views\t2g\n" in planned.stdout and "spread=0.5" in planned.stdout
    assert not out.exists()


def test_a_newcomer_is_held_to_the_contract(package: Path) -> None:
    tests = (HERE / "test_methods.py", "-k", "toy-method and not two_processes")  # starting those takes long
    ran = python(package, "-m", "pytest", *tests, "-p", "no:cacheprovider")
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"^\d+ passed", ran.stdout, re.MULTILINE), ran.stdout
