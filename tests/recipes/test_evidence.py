"""recipes/evidence.sh: its experiments, its tables, and a whole run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from corecli.cli.app import build_app

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "recipes" / "evidence"
CLAIMS = sorted(path.stem for path in (EVIDENCE / "claims").glob("*.mk"))
SCALES = sorted(path.stem for path in (EVIDENCE / "scales").glob("*.mk"))


def output(*command: str) -> str:
    """What a command prints."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("scale", SCALES)
def test_every_command_line_can_be_parsed(scale: str, tmp_path: Path) -> None:
    places = (f"OUT={tmp_path}/out", f"RESULTS={tmp_path}/results", "SEEDS=10")
    found = [output("bash", "recipes/evidence.sh", claim, scale, "--dry-run", *places) for claim in CLAIMS]
    assert all("corecli train-gen" in lines for lines in found)
    for line in sorted({line for lines in found for line in lines.splitlines() if " python3 " not in line}):
        _, verb, *words = shlex.split(line)
        config = build_app(verb)([verb, *words], standalone_mode=False)  # raises if an option is unknown or malformed
        assert type(config).__module__.startswith("corecli.commands.")


def result(arm: str, seed: int, right: str) -> dict:
    return {
        "setting": "digits",
        "seed": str(seed),
        "arm": arm,
        "scores": {"probe@5": sum(int(digit, 36) for digit in right) / (10 * len(right))},
        "cpu_seconds": 30.0,
        "draws": {"probe@5": 10},
        "right": {"probe@5": right},
    }


@pytest.mark.parametrize(("gain", "verdict"), [(2, "confirmed"), (0, "not visible"), (-2, "refuted")])
def test_the_verdict_follows_from_the_interval(gain: int, verdict: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for seed in range(10, 15):
        base = rng.integers(3, 7, size=200)
        noise = rng.integers(-1, 2, size=200)
        for arm, counts in (("real", base), ("pairs", base + gain + noise)):
            file = tmp_path / "results" / "digits" / str(seed) / f"{arm}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(result(arm, seed, "".join("0123456789a"[count] for count in counts))))
    output(sys.executable, str(EVIDENCE / "table.py"), str(tmp_path / "docs"), str(tmp_path / "results"))
    page = (tmp_path / "docs" / "evidence.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| [pairs](#pairs) | digits |")]
    _, _, _, difference, interval, _, found, minutes, _ = (cell.strip() for cell in row.split("|"))
    mean, (low, high) = float(difference.split()[3]), map(float, interval.split(" to "))
    assert found == verdict
    assert mean == pytest.approx(gain / 10, abs=0.01)  # of ten draws
    spread = np.sqrt(2 / 3 / 1000) / 10  # of the noise, over 5 seeds and 200 images
    assert 2 * 1.5 * spread < high - low < 2 * 3.5 * spread
    assert low < mean < high
    assert minutes == "5"
    assert "pairs &gt; real" in (tmp_path / "docs" / "evidence.svg").read_text()


@pytest.mark.slow
def test_a_run_is_collected_and_not_repeated(tmp_path: Path) -> None:
    small = (
        "STEPS=20",
        "GEN_STEPS=2",
        "SAMPLE=--steps 1",
        "JUDGE=--preset tiny --steps 2",
        "PROBES=probe5",
        "SEEDS=10",
    )
    places = (f"OUT={tmp_path}/out", f"RESULTS={tmp_path}/results", f"DOCS={tmp_path}/docs")
    line = ("bash", "recipes/evidence.sh", "pairs", "digits", *small, *places)
    output(*line)
    pairs, samples = (
        json.loads((tmp_path / f"results/10/{arm}.json").read_text()) for arm in ("pairs", "real.samples")
    )
    counts = [int(digit, 36) for digit in pairs["right"]["probe@5"]]
    assert len(counts) == 896
    assert sum(counts) / 8960 == pytest.approx(pairs["scores"]["probe@5"], abs=1e-5)
    assert samples["scores"]["corrected"] > 0
    assert min(pairs["cpu_seconds"], samples["cpu_seconds"]) > 1
    raw = json.loads((tmp_path / "results/raw.json").read_text())
    assert 0.7 < raw["scores"]["probe@5"] < 0.95
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix in (".json", ".safetensors")}
    output(*line)
    assert before == {path: path.stat().st_mtime_ns for path in before}
