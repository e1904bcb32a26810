"""What hashes cost: writing and reading of sets, feature tables and checkpoints, and their share of an epoch.

Every line prints MB per second of CPU time, which other jobs on the machine hardly change. To compare with an older
version, run this file in its checkout:

    python -m pytest -m bench -s tests/bench/test_hash_cost.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from corecli.base import checkpoint
from corecli.cli.app import run_line
from corecli.data.features import FeatureTable, load_features, save_features
from corecli.data.imageset import ImageSet, open_set, write_set
from corecli.data.rows import make_rows

pytestmark = pytest.mark.bench
NUM, BATCH = 50_000, 256  # as many images as CIFAR-10 has for training, 32 px: 154 MB
MAX_SHARE = 0.03  # of an epoch


def _seconds(work: Callable[[], object], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def _print(what: str, num_bytes: int, seconds: float) -> None:
    print(f"{what:34s} {num_bytes / seconds / 1e6:7.0f} MB/s")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (NUM, 3, 32, 32), dtype=np.uint8)


def _write(path: Path, pixels: np.ndarray) -> None:
    rows = make_rows([f"{i % 10}/{i:06d}" for i in range(len(pixels))], labels=np.arange(len(pixels)) % 10)
    names = tuple("0123456789")
    write_set(path, rows, iter(np.array_split(pixels, 50)), class_names=names, header={})


def _read_epoch(images: ImageSet, order: np.ndarray) -> None:
    for start in range(0, len(order), BATCH):
        images.read(order[start : start + BATCH])


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_speed_of_sets(tmp_path: Path, pixels: np.ndarray, suffix: str) -> None:
    """The first epoch in random order checks every block; later ones only look up that it is checked."""
    path = tmp_path / f"x{suffix}"
    print()
    _print(f"write {suffix}", pixels.nbytes, _seconds(lambda: _write(path, pixels)))
    order = np.random.default_rng(1).permutation(NUM)
    first, later = [], []
    for _ in range(3):
        images = open_set(path)
        first.append(_seconds(lambda: _read_epoch(images, order), 1))  # noqa: B023
        later.append(_seconds(lambda: _read_epoch(images, order)))  # noqa: B023
    for what, times in (("first epoch", first), ("later epochs", later)):
        seconds = statistics.median(times)
        _print(f"read {suffix}, {what}", pixels.nbytes, seconds)
        print(f"{'':34s} {NUM / seconds:7.0f} images/s")


def test_speed_of_tables_and_checkpoints(tmp_path: Path) -> None:
    features = torch.randn(NUM, 512)
    keys = [f"{i:06d}" for i in range(NUM)]
    table = FeatureTable(features=features, keys=keys, groups=keys, labels=np.zeros(NUM, dtype=np.int64), header={})
    path, size = tmp_path / "z.safetensors", features.nbytes
    print()
    _print("write features", size, _seconds(lambda: save_features(path, table)))
    _print("read features", size, _seconds(lambda: load_features(path)))
    tensors = {f"layer{i}.weight": torch.randn(1024, 1024) for i in range(25)}
    for suffix in (".safetensors", ".pt"):
        path = tmp_path / f"x{suffix}"
        _print(f"write checkpoint {suffix}", 25 << 22, _seconds(lambda: checkpoint.save(path, tensors, kind="shard")))  # noqa: B023
        _print(f"read checkpoint {suffix}", 25 << 22, _seconds(lambda: checkpoint.load(path)))  # noqa: B023


@pytest.mark.parametrize(("network", "batch"), [(("--preset", "tiny"), 256), (("--backbone", "resnet18"), 32)])
def test_hashes_cost_less_than_3_percent_of_an_epoch(
    tmp_path: Path, pixels: np.ndarray, network: tuple[str, str], batch: int
) -> None:
    """The first epoch of a new process checks everything; beside it are the CPU seconds of an epoch of train-ssl."""
    path = tmp_path / "x.safetensors"
    _write(path, pixels)
    order = np.random.default_rng(1).permutation(NUM)
    checks = []
    for _ in range(5):
        images = open_set(path)
        first = _seconds(lambda: _read_epoch(images, order), 1)  # noqa: B023
        checks.append(first - _seconds(lambda: _read_epoch(images, order), 1))  # noqa: B023
    check = statistics.median(checks)
    words = ["train-ssl", *network, "--data", str(path), "--batch-size", str(batch), "--device", "cpu", "-q"]

    def train(steps: int) -> None:
        assert run_line([*words, "--steps", str(steps), "--out", str(tmp_path / f"{steps}.safetensors")]) == 0

    train(1)
    epoch = (_seconds(lambda: train(6), 1) - _seconds(lambda: train(2), 1)) / 4 * NUM / batch
    print(f"\nchecking {NUM} images: {check * 1e3:.0f} ms, {check / NUM * 1e6:.2f} us per image")
    print(f"train-ssl {' '.join(network)}: an epoch takes {epoch:.0f} s of CPU time; checking is {check / epoch:.3%}")
    assert check <= MAX_SHARE * epoch
