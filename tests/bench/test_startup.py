"""CPU time that every verb takes to its first step, on the smallest of inputs, and to print its help.

A limit is measured on an idle machine with all extras installed. CORECLI_BASE names another checkout to compare with.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from corecli.cli.verbs import VERBS

pytestmark = pytest.mark.bench

ROOT = Path(__file__).parents[2]
BASE = os.environ.get("CORECLI_BASE")
TINY = "--steps 1 --batch-size 16 --data digits:8:test"
LINES = {  # in an order in which each finds what it reads
    "train-ssl": f"train-ssl --preset tiny {TINY} --out f.safetensors",
    "extract": "extract --data digits:8:test --encoder f.safetensors --out z.safetensors",
    "train-gen": f"train-gen --preset tiny {TINY} --out g.pt",
    "sample": "sample --ckpt g.pt --num 16 --steps 1 --out syn",
    "inflate": "inflate --real digits:8:test --synthetic syn --out mix.json",
    "show": "show syn --out sheet.png",
    "fid": "fid --reference digits:8:test --samples syn --extractor f.safetensors",
    "probe": "probe --train z.safetensors --test z.safetensors --mode logistic",
    "captions": "captions --concepts digits --num 5 --out c.jsonl",
    "completion": "completion bash",
}
LIMIT_SEC = {"sample": 3, "train-gen": 3, "inflate": 1.2, "show": 1.2, "extract": 3, "fid": 3, "probe": 3.5}
HELP_LIMIT_SEC = 0.25


def cpu_seconds(package: Path, folder: Path, line: str) -> float:
    """CPU seconds, of user and system together, of a command line with the package of a checkout: median of 3."""
    argv = [sys.executable, "-m", "corecli", *line.split()]
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "CORECLI_DEVICE": "cpu"}
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ran = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert ran.returncode == 0, ran.stderr
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(seconds)


def measured(package: Path, folder: Path) -> dict[str, tuple[float, float]]:
    """Verb -> CPU seconds of a tiny run and of its help."""
    folder.mkdir()
    found = {}
    for verb, line in LINES.items():
        more = " --force --quiet" if verb != "completion" else ""
        found[verb] = cpu_seconds(package, folder, line + more), cpu_seconds(package, folder, f"{verb} --help")
    return found


def test_verbs_start_at_once(tmp_path: Path) -> None:
    assert LINES.keys() == VERBS.keys()
    now = measured(ROOT, tmp_path / "now")
    base = measured(Path(BASE), tmp_path / "base") if BASE else {}
    print(
        f"\n{'CPU seconds':12}{'run':>8}{'limit':>8}{'help':>8}"
        + (f"{'base run':>10}{'base help':>10}" if base else "")
    )
    for verb, (run, help_) in now.items():
        row = f"{verb:12}{run:8.2f}{LIMIT_SEC.get(verb, float('nan')):8.1f}{help_:8.2f}"
        print(row + "".join(f"{seconds:10.2f}" for seconds in base.get(verb, ())))
    late = {verb: run for verb, (run, _) in now.items() if run > LIMIT_SEC.get(verb, float("inf"))}
    late |= {f"{verb} --help": seconds for verb, (_, seconds) in now.items() if seconds > HELP_LIMIT_SEC}
    assert not late


HEAVY = {"torch", "torch._dynamo", "torchvision", "transformers", "timm", "rich", "sklearn", "matplotlib"}
PROGRAM = """
import json, sys
from corecli.cli.app import run_line
assert run_line(sys.argv[1:]) == 0
print(json.dumps(sorted(sys.modules)))
"""


def test_verbs_import_what_they_run(tmp_path: Path) -> None:
    """No verb imports torch's compiler, torchvision or an optional package; some do not even import torch."""
    for verb, line in LINES.items():
        argv = [sys.executable, "-c", PROGRAM, *line.split()]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "CORECLI_DEVICE": "cpu"}
        ran = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        imported = HEAVY & set(json.loads(ran.stdout.splitlines()[-1]))
        without_torch = verb in ("inflate", "show", "captions", "completion")
        assert imported == (set() if without_torch else {"torch"}), verb
