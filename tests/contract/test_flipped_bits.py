"""A flipped bit in a file of images is refused, or has no effect on anything that is read."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from corecli.base import checkpoint
from corecli.base.errors import CorecliError, DataError
from corecli.base.layout import data_start, read_index
from corecli.base.rng import numpy_generator
from corecli.data import mapped, sets
from corecli.data import rows as rows_module
from corecli.data.formats import packed
from corecli.data.formats.shards import ShardFolder, Statistics
from corecli.data.groups import group_index
from corecli.data.imageset import ImageSet, open_set, record_of, write_set
from corecli.data.latents import open_latents, write_latents
from corecli.data.rows import make_rows
from corecli.data.statistics import Statistics as Moments
from corecli.data.statistics import read_statistics, write_statistics

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
    return pixels.tobytes() + _described(images) + json.dumps(record_of(path), sort_keys=True).encode()


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


def _write_shards(root: Path) -> None:
    """The rows of `_write` in three packed shards."""
    _write(root.with_suffix(".safetensors"))
    whole = open_set(root.with_suffix(".safetensors"))
    folder = ShardFolder(root, num=3, format="packed")
    folder.begin({"seed": 3, "shards": 3}, replace=False)
    for index in range(3):
        rows, statistics = np.arange(NUM)[index::3], Statistics()
        chunks = statistics.watch(iter([whole.read(rows)]))
        write_set(folder.path(index), whole.rows.take(rows), chunks, class_names=NAMES, header={})
        folder.finish_shard(index, statistics)
    folder.finish(class_names=NAMES, header={"identity": {"seed": 3}})


def _flip_set(tmp_path: Path, kind: str, num: int) -> list[str]:
    """Flip bits in a set, or in one of the files of a set in shards."""
    if kind.startswith("."):
        _write(tmp_path / f"x{kind}")
        return _silent(tmp_path / f"x{kind}", lambda: _content(tmp_path / f"x{kind}"), num=num, name=kind)
    _write_shards(tmp_path / "set")
    return _silent(tmp_path / "set" / kind, lambda: _content(tmp_path / "set"), num=num, name=kind)


KINDS = [".safetensors", ".npz", "part-000001.safetensors", "manifest.json"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_flip_in_a_set_is_silent(tmp_path: Path, kind: str) -> None:
    assert _flip_set(tmp_path, kind, NUM_FLIPS) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_flip_of_thousands_in_a_set_is_silent(tmp_path: Path, kind: str) -> None:
    assert _flip_set(tmp_path, kind, NUM_SLOW) == []


@pytest.fixture
def small_is_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Map all columns, and store what is computed of all rows, as for sets of millions of rows."""
    monkeypatch.setattr(mapped, "SHORT_BYTES", 0)
    for module in (rows_module, packed, sets):
        monkeypatch.setattr(module, "LARGE", 10, raising=False)


@pytest.mark.parametrize("kind", [".safetensors", "part-000001.safetensors"])
def test_no_flip_in_mapped_columns_is_silent(small_is_mapped: None, tmp_path: Path, kind: str) -> None:
    assert _flip_set(tmp_path, kind, NUM_FLIPS) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".safetensors", "part-000001.safetensors"])
def test_no_flip_of_thousands_in_mapped_columns_is_silent(small_is_mapped: None, tmp_path: Path, kind: str) -> None:
    assert _flip_set(tmp_path, kind, NUM_SLOW) == []


