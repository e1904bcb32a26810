"""recipes/self-consuming.sh and recipes/data-scarce.sh: who learns from what, and a toy run of each."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = {
    "DATA": "digits:8:test",
    "TEST": "digits:8:test",
    "ROUNDS": "2",
    "SSL_PRESET": "tiny",
    "G2R_PRESET": "tiny",
    "GEN_PRESET": "tiny",
    "SSL_FLAGS": "--steps 2 --batch-size 64",
    "G2R_FLAGS": "--augment weak",
    "GEN_FLAGS": "--steps 2",
    "SAMPLE_FLAGS": "--steps 1",
    "PROBE_FLAGS": "--epochs 1 --seeds 1",
}
SCORES = {"real": 70, "value": 2, "corrected": 1.5, "precision": 1, "recall": 0, "copy_ratio": 1, "top1": 0.5}
# Stands for corecli: notes the line, makes an empty file where it would write one, and prints scores on request.
STAND_IN = f"""#!/usr/bin/env bash
echo "$*" >>"$LINES"
for word; do if [[ ${{before:-}} == --out ]]; then mkdir -p "${{word%/*}}" && touch "$word"; fi; before=$word; done
if [[ " $* " == *" --json "* ]]; then echo '{json.dumps(SCORES)}'; fi
"""


def run(recipe: str, out: Path, **variables: str) -> list[str]:
    """The lines of its table."""
    env = {**os.environ, **TINY, "OUT": str(out), **variables}
    env["PATH"] = f"{variables.get('FIRST', out)}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(["bash", f"recipes/{recipe}.sh"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def planned(recipe: str, tmp_path: Path, **variables: str) -> list[str]:
    """The lines of verbs it would run, once each, with paths below OUT."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "corecli").write_text(STAND_IN)
    (tmp_path / "bin" / "corecli").chmod(0o755)
    lines, out = tmp_path / "lines", tmp_path / "out"
    run(recipe, out, FIRST=str(tmp_path / "bin"), LINES=str(lines), **variables)
    return list(dict.fromkeys(lines.read_text().replace(f"{out}/", "").splitlines()))


# What the third generation learns from.
SEEN = {
    "fully-synthetic": "--synthetic fully-synthetic-CORE/2/samples",
    "replace": "--real digits:8:test --synthetic replace-CORE/2/samples",
    "accumulate": "--real digits:8:test --synthetic first-CORE/samples --synthetic accumulate-CORE/2/samples",
    "fresh": "--real digits:8:test --share 3/3 --synthetic fresh-CORE/2/samples",
}


@pytest.mark.parametrize("core", ["no", "yes"])
@pytest.mark.parametrize("mode", SEEN)
def test_what_a_generation_learns_from(tmp_path: Path, mode: str, core: str) -> None:
    lines = planned("self-consuming", tmp_path, MODE=mode, CORE=core, ROUNDS="3")
    seen, at = SEEN[mode].replace("CORE", core), f"{mode}-{core}/3"
    assert f"inflate {seen} --round 3 --out {at}/data.json" in lines
    assert (f"inflate {seen} --round 3 --repeat 2 --out {at}/g2r.json" in lines) == (core == "yes")
    train_gen, sample = (next(s for s in lines if re.match(f"{v} .*{at}/", s)) for v in ("train-gen", "sample"))
    assert f"--data {at}/data.json" in train_gen
    for line in (train_gen, sample):
        assert (f"--features {at}/z.safetensors" in line) == (core == "yes")
    assert "--num 70" in sample
    assert ("--rows :70" in sample) == (core == "yes")  # of the stand-in's 70 real images
    assert f"--out {at}/f.safetensors" in next(
        s for s in lines if f"{at}/{'g2r' if core == 'yes' else 'data'}.json --steps" in s
    )


def test_loops_share_their_beginning(tmp_path: Path) -> None:
    lines = planned("self-consuming", tmp_path, MODE="replace accumulate", CORE="no")
    assert sum(line.startswith("train-gen") for line in lines) == 3
    assert sum("--seed 1000" in line for line in lines) == 1


def test_few_images_are_judged_by_all(tmp_path: Path) -> None:
    lines = planned("data-scarce", tmp_path, SHARES="0.1", ROUNDS="1")
    assert "inflate --real digits:8:test --fraction 0.1 --out 0.1/data.json" in lines
    distances = [line for line in lines if line.startswith("fid")]
    assert [re.findall(r"--reference (\S+) --samples (\S+) --extractor (\S+)", line)[0] for line in distances] == [
        ("digits:8:test", f"0.1/samples{number}", "judge.safetensors") for number in (0, 1)
    ]
    assert all("--data 0.1/" in s for s in lines if s.startswith("train") and "judge" not in s)
    assert any("--num 700" in line for line in lines)
    assert any("--per-row 10" in line for line in lines)
    assert any("inflate" in line and "--repeat 10" in line for line in lines)


@pytest.mark.slow
def test_a_loop_runs_twice(tmp_path: Path) -> None:
    first = run("self-consuming", tmp_path, MODE="fully-synthetic fresh", CORE="yes")
    assert [line.split()[:3] for line in first[1:]] == [
        [mode, "yes", number] for mode in ("fully-synthetic", "fresh") for number in "12"
    ]
    assert run("self-consuming", tmp_path, MODE="fully-synthetic fresh", CORE="yes") == first
    assert (tmp_path / "fresh-yes" / "2" / "sheet.png").exists()


@pytest.mark.slow
def test_few_images(tmp_path: Path) -> None:
    table = run("data-scarce", tmp_path, SHARES="0.5", ROUNDS="1", PER_ROW="2")
    assert [line.split()[:2] for line in table[1:]] == [["0.5", "0"], ["0.5", "1"]]
