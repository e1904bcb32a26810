"""A new family of generators is one file in `generators/`; everything else finds it there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from newcomer import HERE, package, python

from corecli.base.checkpoint import read_header

TRAIN = ("train-gen", "--arch", "toy-family", "--data", "digits:8:test", "--batch-size", "16", "--set", "hidden=32")


@pytest.fixture(scope="module")
def with_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package(tmp_path_factory, "toy_family.py", "generators")


def test_it_trains_and_samples(with_family: Path) -> None:
    out = with_family / "g.safetensors"
    ran = python(with_family, "-m", "corecli", *TRAIN, "--steps", 2, "--condition", "labels", "--out", out, "-q")
    assert (ran.returncode, ran.stdout) == (0, f"{out}\n"), ran
    header = read_header(out)
    assert header is not None and (header["arch"], header["generator"]["hidden"]) == ("toy-family", 32)
    images = with_family / "images.npz"
    sample = ("sample", "--ckpt", out, "--num", 3, "--steps", 2, "--out", images, "-q")
    ran = python(with_family, "-m", "corecli", *sample)
    assert (ran.returncode, ran.stdout) == (0, f"{images}\n"), ran


def test_the_manual_page_and_completion_know_it(with_family: Path) -> None:
    show = "from corecli.cli.pages import completion, man_pages; "
    show += "print(man_pages()['corecli-train-gen.1'], completion('fish'))"
    shown = python(with_family, "-c", show).stdout.replace("\\-", "-")
    assert "A perceptron that predicts the noise" in shown and "Options of --set: hidden=512." in shown
    assert any("toy-family" in line for line in shown.splitlines() if "-l arch" in line)


def test_help_and_checks_know_it(with_family: Path) -> None:
    lines = [
        ["train-gen", "--help"],
        [*TRAIN, "--set", "hiden=8", "--out", "never.pt", "--dry-run"],
        [*TRAIN, "--export-diffusers", "folder", "--out", "never.pt", "--dry-run"],
    ]
    program = f"from corecli.cli.app import run_line; print([run_line(line) for line in {lines}])"
    ran = python(with_family, "-c", program)
    assert "toy-family" in "".join(ran.stdout.split())  # a line may be broken at the hyphen
    assert ran.stdout.endswith("[0, 2, 2]\n"), ran
    assert "unknown option of toy-family 'hiden' (did you mean 'hidden'" in ran.stderr
    assert "diffusers has no classes for toy-family" in ran.stderr


def test_it_is_held_to_the_contract(with_family: Path) -> None:
    quick = "overfits or condition_changes or ignores or pure_function or two_ranks or (every_parameter and features)"
    tests = (HERE / "test_generators.py", "-k", f"toy-family and ({quick})", "-p", "no:cacheprovider")
    ran = python(with_family, "-m", "pytest", *tests)
    assert ran.returncode == 0, ran.stdout
    passed = re.search(r"^(\d+) passed", ran.stdout, re.MULTILINE)
    assert passed is not None and int(passed[1]) >= 10, ran.stdout
