"""Every image-set format, listed from its folder, keeps the same promises."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from corecli.base import registry
from corecli.base.claim import temporary_path
from corecli.base.errors import CannotCreateError, DataError, MissingInputError
from corecli.base.sums import Watch
from corecli.data.formats.shards import ShardFolder, Statistics
from corecli.data.imageset import (
    FORMATS,
    ImageSet,
    _claiming,
    check_set,
    format_by_name,
    is_named,
    is_written,
    open_set,
    suffix_of,
    writable_formats,
    write_set,
)
from corecli.data.rows import Rows, make_rows

NAMES = registry.choices(FORMATS)
WRITABLE = writable_formats()
CLASS_NAMES = ("cat", "cow", "dog")  # no image is of a cow
FILE_NAMES = {name: f"set{suffix_of(name)}" for name in WRITABLE}


def _rows() -> Rows:
    keys = sorted(
        [
            *(f"cat/{i:04d}" for i in range(5)),
            *(f"dog/x/{i:04d}@{i % 2}" for i in range(5)),
            "loose.v2",
            "\u00e9t\u00e9",
        ]
    )
    labels = [0] * 5 + [2] * 5 + [-1, 1]
    return make_rows(keys, labels=labels, groups=[f"caption {i // 3}" for i in range(12)], variants=np.arange(12) % 4)


def _images(num: int, size: tuple[int, int] = (9, 7)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (num, 3, *size), dtype=np.uint8))


def _chunks(images: torch.Tensor, size: int = 5) -> Iterator[torch.Tensor]:
    yield from images.split(size)


def _written(folder: Path, name: str, rows: Rows | None = None) -> Path:
    rows = rows or _rows()
    path = folder / FILE_NAMES[name]
    header = {"config": {"steps": 3}}
    write_set(path, rows, _chunks(_images(len(rows))), class_names=CLASS_NAMES, header=header, format=name)
    return path


def _openable(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a small set of any format: written, as the format's EXAMPLE says, or made here."""
    example = registry.constants(FORMATS, name).get("EXAMPLE")
    if name in WRITABLE:
        return str(_written(folder, name))
    if isinstance(example, str):
        return example
    if example is not None:
        for path, content in example.items():
            (folder / path).write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(folder / next(iter(example)))
    if name == "shards":
        return str(_sharded(folder / "in-shards"))
    if name == "captioned":
        for k in range(2):
            write_set(folder / str(k), make_rows(["a", "b/c", "d"]), [_images(3)], class_names=(), header={})
        (folder / "captions.csv").write_text('a.png,"a dog, wet"\nb/c.png,a cat\nd.png,a hen\n')
        return f"captioned:{folder}/captions.csv:{folder}/0:{folder}/1"
    if name == "torchvision":
        _write_mnist(folder / "MNIST" / "raw")
        monkeypatch.setenv("TORCHVISION_DATA", str(folder))
        return "torchvision:MNIST:test"
    raise AssertionError(f"format {name} cannot be written and declares no EXAMPLE")


def _sharded(folder: Path, num: int = 3) -> Path:
    """The rows in shards, of which the first is empty."""
    shards, rows, images = ShardFolder(folder, num=num, format="tar"), _rows(), _images(12)
    shards.begin({}, replace=False)
    for index, part in enumerate(np.array_split(np.arange(12), num - 1), start=1):
        statistics = Statistics()
        chunks = statistics.watch([images[torch.from_numpy(part)]])
        write_set(shards.path(index), rows.take(part), chunks, class_names=CLASS_NAMES, header={})
        shards.finish_shard(index, statistics)
    shards.finish_shard(0, Statistics())
    _leave_temporary(folder / "shards.json")  # of a job that was killed as it began
    shards.finish(class_names=CLASS_NAMES, header={})
    assert not list(folder.glob(".*.tmp"))
    return folder


def _leave_temporary(path: Path) -> None:
    """Make the temporary file of a process with an impossible number."""
    own = temporary_path(path)
    own.with_name(own.name.replace(str(os.getpid()), str(2**30))).touch()


def _write_mnist(folder: Path) -> None:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(2)
    for part in ("train", "t10k"):
        images, labels = (
            generator.integers(0, 256, (12, 28, 28), dtype=np.uint8),
            (np.arange(12) * 7 % 10).astype(np.uint8),
        )
        shape = b"".join(n.to_bytes(4, "big") for n in images.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + shape + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + shape[:4] + labels.tobytes())


