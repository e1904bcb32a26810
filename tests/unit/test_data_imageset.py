"""Opening image sets: what is found in each format, and what a user is told when it is not right."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corecli.base import checkpoint
from corecli.base.errors import CannotCreateError, DataError, MissingInputError, UnavailableError, UsageError
from corecli.base.files import SEAL
from corecli.data import manifest
from corecli.data.columns import pack_strings
from corecli.data.formats import digits, directory, tar
from corecli.data.imageset import ImageSet, open_set, write_set
from corecli.data.rows import make_rows
from corecli.data.strings import pack

RNG = np.random.default_rng(0)


def _save(path: Path, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


def _folder(root: Path, *names: str) -> Path:
    for name in names:
        _save(root / name)
    return root


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _tar(path: Path, members: dict[str, bytes], **options: object) -> Path:
    with tarfile.open(path, "w", **options) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def _fails(spec: Path | str, message: str, code: int = 65) -> None:
    with pytest.raises((DataError, MissingInputError, UsageError, UnavailableError), match=message) as caught:
        open_set(spec)
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)


# What is no image set


def test_missing_path(tmp_path: Path) -> None:
    _fails(tmp_path / "nowhere", "nowhere: no such file or directory", 66)
    _fails("digit:16", "named sets are", 66)
    _fails(tmp_path / "nowhere" / "manifest.json", "no such file or directory", 66)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 but not a zip", b"\x00" * 600])
def test_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    _fails(tmp_path / "x", "not an image set")


def test_single_image_and_compressed_tar(tmp_path: Path) -> None:
    _fails(_save(tmp_path / "x.png"), "not an image set")
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8b\x08\0\0")
    _fails(tmp_path / "x.tar.gz", "compressed.*unpack it")


def test_safetensors_of_another_kind(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "f.safetensors", {"features": torch.zeros(2, 3)}, kind="features")
    _fails(tmp_path / "f.safetensors", "is of kind 'features', not 'images'")


def test_json_that_is_no_mixture(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"kind": "other"}')
    _fails(tmp_path / "x.json", "not an image set")
    (tmp_path / "y.json").write_text('{"kind": "mixt')
    _fails(tmp_path / "y.json", "not a readable JSON file")


# Directories


def test_directory_labels_keys_and_order(tmp_path: Path) -> None:
    names = ["dog/10.png", "dog/9.JPG", "cat/sub/b.webp", "cat/a.v2.png", "loose.bmp", "dog/Z.tiff"]
    root = _folder(tmp_path, *names)
    (root / "dog" / "notes.txt").write_text("x")
    _save(root / ".hidden" / "a.png")
    _save(root / "dog" / ".a.png")
    found = open_set(root)
    assert found.rows.keys == ["cat/a.v2", "cat/sub/b", "dog/10", "dog/9", "dog/Z", "loose"]
    assert found.rows.labels.tolist() == [0, 0, 1, 1, 1, -1]
    assert found.class_names == ("cat", "dog")
    assert found.decodes
    assert found.read(np.array([3])).shape == (1, 3, 8, 8)


def test_keys_sort_bytewise(tmp_path: Path) -> None:
    names = ["B", "a", "_", "\u00e9", "\U0001f600", "\uffee", "a/b", "a-b", "a.b"]
    found = open_set(_folder(tmp_path, *(f"{name}.png" for name in names)))
    assert found.rows.keys == sorted(names, key=str.encode)


def test_flat_directory_is_unlabeled(tmp_path: Path) -> None:
    found = open_set(_folder(tmp_path, "b.png", "a@1.png"))
    assert (found.rows.keys, found.rows.groups, found.class_names) == (["a@1", "b"], ["a", "b"], ())
    assert found.rows.labels.tolist() == [-1, -1]


def test_links_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    _folder(tmp_path / "real", "dog/1.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "real" / "dog")
    assert open_set(tmp_path / "set").rows.keys == ["dog/1"]
    (tmp_path / "real" / "dog" / "loop").symlink_to(tmp_path / "real")
    _fails(tmp_path / "real", "loop: links to a folder that contains it")


def test_empty_directory(tmp_path: Path) -> None:
    _fails(tmp_path, "no images in this directory")


def test_two_files_of_one_key(tmp_path: Path) -> None:
    _fails(
        _folder(tmp_path, "dog/1.png", "dog/1.jpg"),
        "two files have the key 'dog/1': dog/1.(png|jpg) and dog/1.(png|jpg)",
    )


def test_mixed_sizes_name_two_files(tmp_path: Path) -> None:
    _folder(tmp_path, "a.png", "b.png")
    _save(tmp_path / "c.png", (10, 6))
    found = open_set(tmp_path)
    assert found.image_size == (8, 8)
    with pytest.raises(DataError, match=r"a\.png is 8 x 8, \S*c\.png is 10 x 6 \(--image-size N"):
        found.read(np.array([2, 1]))
    assert open_set(tmp_path, image_size=5).read(np.arange(3)).shape == (3, 3, 5, 5)


def test_file_that_goes_away(tmp_path: Path) -> None:
    found = open_set(_folder(tmp_path, "a.png", "b.png"))
    (tmp_path / "b.png").unlink()
    with pytest.raises(MissingInputError, match=r"b\.png: cannot be read"):
        found.read(np.array([1]))


def test_directory_fingerprint_does_not_know_times(tmp_path: Path) -> None:
    first = open_set(_folder(tmp_path / "a", "x.png", "y.png")).fingerprint
    (tmp_path / "b").mkdir()
    for name in ("x.png", "y.png"):
        (tmp_path / "b" / name).write_bytes((tmp_path / "a" / name).read_bytes())
    assert open_set(tmp_path / "b").fingerprint == first
    _save(tmp_path / "b" / "x.png", (9, 9))
    assert open_set(tmp_path / "b").fingerprint != first


# Manifests


def _write(root: Path, num: int = 3, **options: object) -> Path:
    images = torch.from_numpy(RNG.integers(0, 256, (num, 3, 8, 8), dtype=np.uint8))
    rows = make_rows([f"dog/{i}" for i in range(num)], labels=[0] * num)
    write_set(root, rows, iter([images]), class_names=("dog",), header={"steps": 5}, **options)  # type: ignore[arg-type]
    return root


@pytest.mark.parametrize("format", ["directory", "tar"])
def test_incomplete_directory_is_refused(tmp_path: Path, format: str) -> None:
    root = _write(tmp_path / "set", format=format)
    assert len(open_set(root / "manifest.json").rows) == 3
    manifest.begin(root, {})
    _fails(root, "the image set is incomplete .*make")


def test_manifest_is_last_and_keeps_the_header(tmp_path: Path) -> None:
    found = json.loads((_write(tmp_path / "set") / "manifest.json").read_text())
    assert (found["kind"], found["complete"], found["num"], found["steps"]) == ("images", True, 3, 5)
    assert (found["image_size"], found["class_names"], found["rows"]) == ([8, 8], ["dog"], {})


@pytest.mark.parametrize("format", ["directory", "tar"])
def test_files_that_do_not_match_the_manifest(tmp_path: Path, format: str) -> None:
    root = _write(tmp_path / "set", format=format)
    found = json.loads((root / "manifest.json").read_text())
    found.pop(SEAL)
    (root / "manifest.json").write_text(json.dumps({**found, "num": 4}))
    _fails(root, "found 3 images, but the manifest lists 4")
    (root / "manifest.json").write_text(json.dumps({**found, "keys_sha256": "0"}))
    _fails(root, "not those that the manifest was written for")
    (root / "manifest.json").write_text("[]")
    _fails(root, "not the manifest of an image set")
    (root / "manifest.json").write_text(json.dumps({**found, "rows": {"labels": [1]}}))
    _fails(root, "the column of labels has shape")
    (root / "manifest.json").write_text(json.dumps({**found, "rows": {"labels": 5}}))
    _fails(root, "label 5, but only 1 class names")


def test_writing_replaces_only_an_earlier_set_of_ours(tmp_path: Path) -> None:
    root = _write(tmp_path / "set", 5)
    assert len(open_set(_write(root, 2)).rows) == 2
    photos = _folder(tmp_path / "photos", "mine.png")
    with pytest.raises(CannotCreateError, match="photos: already exists"):
        _write(photos)
    assert [p.name for p in photos.iterdir()] == ["mine.png"]
    with pytest.raises(CannotCreateError):
        _write(_save(tmp_path / "x.png"), format="directory")


@pytest.mark.parametrize("key", ["../up", "/abs", "a//b", ".hidden", "a/..", ""])
@pytest.mark.parametrize("format", ["directory", "tar"])
def test_keys_that_cannot_be_file_names(tmp_path: Path, key: str, format: str) -> None:
    with pytest.raises(DataError, match="cannot be a file name"):
        write_set(tmp_path / "s", make_rows([key]), iter([torch.zeros(1, 3, 2, 2, dtype=torch.uint8)]),
                  class_names=(), header={}, format=format)  # fmt: skip


def test_put_writes_whole_files(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (2, 3, 4, 4), dtype=np.uint8)
    directory.put(tmp_path, ["a/1", "b@2"], images)
    assert np.array_equal(open_set(tmp_path).read(np.arange(2)).numpy(), images)
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["1.png", "b@2.png"]


def test_disk_full_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory.os, "replace", full)
    with pytest.raises(Exception, match="no space left") as caught:
        _write(tmp_path / "set")
    assert getattr(caught.value, "exit_code", None) == 74


# Bad images


def _with_bad(root: Path, num: int, bad: int) -> Path:
    _folder(root, *(f"{i:03d}.png" for i in range(num)))
    for i in range(bad):
        path = root / f"{i * 3:03d}.png"
        path.write_bytes(path.read_bytes()[:60])
    return root


def test_bad_image_fails_by_name(tmp_path: Path) -> None:
    found = open_set(_with_bad(tmp_path, 20, 2))
    with pytest.raises(DataError, match=r"000\.png: truncated or damaged.*--on-bad skip"):
        found.read(found.slots)


def test_skip_counts_and_lists(tmp_path: Path) -> None:
    found = open_set(_with_bad(tmp_path, 20, 2), on_bad="skip")
    assert len(found.rows) == 18
    assert "003" not in found.rows.keys
    assert [line.split(":")[0][-7:] for line in found.bad] == ["000.png", "003.png"]
    assert found.read(found.slots).shape == (18, 3, 8, 8)
    assert found.fingerprint != open_set(tmp_path).fingerprint


def test_too_many_bad_images_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"3 of 20 images are bad, more than 10%; the first: .*000\.png"):
        open_set(_with_bad(tmp_path, 20, 3), on_bad="skip")


# Tar


def test_tar_follows_webdataset(tmp_path: Path) -> None:
    members = {"./dog/a.v2.png": _png(), "dog/a.v2.cls": b"3", "b.PNG": _png(), "b.json": b'{"label": 1, "x": 2}',
               "c.jpg": _png(), "readme.txt": b"", ".d.png": _png()}  # fmt: skip
    found = open_set(_tar(tmp_path / "x.tar", members))
    assert found.rows.keys == ["b", "c", "dog/a.v2"]
    assert found.rows.labels.tolist() == [1, -1, 3]
    assert found.class_names == ()


def test_tar_without_sidecars_takes_labels_from_folders(tmp_path: Path) -> None:
    found = open_set(_tar(tmp_path / "x.tar", {"dog/1.png": _png(), "cat/1.png": _png()}))
    assert (found.rows.keys, found.rows.labels.tolist()) == (["cat/1", "dog/1"], [0, 1])


def test_tar_equals_its_directory(tmp_path: Path) -> None:
    root = _folder(tmp_path / "set", "dog/1.png", "cat/2@1.png", f"cat/{'long' * 50}.png")
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(root, ".")
    ours, theirs = open_set(tmp_path / "x.tar"), open_set(root)
    assert ours.rows.keys == theirs.rows.keys
    assert torch.equal(ours.read(ours.slots), theirs.read(theirs.slots))
    assert ours.fingerprint == theirs.fingerprint


def test_many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "SHARD_IMAGES", 4)
    root = _write(tmp_path / "set", 10, format="tar")
    assert sorted(p.name for p in root.iterdir()) == [
        "SHA256SUMS",
        "manifest.json",
        *(f"part-00000{i}.tar" for i in range(3)),
    ]
    found = open_set(root)
    assert len(found.rows) == 10
    with tarfile.open(root / "part-000001.tar") as archive:
        assert archive.getnames() == [f"dog/{i}.{e}" for i in range(4, 8) for e in ("png", "cls")] + [".sha256"]


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png"])
def test_tar_member_that_climbs_out(tmp_path: Path, name: str) -> None:
    _fails(
        _tar(tmp_path / "x.tar", {"ok.png": _png(), name: _png()}),
        r"x\.tar: the member .*evil\.png' has a path outside",
    )


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_tar_member_that_is_no_file(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        info = tarfile.TarInfo("dog/evil.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    _fails(tmp_path / "x.tar", "member 'dog/evil.png' is (a link|not a regular file)")


def test_tar_with_bad_content(tmp_path: Path) -> None:
    _fails(_tar(tmp_path / "a.tar", {"x.txt": b""}), "no images in this tar")
    _fails(_tar(tmp_path / "b.tar", {"x.png": _png(), "x.jpg": _png()}), "two members have the key 'x'")
    _fails(_tar(tmp_path / "c.tar", {"x.png": _png(), "x.cls": b"dog"}), "member 'x.cls' is malformed")
    _fails(_tar(tmp_path / "d.tar", {"x.png": _png(), "x.json": b"{"}), "member 'x.json' is malformed")
    _tar(_folder(tmp_path / "both", "x.png") / "part.tar", {"y.png": _png()})
    _fails(tmp_path / "both", "both tar shards and images such as x.png")


def test_one_tar_begins_with_its_manifest(tmp_path: Path) -> None:
    with tarfile.open(_write(tmp_path / "x.tar")) as archive:
        first = archive.next()
        assert first is not None
        found = json.load(archive.extractfile(first))  # type: ignore[arg-type]
    assert (first.name, found["steps"], found["class_names"]) == (".manifest.json", 5, ["dog"])


def test_tars_that_describe_themselves_are_not_shards_of_one_set(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
        write_set(tmp_path / f"{name}.tar", make_rows([name]), iter([image]), class_names=("x", "y"), header={})
        assert open_set(tmp_path / f"{name}.tar").class_names == ("x", "y")
    _fails(tmp_path, "several tars in the directory have their own manifest")


def test_tar_damaged_in_the_middle_is_not_silently_shorter(tmp_path: Path) -> None:
    path = _tar(tmp_path / "x.tar", {f"{i}.png": _png() for i in range(4)})
    data = bytearray(path.read_bytes())
    second = data.index(b"1.png")
    data[second] ^= 1
    path.write_bytes(data)
    _fails(path, "truncated or damaged at byte")


def test_tar_index_is_kept_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _tar(tmp_path / "x.tar", {"a.png": _png(), "b.png": _png(), "b.cls": b"2"})
    first = open_set(path)
    index = tmp_path / ".x.tar.index.safetensors"
    assert index.exists()
    calls = []
    scan = tar.index_of.__globals__["scan"]
    monkeypatch.setitem(tar.index_of.__globals__, "scan", lambda paths: calls.append(paths) or scan(paths))
    again = open_set(path)
    assert not calls
    assert torch.equal(first.read(first.slots), again.read(again.slots))
    assert again.rows.labels.tolist() == [-1, 2]
    index.write_bytes(b"damaged")
    assert len(open_set(path).rows) == 2
    _tar(path, {"c.png": _png()})
    assert open_set(path).rows.keys == ["c"]
    assert len(calls) == 2


def test_flipped_bits_in_a_tar_index_cause_a_new_scan(tmp_path: Path) -> None:
    path = _tar(tmp_path / "x.tar", {"a.png": _png(), "b.png": _png(), "a.cls": b"0", "b.cls": b"2"})
    first, index = open_set(path), tmp_path / ".x.tar.index.safetensors"
    intact = index.read_bytes()
    for place in range(0, 8 * len(intact), 97):
        damaged = bytearray(intact)
        damaged[place // 8] ^= 1 << place % 8
        index.write_bytes(damaged)
        found = open_set(path)
        assert list(found.rows.keys) == ["a", "b"]
        assert found.rows.labels.tolist() == [0, 2]
        assert torch.equal(found.read(first.slots), first.read(first.slots))


def test_tar_index_in_a_read_only_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _tar(tmp_path / "x.tar", {"a.png": _png()})
    (tmp_path / ".x.tar.index.safetensors").mkdir()  # nothing can be written there, even by root
    assert open_set(path).read(np.array([0])).shape == (1, 3, 8, 8)


# Packed and npz


def test_packed_is_verified_by_the_checkpoint_reader(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    _write(path)
    tensors, header = checkpoint.load(path, kind="images")
    assert tensors["images"].shape == (3, 3, 8, 8)
    assert (header["class_names"], header["steps"]) == (["dog"], 5)
    assert header["fingerprint"] == checkpoint.fingerprint(tensors)


def test_packed_made_elsewhere(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "labels": torch.tensor([1, 0])}, tmp_path / "x")
    found = open_set(tmp_path / "x")
    assert (found.rows.keys, found.rows.labels.tolist()) == (["000000", "000001"], [1, 0])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weights": torch.zeros(2)}, "has no tensor 'images'"),
        ({"images": torch.zeros(2, 3, 4, 4)}, r"images are F32 \[2, 3, 4, 4\]"),
        ({"images": torch.zeros(2, 4, 4, 3, dtype=torch.uint8)}, r"not uint8 \[N, 3, H, W\]"),
        ({"images": torch.zeros(0, 3, 4, 4, dtype=torch.uint8)}, "the image set is empty"),
        (
            {"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "labels": torch.tensor([1])},
            "the column of labels has shape",
        ),
    ],
)
def test_packed_with_bad_content(tmp_path: Path, tensors: dict, message: str) -> None:
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "x.safetensors")
    _fails(tmp_path / "x.safetensors", message)


def test_packed_duplicate_keys(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    keys = {name: torch.from_numpy(array.copy()) for name, array in pack_strings("keys", pack(["a", "a"])).items()}
    save_file({"images": torch.zeros(2, 3, 2, 2, dtype=torch.uint8), **keys}, tmp_path / "x")
    _fails(tmp_path / "x", "duplicate key 'a'")


def _copied_kb() -> int:
    """Memory of this process that is not pages of a file."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's memory accounting")
