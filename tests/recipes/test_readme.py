"""Every block of the README is run, at toy size, in the environment of the tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
QUICKSTART, ROUND, MORE, METHODS, CAPTIONS, TESTS = (text for _, text in BLOCKS)


def is_set_up() -> bool:
    """Whether tests/run.sh made this environment, so that recipes need not install anything."""
    return any(Path(sys.prefix).glob(".corecli-test-*"))


needs_setup = pytest.mark.skipif(not is_set_up(), reason="recipes install what is missing; run through tests/run.sh")


def run(block: str, tmp_path: Path, **environment: str) -> str:
    """Run a block in bash, with `demo/` in a temporary folder and this environment for `.venv`."""
    text = block.replace(".venv/", f"{sys.prefix}/").replace("demo/", f"{tmp_path}/demo/")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "VIRTUAL_ENV": sys.prefix, **environment}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_block_is_known() -> None:
    assert [language for language, _ in BLOCKS] == ["bash"] * 6
    assert "quickstart.sh" in QUICKSTART
    assert "tests/run.sh" in TESTS
    first = (ROOT / "README.md").read_text().splitlines()[:10]
    assert "```bash" in first


@needs_setup
def test_quickstart_ends_with_its_results(tmp_path: Path) -> None:
    table = run(
        QUICKSTART, tmp_path, OUT=str(tmp_path), JUDGE_STEPS="2", SSL_STEPS="2", GEN_STEPS="2", SAMPLE_STEPS="1"
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {"unconditional", "r2g", "baseline", "pairs", "seconds"}
    assert results["unconditional"]["fd"] > 0
    assert results["r2g"]["fd"] > 0
    assert 0 <= results["baseline"]["top1"] <= 1
    assert 0 <= results["pairs"]["top1"] <= 1
    assert "distance" in table
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 10 * 64


def test_a_round_by_hand_and_what_follows(tmp_path: Path) -> None:
    printed = run(ROUND + MORE + METHODS, tmp_path)
    assert re.search(r"^top1\t[\d.]+$", printed, re.MULTILINE)
    record = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
    assert record["metric"] == "fd[f]"
    assert (tmp_path / "demo" / "sheet.png").exists()
    assert not (tmp_path / "demo" / "big.pt").exists()
    assert (tmp_path / "demo" / "backbone.pt").exists()


def test_captions_become_images_and_an_encoder(tmp_path: Path) -> None:
    run(CAPTIONS, tmp_path)
    assert (tmp_path / "demo" / "synclr.safetensors").exists()
    with Image.open(tmp_path / "demo" / "captions.png") as sheet:
        assert sheet.width > 4 * 64


@needs_setup
def test_the_test_command_collects_the_tests(tmp_path: Path) -> None:
    listed = run(TESTS, tmp_path, PYTEST_ADDOPTS="--collect-only -q tests/recipes")
    assert "test_readme.py" in listed
