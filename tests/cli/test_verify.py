"""verify: whole files of every kind pass, and every flipped bit in anything with a hash is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ran import Run, refused

KINDS = {  # of the files of `tiny`
    "f.safetensors": "encoder",
    "z.safetensors": "features",
    "g.pt": "generator",
    "real.safetensors": "image set (packed)",
    "syn": "image set",
    "masks": "image set",
    "mix.json": "mixture",
    "f.safetensors.d": "run folder",
}


@pytest.fixture
def here(run: Run, tiny: Path) -> Path:
    """A copy of the small files in the working directory of `run`."""
    for name in KINDS:
        copy = shutil.copytree if (tiny / name).is_dir() else shutil.copy
        copy(tiny / name, name)
    return Path()


def flips(path: Path, num: int, seed: int = 0) -> Iterator[int]:
    """Flip one bit of a file at a time, at seeded positions; yield the position while it is flipped."""
    data, rng = path.read_bytes(), np.random.default_rng(seed)
    for position in rng.integers(0, len(data), num).tolist():
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        yield position
    path.write_bytes(data)


def test_whole_files_of_every_kind_pass(run: Run, here: Path) -> None:
    ran = run("verify", *KINDS)
    assert ran.code == 0, ran.out + ran.err
    lines = [line.split("\t") for line in ran.out.splitlines()]
    assert [(path, status) for path, status, _ in lines] == [(path, "ok") for path in KINDS]
    assert [what.partition(",")[0] for *_, what in lines] == list(KINDS.values())


def test_all_paths_are_checked_and_one_that_differs_decides_the_exit_code(run: Run, here: Path) -> None:
    Path("z.safetensors").write_bytes(Path("z.safetensors").read_bytes()[:-9])
    ran = run("verify", "z.safetensors", "absent", "f.safetensors", "--json")
    assert ran.code == 65
    records = [json.loads(line) for line in ran.out.splitlines()]
    assert [record["status"] for record in records] == ["differs", "missing", "ok"]
    assert records[2]["hashes"] > 0 and records[2]["error"] is None
    assert ran.err.splitlines()[-1] == (
        "corecli verify: error: 2 of 3 paths differ or are missing (their lines on standard output say why)"
    )
    missing = run("verify", "absent", "-q")
    assert (missing.code, missing.err) == (66, "corecli verify: error: absent: no such file or directory\n")
    assert missing.out == "absent\tmissing\tabsent: no such file or directory\n"
    refused(run("verify"), "verify", 2, "PATH is required")


@pytest.mark.parametrize("name", ["f.safetensors", "z.safetensors", "real.safetensors"])
def test_every_flip_in_tensors_is_found(run: Run, here: Path, name: str) -> None:
    silent = [position for position in flips(Path(name), 25) if run("verify", name, "-q").code != 65]
    assert not silent