@pytest.mark.parametrize("name", ["x.safetensors", "x.npz"])
def test_opening_copies_no_pixels(tmp_path: Path, name: str) -> None:
    num = 20_000  # 61 MB of pixels
    chunk = torch.zeros(1000, 3, 32, 32, dtype=torch.uint8)
    rows = make_rows([f"{i:06d}" for i in range(num)])
    write_set(tmp_path / name, rows, (chunk for _ in range(num // 1000)), class_names=(), header={})
    open_set(_write(tmp_path / f"small-{name}"))
    before = _copied_kb()
    found = open_set(tmp_path / name)
    for start in range(0, num, 1000):
        found.read(np.arange(start, start + 1000))
    assert _copied_kb() - before < 20_000


def test_npz_of_the_adm_evaluator(tmp_path: Path) -> None:
    images, labels = RNG.integers(0, 256, (3, 8, 6, 3), dtype=np.uint8), np.array([5, 0, 2])
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", images, labels)
        found = open_set(tmp_path / "x.npz")
        assert (found.image_size, found.rows.keys[2], found.rows.labels.tolist()) == ((8, 6), "000002", [5, 0, 2])
        assert np.array_equal(found.read(found.slots).numpy(), images.transpose(0, 3, 1, 2))
    np.savez(tmp_path / "f.npz", np.asfortranarray(images))
    found = open_set(tmp_path / "f.npz")
    assert np.array_equal(found.read(np.array([2, 0])).numpy(), images[[2, 0]].transpose(0, 3, 1, 2))


def test_npz_we_write_is_read_by_numpy(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.npz")
    found = open_set(path)
    with np.load(path, allow_pickle=False) as archive:
        assert np.array_equal(archive["arr_0"].transpose(0, 3, 1, 2), found.read(found.slots).numpy())
        assert archive["arr_1"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "has no array arr_0 .*mu, sigma"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, "arr_0 is float64"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, r"not uint8 \[N, H, W, 3\]"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "the image set is empty"),
        ({"arr_0": np.array([{}], dtype=object)}, "arr_0 is object"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.array([{}, {}])}, "npz file is damaged|allow_pickle"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.zeros(3, int)}, "the column of labels has shape"),
    ],
)
def test_npz_with_bad_content(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    _fails(tmp_path / "x.npz", message)


# Named sets


def test_digits() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    whole, train, test = (open_set(f"digits:{split}") for split in ("", ":train", ":test"))
    assert (len(whole.rows), whole.image_size, whole.class_names) == (1797, (8, 8), digits.CLASS_NAMES)
    assert sorted([*train.rows.keys, *test.rows.keys]) == whole.rows.keys
    assert len(test.rows) == 355
    counts = np.bincount(whole.rows.labels)
    assert np.bincount(test.rows.labels).tolist() == (counts // 5).tolist()
    half, half_test = open_set("digits::half"), open_set("digits::half-test")
    assert sorted([*half.rows.keys, *half_test.rows.keys]) == whole.rows.keys
    assert np.bincount(half_test.rows.labels).tolist() == (counts // 2).tolist()
    bundled = datasets.load_digits()
    seventh_three = bundled.images[np.flatnonzero(bundled.target == 3)[7]]
    found = whole.read(np.array([whole.rows.keys.index("3/0007")]))[0].numpy()
    assert np.array_equal(found, np.repeat(np.rint(seventh_three / 16 * 255)[None], 3, axis=0))


def test_digits_are_resized_bicubically() -> None:
    pytest.importorskip("sklearn")
    small, large = open_set("digits::test"), open_set("digits:16:test")
    assert large.image_size == (16, 16)
    image = Image.fromarray(small.read(np.array([4]))[0].permute(1, 2, 0).numpy())
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(large.read(np.array([4]))[0].numpy(), expected)
    resized = open_set("digits::test", image_size=16)
    assert torch.equal(resized.read(resized.slots), large.read(large.slots))
    assert resized.decodes
    assert not large.decodes


@pytest.mark.parametrize("spec", ["digits:x", "digits:0", "digits:16:val", "digits:16:test:more", "digits:-8"])
def test_malformed_digits(spec: str) -> None:
    _fails(spec, "malformed name of a digits set", 2)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    _fails("digits:", "needs scikit-learn", 69)


def test_torchvision_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    monkeypatch.setenv("TORCHVISION_DATA", str(tmp_path))
    monkeypatch.delenv("CORECLI_DOWNLOAD", raising=False)
    monkeypatch.chdir(tmp_path)
    _fails("torchvision:CIFAR10:train", f"not found under {tmp_path}, data, .*torchvision .*CORECLI_DOWNLOAD=1", 66)
    _fails("torchvision:CIFAR:train", "did you mean 'CIFAR10'", 2)
    _fails("torchvision:CIFAR10:val", "no split 'val' .*train or test", 2)


# Speed and imports


def test_a_directory_of_50k_files_opens_in_well_under_a_second(tmp_path: Path) -> None:
    for name in range(50):
        (tmp_path / f"class{name}").mkdir()
        for number in range(400):
            (tmp_path / f"class{name}" / f"{number:04d}.png").touch()
    start = time.process_time()
    found = open_set(tmp_path)
    assert len(found.rows) == 20_000
    assert time.process_time() - start < 0.5  # two fifths of 50,000; measured 0.05 s


def test_opening_imports_no_torch(tmp_path: Path) -> None:
    specs = [str(_write(tmp_path / name)) for name in ("set", "x.tar", "x.npz", "x.safetensors")]
    code = "import sys; from corecli.data.imageset import open_set; from corecli.data import mix, features\n"
    code += f"for spec in {specs!r}: open_set(spec).image_size\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_formats_are_image_sets(tmp_path: Path) -> None:
    found: ImageSet = open_set(_write(tmp_path / "set"))
    assert found.segments == (3,)
    assert list(found.slots) == [0, 1, 2]
