"""One new file in `corecli/data/formats/` adds an image-set format: every verb reads it, writes it and lists it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from newcomer import HERE, python
from newcomer import package as new_package

RUN = "from corecli.cli.app import run_line\nfor line in {}: assert run_line(line.split()) == 0, line"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_package(tmp_path_factory, "toy_format.py", "data/formats")


def test_verbs_read_and_write_a_new_format(package: Path) -> None:
    lines = (
        "inflate --real digits:8:test --materialize d.raw",
        "train-ssl --preset tiny --data d.raw --batch-size 16 --steps 1 --out f.safetensors",
        "extract --data d.raw --encoder f.safetensors --out h.safetensors",
        "show d.raw --out d.png",
        "train-gen --preset tiny-dit --data d.raw --batch-size 16 --steps 1 --out g.safetensors",
        "sample --ckpt g.safetensors --num 3 --steps 1 --format toy-format --out syn",
        "sample --ckpt g.safetensors --num 3 --steps 1 --format toy-format --shards 2 --out many",
        "inflate --real d.raw --synthetic many --out mix.json",
        "verify d.raw many mix.json",
    )
    ran = python(package, "-c", RUN.format(lines))
    assert ran.returncode == 0, ran
    written = [(package / name).read_bytes()[:4] for name in ("d.raw", "syn", "many/part-000001.raw")]
    assert written == [b"raw "] * 3
    again = python(package, "-m", "corecli", *lines[0].replace("8:test", "8:train").split())
    assert again.returncode == 73
    assert "d.raw: exists with another config" in again.stderr


def test_help_completion_and_errors_list_a_new_format(package: Path) -> None:
    pages = "from corecli.cli.pages import *\nprint(*man_pages().values(), completion('bash'))"
    shown = python(package, "-c", f"{pages}\n{RUN.format(['sample --help'])}").stdout.replace(r"\-", "-")
    assert len(re.findall("toy-format", shown)) >= 5, "two man pages, two options to complete, and the help list it"
    (package / "other").write_bytes(b"something else")
    refused = python(package, "-m", "corecli", "show", "other", "--out", "o.png")
    assert refused.returncode == 65
    assert "a .raw file" in refused.stderr


def test_a_new_format_keeps_the_contract(package: Path) -> None:
    ran = python(package, "-m", "pytest", HERE / "test_formats.py", "-k", "toy-format", "-p", "no:cacheprovider")
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"^\d\d passed", ran.stdout, re.MULTILINE), ran.stdout
