"""A flipped bit in a file of images is refused, or has no effect on anything that is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from corecli.base import checkpoint
from corecli.base.errors import CorecliError
from corecli.base.rng import numpy_generator
from corecli.data.imageset import ImageSet, _record, open_set, write_set
from corecli.data.latents import open_latents, write_latents
from corecli.data.rows import make_rows

NUM, NUM_FLIPS, NUM_SLOW = 60, 200, 4_000
NAMES = ("cat", "cow", "dog")


def _write(path: Path) -> None:
    """60 images of 24 x 20 in two blocks of pixels, with every column."""
    generator = np.random.default_rng(0)
    keys = [f"cat/{i:04d}" for i in range(NUM // 2)] + [f"dog/{i:04d}@{1 + i % 3}" for i in range(NUM // 2)]
    rows = make_rows(
        keys,
        labels=generator.integers(0, 3, NUM),
        groups=[f"caption {i // 4}" for i in range(NUM)],
        similarity=generator.uniform(-1, 1, NUM),
    )
    images = torch.from_numpy(generator.integers(0, 256, (NUM, 3, 24, 20), dtype=np.uint8))
    write_set(path, rows, iter(images.split(25)), class_names=NAMES, header={"identity": {"seed": 3, "data": "x"}})


def _content(path: Path) -> bytes:
    """Everything that can be read of a set: its pixels, rows, names, fingerprint and record."""
    images = open_set(path)
    pixels = images.read_array(np.arange(len(images.rows)))
    return pixels.tobytes() + _described(images) + json.dumps(_record(path), sort_keys=True).encode()


def _described(images: ImageSet) -> bytes:
    rows = images.rows
    columns = [rows.labels, rows.origins, rows.variants, rows.similarity]
    text = [list(rows.keys), list(rows.groups), images.class_names, images.fingerprint, images.image_size]
    return repr([None if column is None else column.tolist() for column in columns] + text).encode()


def _silent(path: Path, read: Callable[[], bytes], *, num: int, name: str) -> list[str]:
    """Flip `num` bits, one at a time; return those after which `read` succeeds with another result.

    Half of the flips are in the first and last 4 KiB, where the headers and indices are.
    """
    intact, expected = path.read_bytes(), read()
    found = []
    for number in range(num):
        generator = numpy_generator(0, "flip", name, number)
        low, high = [(0, len(intact)), (0, 4096), (len(intact) - 4096, len(intact))][number % 4 % 3]
        place, bit = int(generator.integers(max(0, low), min(high, len(intact)))), int(generator.integers(8))
        damaged = bytearray(intact)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            if read() != expected:
                found.append(f"byte {place} bit {bit}")
        except CorecliError:
            continue
    path.write_bytes(intact)
    return found


def _check_set(path: Path, num: int) -> None:
    _write(path)
    assert _silent(path, lambda: _content(path), num=num, name=path.suffix) == []


SUFFIXES = [".safetensors", ".npz"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_flip_in_a_set_is_silent(tmp_path: Path, suffix: str) -> None:
    _check_set(tmp_path / f"x{suffix}", NUM_FLIPS)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_flip_of_thousands_in_a_set_is_silent(tmp_path: Path, suffix: str) -> None:
    _check_set(tmp_path / f"x{suffix}", NUM_SLOW)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_no_flip_in_a_checkpoint_is_silent(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    tensors = {"a": torch.randn(50, 4), "b.weight": torch.arange(7), "mask": torch.tensor([True, False])}
    checkpoint.save(path, tensors, kind="shard", config={"lr": 0.1, "names": ["cat", "dog"]}, step=3)

    def read() -> bytes:
        found, header = checkpoint.load(path, kind="shard")
        only_header = checkpoint.require_header(path)
        return repr([(name, t.dtype, t.tolist()) for name, t in found.items()] + [header, only_header]).encode()

    assert _silent(path, read, num=NUM_FLIPS, name=suffix) == []


def test_no_flip_in_the_header_of_a_checkpoint_is_silent(tmp_path: Path) -> None:
    """Readers that only want to know what a file is do not read its tensors."""
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"a": torch.zeros(3)}, kind="shard", config={"lr": 0.1, "names": ["cat", "dog"]}, step=3)
    read = lambda: json.dumps(checkpoint.read_header(path)).encode()  # noqa: E731
    assert _silent(path, read, num=NUM_FLIPS, name="header") == []


def test_no_flip_in_latents_is_silent(tmp_path: Path) -> None:
    _write(tmp_path / "x.safetensors")
    images, path = open_set(tmp_path / "x.safetensors"), tmp_path / "latents.safetensors"
    moments = torch.randn(NUM, 2, 8, 6, 10).half()
    write_latents(path, images, iter(moments.split(25)), first_stage="f", mirrored=True)

    def read() -> bytes:
        return open_latents(path, images, first_stage="f", mirrored=True).read_array(np.arange(NUM)).tobytes()

    assert read() == moments.numpy().tobytes()
    assert _silent(path, read, num=NUM_FLIPS, name="latents") == []
