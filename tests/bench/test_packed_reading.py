"""Packed reading beside a PNG folder: random batches of 256, per image."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from corecli.data.imageset import ImageSet, open_set, write_set
from corecli.data.rows import make_rows

pytestmark = pytest.mark.bench
BATCH, NUM_PACKED, NUM_PNG = 256, 50_000, 5_000


def _write(path: Path, num: int) -> ImageSet:
    """Smooth images of photo-like compressibility, 32 x 32."""
    generator = torch.Generator().manual_seed(0)
    chunks = []
    for start in range(0, num, 1000):
        coarse = torch.rand(min(1000, num - start), 3, 8, 8, generator=generator)
        fine = torch.nn.functional.interpolate(coarse, size=32, mode="bicubic").clamp(0, 1)
        noise = torch.randn(fine.shape, generator=generator) * 0.03
        chunks.append(((fine + noise).clamp(0, 1) * 255).byte())
    write_set(path, make_rows([f"{i:06d}" for i in range(num)]), iter(chunks), class_names=(), header={})
    return open_set(path)


def _torchvision_folder(path: Path) -> Callable[[np.ndarray], torch.Tensor]:
    """The usual way: one file after another through torchvision's decoder."""
    io = pytest.importorskip("torchvision.io")
    files = sorted(str(p) for p in path.glob("*.png"))
    return lambda indices: torch.stack([io.decode_image(io.read_file(files[i]), io.ImageReadMode.RGB) for i in indices])


def _microseconds_per_image(read: Callable[[np.ndarray], torch.Tensor], num: int, batches: int) -> float:
    generator = np.random.default_rng(0)
    times = []
    for _ in range(6):
        drawn = [generator.integers(0, num, BATCH) for _ in range(batches)]
        start = time.perf_counter()
        for indices in drawn:
            read(indices)
        times.append((time.perf_counter() - start) / (batches * BATCH) * 1e6)
    return statistics.median(times[1:])  # the first warms the page cache


def test_packed_is_a_hundred_times_a_png_folder(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    packed, folder = _write(tmp_path / "x.safetensors", NUM_PACKED), _write(tmp_path / "png", NUM_PNG)
    ours = _microseconds_per_image(packed.read, NUM_PACKED, 200)
    png = _microseconds_per_image(folder.read, NUM_PNG, 8)
    peer = _microseconds_per_image(_torchvision_folder(tmp_path / "png"), NUM_PNG, 8)
    print(f"\npacked {ours:.3f} us/image; PNG folder {png:.1f} us ({png / ours:.0f}x), ", end="")
    print(f"through torchvision.io {peer:.1f} us ({peer / ours:.0f}x)")
    assert png / ours >= 100
    assert peer / ours >= 100


def test_opening_does_not_read(tmp_path: Path) -> None:
    _write(tmp_path / "x.safetensors", NUM_PACKED)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        open_set(tmp_path / "x.safetensors")
        times.append((time.perf_counter() - start) * 1e3)
    print(f"\nopening a packed set of 50,000: {statistics.median(times):.0f} ms")
    assert statistics.median(times) < 500