@pytest.fixture(params=NAMES)
def opened(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    """An opened set of each format."""
    return open_set(_openable(tmp_path, request.param, monkeypatch))


@pytest.mark.parametrize("name", NAMES)
def test_module_offers_the_protocol(name: str) -> None:
    module, constants = registry.load(FORMATS, name), registry.constants(FORMATS, name)
    assert callable(module.open_set)
    assert constants["title"]
    assert hasattr(module, "claims") == ("ACCEPTS" in constants) == ("NAMED" not in constants)
    assert hasattr(module, "write") == ("SUFFIX" in constants)
    assert not constants.get("SUFFIX") or hasattr(module, "made_with")


@pytest.mark.parametrize("name", NAMES)
def test_a_set_is_recognized_as_of_its_format(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _openable(tmp_path, name, monkeypatch)
    if is_named(spec):
        assert spec.partition(":")[0] == name
        return
    found = [module.__name__.rpartition(".")[2].replace("_", "-") for module in _claiming(spec)]
    assert found[0] == name
    assert set(found[1:]) <= {"tar", "directory"}, "these take more than their own, so they are asked last"


def test_rows_and_pixels_agree(opened: ImageSet) -> None:
    num = len(opened.rows)
    images = opened.read(np.arange(num))
    assert images.dtype == torch.uint8
    assert images.shape == (num, 3, *opened.image_size)
    assert images.is_contiguous()
    assert len(set(opened.rows.keys)) == num
    assert (
        len(opened.rows.groups)
        == len(opened.rows.labels)
        == len(opened.rows.origins)
        == len(opened.rows.variants)
        == num
    )
    assert set(opened.slots) == set(range(num))
    assert sum(opened.segments) == len(opened.slots)
    assert int(opened.rows.labels.max()) < len(opened.class_names)
    assert (opened.bad, opened.guard) == ((), False)


def test_random_access_equals_sequential(opened: ImageSet) -> None:
    num = len(opened.rows)
    images = opened.read(np.arange(num))
    shuffled = np.random.default_rng(3).integers(0, num, 20)
    assert torch.equal(opened.read(shuffled), images[torch.from_numpy(shuffled)])
    assert opened.read(np.zeros(0, dtype=np.int64)).shape == (0, 3, *opened.image_size)


def test_reading_does_not_lend_the_sets_own_memory(opened: ImageSet) -> None:
    before = opened.read(np.array([0])).clone()
    opened.read(np.array([0])).zero_()
    assert torch.equal(opened.read(np.array([0])), before)


def test_image_size_resizes_and_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: ImageSet) -> None:
    for name in NAMES:
        (folder := tmp_path / name).mkdir()
        small = open_set(_openable(folder, name, monkeypatch), image_size=6)
        assert small.image_size == (6, 6)
        assert small.read(np.array([1, 0])).shape == (2, 3, 6, 6)
        assert small.decodes


def test_fingerprint_is_of_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        (folder := tmp_path / name).mkdir()
        spec = _openable(folder, name, monkeypatch)
        first = open_set(spec).fingerprint
        assert first == open_set(spec).fingerprint
        assert first != open_set(spec, image_size=6).fingerprint


def test_a_pickled_set_reads_the_same(opened: ImageSet) -> None:
    data = pickle.dumps(opened)
    assert torch.equal(pickle.loads(data).read(np.array([2, 0])), opened.read(np.array([2, 0])))  # noqa: S301


def _read_share(spec: str, rank: int, results: object) -> None:
    image_set = open_set(spec)
    results.put((rank, image_set.read(image_set.slots[rank::2]).numpy()))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("digits", "torchvision")])
