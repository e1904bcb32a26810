from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from corecli.base import checkpoint, files
from corecli.base.errors import CannotCreateError, DataError, MissingInputError, StorageError
from corecli.base.target import is_finished


def test_a_failed_write_leaves_the_old_target_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "t"
    target.write_bytes(b"old")
    with pytest.raises(KeyError), files.atomic_write(target) as file:
        file.write(b"new")
        raise KeyError
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["t"]


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, StorageError), (errno.EACCES, CannotCreateError)])
def test_write_errors_have_their_exit_code(tmp_path: Path, number: int, error: type[Exception]) -> None:
    with pytest.raises(error, match=os.strerror(number).lower()), files.atomic_write(tmp_path / "t"):
        raise OSError(number, os.strerror(number))
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_reported() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    full = open("/dev/full", "wb", buffering=0)
    with full, pytest.raises(StorageError, match="no space left"), files.storage_errors(Path("x")):
        full.write(b"x")


def test_sniff_goes_by_content(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "a.png")
    torch.save({"x": torch.zeros(2)}, tmp_path / "b.txt")
    np.savez(tmp_path / "c.npz", arr_0=np.zeros(3))
    (tmp_path / "d").write_text('{"a": 1}')
    (tmp_path / "e").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "f").write_bytes(b"hello")
    with zipfile.ZipFile(tmp_path / "g", "w") as archive:
        archive.writestr("x", "y")
    found = {p.name: files.sniff(p) for p in tmp_path.iterdir()}
    wanted = {"a.png": "safetensors", "b.txt": "torch", "c.npz": "npz", "d": "json", "e": "image"}
    assert found == {**wanted, "f": "unknown", "g": "unknown"}
    assert files.sniff(tmp_path) == "directory"
    assert files.sniff(tmp_path / "none") == "missing"


TENSORS = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3), "h": torch.zeros(2, dtype=torch.bfloat16)}


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_checkpoints_round_trip_and_are_reproducible(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    checkpoint.save(path, TENSORS, kind="features", config={"b": 1})
    first = path.read_bytes()
    tensors, header = checkpoint.load(path, kind="features")
    assert all(torch.equal(tensors[k], v) for k, v in TENSORS.items())
    assert header["config"] == {"b": 1}
    assert checkpoint.read_header(path) == header
    checkpoint.save(path, TENSORS, kind="features", config={"b": 1})
    assert path.read_bytes() == first


def test_fingerprint_does_not_depend_on_the_file_format(tmp_path: Path) -> None:
    headers = [checkpoint.save(tmp_path / n, TENSORS, kind="encoder") for n in ("a.pt", "a.safetensors")]
    assert headers[0]["fingerprint"] == headers[1]["fingerprint"]
    changed = {**TENSORS, "n": torch.tensor(4)}
    assert checkpoint.fingerprint(changed) != headers[0]["fingerprint"]


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_damage_is_noticed(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    checkpoint.save(path, {"w": torch.ones(500)}, kind="encoder")
    content = bytearray(path.read_bytes())
    where = bytes(content).index(torch.ones(1).numpy().tobytes() * 20) + 40
    content[where] ^= 1
    path.write_bytes(content if damage == "flip" else content[: len(content) - 700])
    with pytest.raises((DataError, RuntimeError)) as error:
        checkpoint.load(path)
    assert isinstance(error.value, DataError)
    assert str(path) in str(error.value)


def test_wrong_kind_version_and_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    checkpoint.save(path, TENSORS, kind="encoder")
    with pytest.raises(DataError, match="kind 'encoder', not 'generator'"):
        checkpoint.load(path, kind="generator")
    checkpoint.save(path, TENSORS, kind="encoder", format=99)
    with pytest.raises(DataError, match="newer"):
        checkpoint.load(path)
    torch.save({"f": os.system}, path)
    with pytest.raises(DataError, match="never code"):
        checkpoint.load_tensors(path)
    with pytest.raises(MissingInputError):
        checkpoint.load(tmp_path / "none")
    path.write_bytes(b"hello")
    with pytest.raises(DataError):
        checkpoint.load(path)


def test_a_finished_target_is_recognized_by_its_identity(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    assert not is_finished(path, {"steps": 1}, force=False)
    checkpoint.save(path, TENSORS, kind="encoder", identity={"steps": 1})
    assert is_finished(path, {"steps": 1}, force=False)
    assert not is_finished(path, {"steps": 1}, force=True)
    with pytest.raises(CannotCreateError, match="steps: 1 there, 2 now"):
        is_finished(path, {"steps": 2}, force=False)
    path.write_bytes(b"mine")
    with pytest.raises(CannotCreateError, match="not made by this command line"):
        is_finished(path, {"steps": 1}, force=False)
