"""What the verbs add to the work itself: time beside the bare forward pass, memory at 50,000 images, start-up."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from corecli.cli import app as cli
from corecli.data.imageset import open_set, write_set
from corecli.data.rows import make_rows
from corecli.nets.encoder import load_encoder

pytestmark = pytest.mark.bench
MANY = 50_000


def write_images(path: Path, num: int, size: int) -> Path:
    """A packed set of random images in ten classes."""
    rows = make_rows([f"{i % 10}/{i:06d}" for i in range(num)], labels=np.arange(num) % 10)
    generator = torch.Generator().manual_seed(0)
    chunks = (
        torch.randint(256, (min(1000, num - start), 3, size, size), dtype=torch.uint8, generator=generator)
        for start in range(0, num, 1000)
    )
    write_set(path, rows, chunks, class_names=tuple("0123456789"), header={})
    return path


def line(*words: object) -> list[str]:
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verbs")
    write_images(root / "few.safetensors", 512, 32)
    encoder = line("train-ssl", "--data", root / "few.safetensors", "--steps", 1, "--batch-size", 64, "-q")
    assert cli.run_line([*encoder, *line("--backbone", "resnet18", "--out", root / "f.safetensors")]) == 0
    generator = line("train-gen", "--preset", "tiny", "--data", "digits:8:train", "--steps", 1, "-q")
    assert cli.run_line([*generator, *line("--out", root / "g.safetensors")]) == 0
    return root


def test_extract_costs_no_more_than_its_forward_pass(folder: Path) -> None:
    """At most 10 % above a bare loop over the same batches with the same network, medians of 5, one thread."""
    torch.set_num_threads(1)
    write_images(folder / "some.safetensors", 1024, 32)
    encoder = load_encoder(folder / "f.safetensors")
    data = open_set(str(folder / "some.safetensors"))
    ratios, seconds = [], []
    for attempt in range(5):
        out = folder / f"z{attempt}.safetensors"
        words = line("extract", "--data", folder / "some.safetensors", "--encoder", folder / "f.safetensors", "-q")
        start = time.process_time()
        assert cli.run_line([*words, *line("--layer", "backbone", "--out", out)]) == 0
        verb = time.process_time() - start
        start = time.process_time()
        with torch.no_grad():
            for first in range(0, 1024, 256):
                encoder.encode(data.read(np.arange(first, first + 256)))
        bare = time.process_time() - start
        ratios.append(verb / bare)
        seconds.append((verb, bare))
    ratio = statistics.median(ratios)
    print(f"\nextract, resnet18 at 32 px, 1024 images: {ratio:.3f} of the bare forward pass; CPU s {seconds}")
    assert ratio <= 1.10


LOADED = """
import sys
from pathlib import Path
from corecli.nets.encoder import load_encoder
load_encoder(Path(sys.argv[1]))
code = 0
"""
VERB = """
import sys
from corecli.cli import app as cli
code = cli.run_line(sys.argv[1:])
"""
# Not getrusage, whose maximum a process inherits from the one that started it.
PEAK = """
print(code, open("/proc/self/status").read().split("VmHWM:")[1].split()[0], file=sys.stderr)
"""


def peak_bytes(script: str, *words: object) -> int:
    """The peak resident memory of a script in a process of its own."""
    done = subprocess.run([sys.executable, "-c", script + PEAK, *line(*words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code, kilobytes = done.stderr.splitlines()[-1].split()
    assert code == "0", done.stderr
    return int(kilobytes) * 1024


@pytest.mark.parametrize("verb", ["extract", "sample", "fid"])
def test_memory_at_50000_images_stays_under_1_gb_above_the_model(folder: Path, verb: str) -> None:
    few, many = folder / "few.safetensors", folder / "many.safetensors"
    if not many.exists():
        write_images(many, MANY, 32)
        tiny = line("train-ssl", "--preset", "tiny", "--data", few, "--steps", 1, "-q")
        assert cli.run_line([*tiny, *line("--out", folder / "tiny.safetensors")]) == 0
    extractor = folder / "tiny.safetensors"
    lines = {
        "extract": line("--data", many, "--encoder", extractor, "--out", folder / "z.safetensors"),
        "fid": line("--reference", many, "--samples", many, "--extractor", extractor),
        "sample": line(
            "--ckpt", folder / "g.safetensors", "--num", MANY, "--steps", 1, "--out", folder / "s.safetensors"
        ),
    }
    model = peak_bytes(LOADED, extractor)
    full = peak_bytes(VERB, verb, *lines[verb], "-q")
    print(f"\n{verb}: {(full - model) / 1e6:.0f} MB above the {model / 1e6:.0f} MB of python, torch and a tiny model")
    assert full - model < 1e9


def test_help_starts_at_once() -> None:
    """`corecli --help` under 0.25 s of CPU time, median of 5, without torch."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "corecli", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    listed = (
        "import json, sys; from corecli.cli import app; app.run_line(['--help']); print(json.dumps(list(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", listed], check=True, capture_output=True, text=True)
    modules = json.loads(done.stdout.splitlines()[-1])
    print(f"\ncorecli --help: {statistics.median(seconds):.3f} s of CPU time")
    assert "torch" not in modules
    assert statistics.median(seconds) < 0.25
