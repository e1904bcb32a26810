"""One new file in `corecli/ssl/` adds a method: the command line, help and the contract tests know it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from newcomer import HERE, python
from newcomer import package as new_package

from corecli.base.checkpoint import read_header

TRAIN = ("train-ssl", "--preset", "tiny", "--method", "toy-method", "--data", "digits:8:test", "--batch-size", "16")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_package(tmp_path_factory, "toy_method.py", "ssl")


def test_a_new_method_trains(package: Path) -> None:
    out = package / "f.safetensors"
    ran = python(package, "-m", "corecli", *TRAIN, "--set", "spread=0.5", "--steps", 3, "--out", out)
    assert (ran.returncode, ran.stdout) == (0, f"{out}\n"), ran
    assert read_header(out)["kind"] == "encoder"
    assert "toy-method for 3 steps" in ran.stderr


def test_help_lists_a_new_method_and_its_options_are_checked(package: Path) -> None:
    shown = python(package, "-m", "corecli", "train-ssl", "--help")
    assert ",toy-method" in "".join(shown.stdout.split())  # a line may break at its hyphen
    out = package / "never.safetensors"
    refused = python(package, "-m", "corecli", *TRAIN, "--set", "spred=0.5", "--dry-run", "--out", out)
    assert refused.returncode == 2
    assert "unknown option of toy-method 'spred'" in refused.stderr and "did you mean 'spread'" in refused.stderr
    planned = python(package, "-m", "corecli", *TRAIN, "--set", "spread=0.5", "--dry-run", "--out", out)
    assert planned.returncode == 0
    assert "views\t2g\n" in planned.stdout and "spread=0.5" in planned.stdout
    assert not out.exists()


def test_man_page_and_completions_list_a_new_method(package: Path) -> None:
    for folder in ("man", "completions"):
        (package / folder).mkdir()
    built = python(package, "-m", "corecli.cli.pages", "man", "completions")
    assert built.returncode == 0, built.stderr
    page = (package / "man" / "corecli-train-ssl.1").read_text().replace("\\-", "-")
    assert "Alignment and uniformity" in page and "Options of --set: spread=1.0." in page
    for script in ("corecli", "_corecli", "corecli.fish"):
        assert "toy-method" in (package / "completions" / script).read_text()


def test_the_contract_tests_cover_a_new_method(package: Path) -> None:
    tests = (HERE / "test_methods.py", "-k", "toy-method and not two_processes")  # starting two processes takes long
    ran = python(package, "-m", "pytest", *tests, "-p", "no:cacheprovider")
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"^\d+ passed", ran.stdout, re.MULTILINE), ran.stdout
