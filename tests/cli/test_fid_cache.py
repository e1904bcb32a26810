"""`corecli fid --cache`: features are reused only for the same images and the same network."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ran import Run

from corecli.base import checkpoint
from corecli.commands.fid import images
from corecli.nets.encoder import Encoder

CACHE = Path("cache")


def write_images(folder: Path) -> None:
    """Write twenty uncompressed images, so that a change of pixels keeps the file size."""
    pixels = np.random.default_rng(0).integers(0, 255, (20, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        path = folder / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, compress_level=0)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images in each call of an encoder."""
    seen: list[int] = []
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, x, *more: seen.append(len(x)) or encode(self, x, *more))
    return seen


def measure(run: Run, tiny: Path, *more: object) -> dict[str, Any]:
    line = ("fid", "--reference", tiny / "real.safetensors", "--samples", "in", "--extractor", tiny / "f.safetensors")
    ran = run(*line, "--metrics", "all", "--json", "-q", *more)
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def files() -> list[Path]:
    return sorted(CACHE.iterdir())


def test_features_are_extracted_once(run: Run, tiny: Path, encoded: list[int]) -> None:
    write_images(Path("in"))
    without = measure(run, tiny)
    encoded.clear()
    cold = measure(run, tiny, "--cache", CACHE)
    assert sum(encoded) == 355 + 20
    before = [(path, path.stat().st_mtime_ns) for path in files()]
    encoded.clear()
    assert measure(run, tiny, "--cache", CACHE) == cold == without
    assert encoded == []
    assert [(path, path.stat().st_mtime_ns) for path in files()] == before
    assert len(before) == 2


def test_a_changed_image_is_never_served_from_the_cache(run: Run, tiny: Path) -> None:
    write_images(Path("in"))
    first = measure(run, tiny, "--cache", CACHE)
    image = np.asarray(Image.open("in/a/00.png")).copy()
    size = Path("in/a/00.png").stat().st_size
    image[0, 0, 0] ^= 128
    Image.fromarray(image).save("in/a/00.png", compress_level=0)
    assert Path("in/a/00.png").stat().st_size == size
    second = measure(run, tiny, "--cache", CACHE)
    assert second == measure(run, tiny) != first
    assert len(files()) == 2
    Path("in/a/00.png").rename("in/b/00.png")
    assert measure(run, tiny, "--cache", CACHE) == measure(run, tiny) != second


def test_each_network_layer_and_size_has_features_of_its_own(run: Run, tiny: Path) -> None:
    write_images(Path("in"))
    seen = [measure(run, tiny, "--cache", CACHE)["value"]]
    for more in (("--layer", "projector"), ("--image-size", 4), ("--extractor", tiny / "f1.safetensors")):
        seen.append(measure(run, tiny, "--cache", CACHE, *more)["value"])
        assert seen[-1] == measure(run, tiny, *more)["value"]
    assert len(set(seen)) == 4
    assert len(files()) == 8


@pytest.mark.parametrize("kind", ["flip", "cut", "other"])
def test_a_damaged_file_is_written_again(run: Run, tiny: Path, kind: str) -> None:
    write_images(Path("in"))
    first = measure(run, tiny, "--cache", CACHE)
    contents = {path: path.read_bytes() for path in files()}
    for path, content in contents.items():
        damaged = bytearray(content)
        damaged[-100] ^= 1
        path.write_bytes({"flip": bytes(damaged), "cut": content[:-9], "other": b"features"}[kind])
    assert measure(run, tiny, "--cache", CACHE) == first
    assert {path: path.read_bytes() for path in files()} == contents


def test_concurrent_writers_leave_a_complete_file(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "x.safetensors"
    tensors = {"features": torch.randn(3000, 64)}
    with ThreadPoolExecutor(8) as pool:
        notes = list(pool.map(lambda _: images._keep(path, tensors, pixels="p"), range(24)))
    assert notes == [()] * 24
    assert torch.equal(checkpoint.load(path)[0]["features"], tensors["features"])
    assert list(path.parent.iterdir()) == [path]


def test_a_cache_that_cannot_be_written_gives_a_note_and_the_result(run: Run, tiny: Path) -> None:
    write_images(Path("in"))
    line = ("fid", "--reference", "in", "--samples", "in", "--extractor", tiny / "f.safetensors")
    ran = run(*line, "--cache", "/proc/none/cache")
    assert ran.code == 0
    assert ran.out == run(*line, "-q").out
    assert ran.err.count("features are not cached: ") == 1


def test_a_cache_needs_a_directory_and_images(run: Run, tiny: Path) -> None:
    Path("file").touch()
    line = ("fid", "--reference", tiny / "real.safetensors", "--samples", tiny / "syn")
    ran = run(*line, "--extractor", tiny / "f.safetensors", "--cache", "file")
    assert (ran.code, ran.err.count("\n")) == (73, 1)
    assert "file: exists and is not a directory" in ran.err
    ran = run("fid", "--reference", tiny / "z.safetensors", "--samples", tiny / "z.safetensors", "--cache", CACHE)
    assert (ran.code, ran.out) == (2, "")
    assert "--cache is for features of images" in ran.err
    assert not CACHE.exists()