def test_two_processes_read_their_shares(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _openable(tmp_path, name, monkeypatch)
    whole = open_set(spec)
    context = get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=_read_share, args=(spec, rank, results)) for rank in range(2)]
    for process in ranks:
        process.start()
    shares = dict(results.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join()
    images = whole.read(whole.slots).numpy()
    assert all(np.array_equal(shares[rank], images[rank::2]) for rank in range(2))


@pytest.mark.parametrize("name", NAMES)
def test_every_format_can_be_verified(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    check_set(_openable(tmp_path, name, monkeypatch), watch)
    assert watch.num_bytes > 0 or name == "torchvision", "its items are images, whose size is unknown"
    assert watch.num_hashes > 0 or name not in WRITABLE or not hasattr(registry.load(FORMATS, name), "verify")


@pytest.mark.parametrize("name", WRITABLE)
def test_round_trip(name: str, tmp_path: Path) -> None:
    rows = _rows()
    found = open_set(_written(tmp_path, name))
    assert (found.rows.keys, found.rows.groups) == (rows.keys, rows.groups)
    for column in ("labels", "origins", "variants"):
        assert np.array_equal(getattr(found.rows, column), getattr(rows, column)), column
    assert found.class_names == CLASS_NAMES
    assert found.image_size == (9, 7)
    assert torch.equal(found.read(found.slots), _images(len(rows)))


@pytest.mark.parametrize("name", WRITABLE)
@pytest.mark.parametrize("class_names", [(), ("a",)])
def test_round_trip_of_a_plain_set(name: str, class_names: tuple[str, ...], tmp_path: Path) -> None:
    rows = make_rows(["a", "b", "c"], labels=[0] * 3 if class_names else None, origins=1)
    write_set(tmp_path / "set", rows, _chunks(_images(3)), class_names=class_names, header={}, format=name)
    found = open_set(str(tmp_path / "set"))
    assert found.rows.labels.tolist() == ([0] * 3 if class_names else [-1] * 3)
    assert found.rows.origins.tolist() == [1] * 3
    assert found.class_names == class_names


@pytest.mark.parametrize("name", WRITABLE)
def test_a_written_set_records_how_it_was_made(name: str, tmp_path: Path) -> None:
    path = tmp_path / FILE_NAMES[name]
    header = {"identity": {"seed": 1}}
    write_set(path, _rows(), _chunks(_images(12)), class_names=CLASS_NAMES, header=header)
    assert is_written(path, {"seed": 1}, force=False)
    assert not is_written(path, {"seed": 1}, force=True)
    with pytest.raises(CannotCreateError, match=f"{path.name}: exists with another config: seed: 1 there, 2 now"):
        is_written(path, {"seed": 2}, force=False)


@pytest.mark.parametrize("name", WRITABLE)
def test_equal_content_gives_equal_bytes(name: str, tmp_path: Path) -> None:
    written = []
    for folder in (tmp_path / "1", tmp_path / "2"):
        folder.mkdir()
        path = _written(folder, name)
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        written.append([(str(p.relative_to(folder)), p.read_bytes()) for p in files])
    assert written[0] == written[1]


@pytest.mark.parametrize("name", WRITABLE)
def test_one_chunk_is_held_at_a_time(name: str, tmp_path: Path) -> None:
    alive: list[int] = []

    class Counted(torch.Tensor):
        """A chunk that says when it goes."""

        def __del__(self) -> None:
            alive.remove(id(self))

    def stream() -> Iterator[torch.Tensor]:
        for chunk in _images(12).split(1):
            counted = chunk.clone().as_subclass(Counted)
            alive.append(id(counted))
            assert len(alive) <= 3
            yield counted
            del counted, chunk

    write_set(tmp_path / "set", _rows(), stream(), class_names=CLASS_NAMES, header={}, format=name)
    assert len(open_set(str(tmp_path / "set")).rows) == 12


@pytest.mark.parametrize("name", WRITABLE)
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
def test_truncated_file_is_a_data_error(name: str, kept: float, tmp_path: Path) -> None:
    path = _written(tmp_path, name)
    if path.is_dir():
        path = path / "cat" / "0002.png"
    data = path.read_bytes().rstrip(b"\0")  # a tar ends in zeros, of which one block would do
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DataError, match=path.name):
        image_set = open_set(str(tmp_path / FILE_NAMES[name]))
        image_set.read(image_set.slots)


@pytest.mark.parametrize("name", [n for n in WRITABLE if n != "directory"])
def test_a_missing_last_byte_is_a_data_error(name: str, tmp_path: Path) -> None:
    path = _written(tmp_path, name)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=path.name):
        open_set(str(path))


@pytest.mark.parametrize("name", WRITABLE)
def test_a_failed_write_leaves_nothing(name: str, tmp_path: Path) -> None:
    def stream() -> Iterator[torch.Tensor]:
        yield _images(5)
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="the source failed"):
        write_set(tmp_path / "set", _rows(), stream(), class_names=CLASS_NAMES, header={}, format=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", WRITABLE)
def test_an_empty_set_is_not_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        write_set(tmp_path / "set", make_rows([]), iter([]), class_names=(), header={}, format=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", WRITABLE)
def test_flipped_bits_never_crash(name: str, tmp_path: Path) -> None:
    """Damage anywhere is a user's error or other pixels, never a traceback."""
    path = _written(tmp_path, name)
    if path.is_dir():
        path = path / "manifest.json"
    data = path.read_bytes()
    generator = np.random.default_rng(4)
    for position in [*range(0, 400, 7), *generator.integers(0, len(data), 40)]:
        damaged = bytearray(data)
        damaged[position % len(data)] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        with suppress(DataError, MissingInputError):
            image_set = open_set(str(tmp_path / FILE_NAMES[name]))
            image_set.read(image_set.slots)


def test_format_by_name() -> None:
    names = ["a.safetensors", "a.npz", "a.tar", "a", "a.v2"]
    assert [format_by_name(Path(name)) for name in names] == ["packed", "npz", "tar", "directory", "directory"]