def test_no_flip_in_a_stored_index_is_silent(small_is_mapped: None, tmp_path: Path) -> None:
    """A damaged header has the index made again; damage found later is an error that names the file."""
    path = tmp_path / "x.safetensors"
    _write(path)

    def read() -> bytes:
        rows, picked = open_set(path).rows, np.arange(NUM // 4)
        index, large = group_index(rows), sets.LargeSets(rows=rows, size=2)
        found = [*index.range_of(picked), *index.synthetic(picked), rows.groups_of(np.arange(NUM))]
        return b"".join(array.tobytes() for array in [*found, large.shuffled(0, 40, seed=1)])

    read()
    stored = sorted(tmp_path.glob(".x.safetensors.*"))
    assert [place.name.split(".")[-2] for place in stored] == ["group-ids", "groups", "sets2"]
    for place in stored:
        assert _silent(place, read, num=NUM_FLIPS // 10, name=place.name) == []
    data = bytearray(stored[1].read_bytes())
    start = data_start(stored[1])
    data[start] ^= 1
    stored[1].write_bytes(data)
    with pytest.raises(
        DataError, match=r"x\.safetensors\.groups\.safetensors: values of .*remove the file, and it is made again"
    ):
        read()


def test_a_block_of_a_mapped_column_is_checked_when_it_is_read(small_is_mapped: None, tmp_path: Path) -> None:
    """Opening checks nothing of a long column; rows of intact blocks are read, in another process as well."""
    path, num = tmp_path / "x.safetensors", 40_000
    rows = make_rows([f"{i:06d}" for i in range(num)], labels=np.arange(num) % 3)
    write_set(path, rows, iter([np.zeros((num, 3, 1, 1), dtype=np.uint8)]), class_names=NAMES, header={})
    data = bytearray(path.read_bytes())
    data[data_start(path) + read_index(path)["labels"]["data_offsets"][0] + 8 * 20_000] ^= 1
    path.write_bytes(data)
    opened = open_set(path).rows
    for found in (opened, pickle.loads(pickle.dumps(opened))):  # noqa: S301
        assert found.labels[np.array([5, 39_999, -1])].tolist() == [2, 0, 0] and found.labels[4] == 1
        for damaged in (lambda f: f.labels[20_001], lambda f: f.labels.max(), lambda f: f.labels == 1):
            with pytest.raises(DataError, match="values of labels 16384 to 24575 do not match their hash"):
                damaged(found)


def test_no_flip_in_the_record_of_a_shard_is_silent(tmp_path: Path) -> None:
    """The last job of a set in shards reads the records of the others."""
    _write_shards(tmp_path / "set")
    folder, path = ShardFolder(tmp_path / "set", num=3, format="packed"), tmp_path / "set" / "part-000001.json"
    read = lambda: json.dumps(folder.record(1)).encode()  # noqa: E731
    assert _silent(path, read, num=NUM_FLIPS, name="record") == []


def test_no_flip_in_the_manifest_of_a_folder_is_silent(tmp_path: Path) -> None:
    _write(tmp_path / "folder")
    path = tmp_path / "folder" / "manifest.json"
    assert _silent(path, lambda: _content(tmp_path / "folder"), num=NUM_FLIPS, name="manifest") == []


def test_no_flip_in_a_statistics_file_is_silent(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    covariance = np.cov(np.random.default_rng(0).normal(size=(4, 30)))
    made = Moments(mean=np.arange(4.0), covariance=covariance, space="x", fingerprint="ab" * 32, num_images=30)
    write_statistics(path, made)

    def read() -> bytes:
        values = vars(read_statistics(path)).values()
        return repr([value.tolist() if isinstance(value, np.ndarray) else value for value in values]).encode()

    assert _silent(path, read, num=NUM_FLIPS, name="statistics") == []


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


def test_damaged_pixels_are_found_when_they_are_read(tmp_path: Path) -> None:
    """The block of an intact image is read; that of the damaged one names its rows, in another process as well."""
    path = tmp_path / "x.safetensors"
    _write(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of the last image
    path.write_bytes(data)
    images = open_set(path)
    assert images.read(np.array([0, 44])).shape == (2, 3, 24, 20)
    reason = r"x\.safetensors: images 45 to 59 do not match their hash"
    for copied in (images, pickle.loads(pickle.dumps(images))):  # noqa: S301
        with pytest.raises(DataError, match=reason):
            copied.read(np.array([0, 50]))


def test_a_set_without_hashes_is_read(tmp_path: Path) -> None:
    """Files of other tools and of older versions have neither a seal nor hashes."""
    _write(tmp_path / "new.safetensors")
    tensors = checkpoint.load_tensors(tmp_path / "new.safetensors")
    header = checkpoint.read_header(tmp_path / "new.safetensors")
    plain = {name: tensor for name, tensor in tensors.items() if not name.startswith("hashes.")}
    assert len(plain) < len(tensors)
    save_file(plain, tmp_path / "old.safetensors", metadata={"corecli": json.dumps(header, sort_keys=True)})
    assert _content(tmp_path / "old.safetensors") == _content(tmp_path / "new.safetensors")
    save_file({"images": plain["images"]}, tmp_path / "bare.safetensors")
    assert len(open_set(tmp_path / "bare.safetensors").rows) == NUM


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz"])
def test_a_set_that_is_truncated_while_in_use_is_an_error(tmp_path: Path, name: str) -> None:
    """Without a check the process would die of SIGBUS, so it runs in one of its own."""
    _write(tmp_path / name)
    script = """
import os, sys
import numpy as np
from corecli.base.errors import DataError
from corecli.data.imageset import open_set
images = open_set(sys.argv[1])
images.read_array(np.arange(60))
os.truncate(sys.argv[1], 8192)
try:
    images.read_array(np.arange(60))
except DataError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{name}: truncated since it was opened" in done.stdout


def test_a_set_that_is_replaced_while_in_use_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    _write(path)
    images = open_set(path)
    (tmp_path / "short").write_bytes(b"x")
    (tmp_path / "short").replace(path)
    assert images.read(np.arange(NUM)).shape == (NUM, 3, 24, 20)
