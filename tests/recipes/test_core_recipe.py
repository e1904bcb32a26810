"""recipes/core.sh and recipes/Makefile run the same rounds, skip what is done, and agree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = {
    "DATA": "digits:8:train",
    "TEST": "digits:8:test",
    "ROUNDS": "2",
    "PER_ROW": "1",
    "SSL_PRESET": "tiny",
    "G2R_PRESET": "tiny",
    "GEN_PRESET": "tiny",
    "SSL_FLAGS": "--steps 3",
    "G2R_FLAGS": "--augment weak",
    "GEN_FLAGS": "--steps 3",
    "SAMPLE_FLAGS": "--sampler ddim --steps 1",
}


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, **variables}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_makefile_plans_every_target(tmp_path: Path) -> None:
    planned = run("make", "-n", "-f", "recipes/Makefile", **TINY, OUT=str(tmp_path / "m"))
    assert planned.returncode == 0, planned.stderr
    lines = planned.stdout.splitlines()
    assert sum(line.startswith("corecli train-gen") for line in lines) == 2
    assert sum(line.startswith("corecli train-ssl") for line in lines) == 4
    assert sum("fid" in line and "judge" in line for line in lines) == 2


def test_scripts_are_well_formed() -> None:
    for script in (*ROOT.glob("recipes/*.sh"), *ROOT.glob("recipes/*.sbatch"), ROOT / "tests/run.sh", ROOT / ".ci/run"):
        assert run("bash", "-n", str(script)).returncode == 0, script


@pytest.mark.slow
def test_core_runs_twice_and_make_agrees(tmp_path: Path) -> None:
    first = run("bash", "recipes/core.sh", **TINY, OUT=str(tmp_path / "c"))
    assert first.returncode == 0, first.stderr[-3000:]
    table = first.stdout.splitlines()
    assert [line.split()[0] for line in table] == ["round", "0", "1", "2"]
    again = run("bash", "recipes/core.sh", **TINY, OUT=str(tmp_path / "c"))
    assert again.stdout == first.stdout
    assert "already there" in again.stderr
    made = run("make", "-f", "recipes/Makefile", **TINY, OUT=str(tmp_path / "m"))
    assert made.returncode == 0, made.stderr[-3000:]
    assert "Nothing to be done" in run("make", "-f", "recipes/Makefile", **TINY, OUT=str(tmp_path / "m")).stdout
    for name in ("fd2.json", "probe2.json"):
        one, other = (json.loads((tmp_path / folder / name).read_text()) for folder in "cm")
        key = "value" if "fd" in name else "top1"
        assert one[key] == other[key]


@pytest.mark.slow
def test_pseudo_supervised_rounds_accumulate(tmp_path: Path) -> None:
    variables = {**TINY, "PSL": "2", "SYNTHETIC": "accumulate", "OUT": str(tmp_path)}
    done = run("bash", "recipes/core.sh", **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    mixture = json.loads((tmp_path / "mix2.json").read_text())
    assert [Path(part["set"]).name for part in mixture["parts"]] == ["digits:8:train", "samples1", "samples2"]
