"""A sampler, a noise schedule and an objective that somebody else writes: one file each, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import newcomer
import pytest
from newcomer import HERE, python

TOYS = ("toy-sampler", "toy_schedule", "toy-objective")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package that has one more sampler, schedule and objective."""
    folder = newcomer.package(tmp_path_factory, "toy_sampler.py", "diffusion/samplers")
    shutil.copy(HERE / "toy_schedule.py", folder / "corecli" / "diffusion" / "schedules")
    shutil.copy(HERE / "toy_objective.py", folder / "corecli" / "diffusion" / "objectives")
    return folder


def test_newcomers_are_in_help_and_completions_and_pages(package: Path) -> None:
    for verb, names in (("sample", TOYS[:1]), ("train-gen", TOYS[1:])):
        offered = "".join(python(package, "-m", "corecli", verb, "--help").stdout.split())
        assert all(name in offered for name in names)
    for folder in ("man", "completions"):
        (package / folder).mkdir()
    assert python(package, "-m", "corecli.cli.pages", package / "man", package / "completions").returncode == 0
    assert "noise=1" in (package / "man" / "corecli-sample.1").read_text()
    completions = "".join(path.read_text() for path in (package / "completions").iterdir())
    assert all(name in completions for name in TOYS)


def test_newcomers_train_and_sample_and_are_exported(package: Path) -> None:
    generator, exported = package / "g.safetensors", package / "exported"
    train = ("train-gen", "--preset", "tiny", "--data", "digits:8:test", "--steps", "2", "--out", generator)
    ran = python(package, "-m", "corecli", *train, "--schedule", TOYS[1], "--export-diffusers", exported)
    assert ran.returncode == 0, ran.stderr
    config = json.loads((exported / "scheduler" / "scheduler_config.json").read_text())
    assert len(config["trained_betas"]) == config["num_train_timesteps"]
    sample = ("sample", "--ckpt", generator, "--num", "3", "--sampler", TOYS[0], "--steps", "4")
    made = python(package, "-m", "corecli", *sample, "--set", "noise=0.5", "--out", package / "syn")
    assert made.returncode == 0, made.stderr
    refused = python(package, "-m", "corecli", *sample, "--set", "nois=1", "--dry-run", "--out", package / "never")
    assert refused.returncode == 2
    assert "unknown option of toy-sampler 'nois'" in refused.stderr and "did you mean 'noise'" in refused.stderr


def test_newcomers_are_held_to_the_contracts(package: Path) -> None:
    files = [HERE / f"test_{kind}.py" for kind in ("samplers", "schedules", "objectives")]
    wanted = f"(test_samplers and {TOYS[0]}) or {TOYS[1]} or ({TOYS[2]} and (parameter or ranks))"
    ran = python(package, "-m", "pytest", *files, "-k", wanted, "-p", "no:cacheprovider")
    assert ran.returncode == 0, ran.stdout
    passed = re.search(r"^(\d+) passed", ran.stdout, re.MULTILINE)
    assert passed and int(passed[1]) > 15, ran.stdout
