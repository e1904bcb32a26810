"""recipes/mixing.sh, mixdiff.sh, genssl.sh and synclr.sh: with generators of their own, or pipelines of diffusers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = {
    "DATA": "digits:8:test",
    "TEST": "digits:8:test",
    "FIRST": "--preset tiny",
    "PRESET": "tiny",
    "SSL_FLAGS": "--steps 2 --batch-size 64",
    "GEN_PRESET": "tiny",
    "GEN_FLAGS": "--steps 2",
    "SAMPLE_FLAGS": "--steps 1",
    "PROBE_FLAGS": "--epochs 1 --seeds 1",
}


def run(recipe: str, **variables: str) -> list[str]:
    """The lines of its table."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ("bash", f"recipes/{recipe}.sh")
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path, **TINY, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.slow
def test_mixing_with_its_own_generator(tmp_path: Path) -> None:
    table = run("mixing", METHODS="simclr", POLICIES="real mixdiff", VARIANTS="1", OUT=str(tmp_path))
    assert table[0].split() == ["probe", "top1", "real", "mixdiff"]
    method, *top1 = table[1].split()
    assert method == "simclr" and len(top1) == 2 and all(0 <= float(score) <= 1 for score in top1)


@pytest.mark.slow
def test_mixdiff_with_its_own_generator(tmp_path: Path) -> None:
    table = run("mixdiff", METHODS="simclr", OUT=str(tmp_path))
    assert [line.split()[:2] for line in table] == [["probe", "top1"], ["simclr", "1"]]


@pytest.mark.slow
def test_genssl_with_a_pipeline(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from pipelines import save_unclip_images

    save_unclip_images(tmp_path / "unclip")
    table = run(
        "genssl",
        GENERATOR=f"diffusers:{tmp_path / 'unclip'}",
        METHODS="simclr",
        PROBABILITIES="0 1",
        VARIANTS="1",
        SIZE="8",
        OUT=str(tmp_path / "out"),
    )
    assert table[0].split() == ["probe", "top1", "p", "=", "0", "p", "=", "1"]
    assert len(table[1].split()) == 3


SYNCLR = {
    "NUM": "60",
    "TRAIN": "digits:8:test",
    "GEN_FLAGS": "--preset tiny --steps 2",
    "SSL_FLAGS": "--preset synclr-micro --backbone vit-micro-moco/2 --views 1g --augment crop --steps 2",
    "BATCH": "16",
    "SAMPLE_FLAGS": "--steps 1",
}


@pytest.mark.slow
def test_synclr_with_its_own_generator(tmp_path: Path) -> None:
    table = run("synclr", **SYNCLR, OUT=str(tmp_path))
    assert [line.split()[0] for line in table] == ["alike", "synclr", "simclr", "supervised", "untrained"]
    assert (tmp_path / "sheet.png").stat().st_size > 1000


@pytest.mark.slow
def test_synclr_with_a_pipeline(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from pipelines import save_text_to_image

    save_text_to_image(tmp_path / "stable-diffusion")
    pipeline = f"diffusers:{tmp_path / 'stable-diffusion'}"
    flags = {"SAMPLE_FLAGS": "--steps 2 --guidance 2.5 --image-size 8"}
    table = run("synclr", **{**SYNCLR, **flags}, GENERATOR=pipeline, ROWS="synclr", OUT=str(tmp_path / "out"))
    assert [line.split()[0] for line in table] == ["alike", "synclr"]


@pytest.mark.slow
def test_the_families_of_generators(tmp_path: Path) -> None:
    rows = {"FAMILIES": "ldm icgan", "CONDITIONS": "none features", "STEPS": "2", "NUM": "16"}
    flags = {"SSL_PRESET": "tiny", "GEN_FLAGS": "--batch-size 16", "DIFFUSION_FLAGS": "--steps 1"}
    table = run("generators", **{**rows, **flags}, DATA="digits:16:test", OUT=str(tmp_path))
    assert [line.split()[0] for line in table] == ["fd", "ldm", "icgan"]
    assert all(len(line.split()) == 1 + 2 * 3 for line in table[1:])
