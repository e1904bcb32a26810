"""Feature tables: joined by key, and refused when they are not what they should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from corecli.base import checkpoint
from corecli.base.errors import DataError, MissingInputError
from corecli.data.features import FeatureTable, load_features, save_features

KEYS = ["dog/1", "cat/2", "cat/2@1", "\u72ac"]
HEADER = {"encoder": "e" * 64, "layer": "projector", "source": "s", "config": {"seed": 0}}


def _table(**changes: object) -> FeatureTable:
    fields = {
        "features": torch.arange(12, dtype=torch.float32).reshape(4, 3),
        "keys": KEYS,
        "groups": ["dog/1", "cat/2", "cat/2", "caption"],
        "labels": np.array([1, 0, 0, -1]),
        "header": HEADER,
    }
    return FeatureTable(**(fields | changes))  # type: ignore[arg-type]


def _saved(folder: Path, name: str = "z.safetensors", **changes: object) -> Path:
    save_features(folder / name, _table(**changes))
    return folder / name


@pytest.mark.parametrize("name", ["z.safetensors", "z.pt"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    found = load_features(_saved(tmp_path, name))
    assert torch.equal(found.features, _table().features)
    assert (found.keys, found.groups, found.labels.tolist()) == (KEYS, _table().groups, [1, 0, 0, -1])
    assert HEADER.items() <= found.header.items()
    assert len(found) == 4


def test_saving_again_gives_the_same_bytes(tmp_path: Path) -> None:
    first = _saved(tmp_path)
    save_features(tmp_path / "again.safetensors", load_features(first))
    assert (tmp_path / "again.safetensors").read_bytes() == first.read_bytes()


def test_half_precision_is_widened(tmp_path: Path) -> None:
    assert load_features(_saved(tmp_path, features=torch.ones(4, 3).bfloat16())).features.dtype == torch.float32


def test_lookup_is_by_key(tmp_path: Path) -> None:
    table = load_features(_saved(tmp_path))
    assert table.lookup(["\u72ac", "dog/1", "dog/1"]).tolist() == [[9, 10, 11], [0, 1, 2], [0, 1, 2]]
    assert table.lookup([]).shape == (0, 3)


def test_lookup_names_the_first_missing_keys() -> None:
    with pytest.raises(DataError, match=r"4 of 5 images have no feature: a, b, c \("):
        _table().lookup(["a", "dog/1", "b", "c", "d"])


def test_a_synthetic_image_may_take_its_sources_feature() -> None:
    found = _table().lookup(["cat/2@1", "cat/2@7", "dog/1"], or_groups=["cat/2", "cat/2", "nobody"])
    assert found.tolist() == [[6, 7, 8], [3, 4, 5], [0, 1, 2]]
    with pytest.raises(DataError, match="1 of 1 images have no feature: owl@3"):
        _table().lookup(["owl@3"], or_groups=["owl"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_named(tmp_path: Path, bad: float) -> None:
    features = _table().features.clone()
    features[2, 1] = bad
    message = "features of 1 images are not finite, the first of 'cat/2@1'"
    with pytest.raises(DataError, match=message):
        _saved(tmp_path, features=features)
    assert not list(tmp_path.iterdir())
    tensors, header = checkpoint.load(_saved(tmp_path))
    tensors["features"][2, 1] = bad
    checkpoint.save(tmp_path / "nan.safetensors", tensors, kind=header["kind"])
    with pytest.raises(DataError, match=f"nan.safetensors: {message}"):
        load_features(tmp_path / "nan.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": ["a", "b", "b", "c"]}, "duplicate key 'b'"),
        ({"keys": ["a", "b"]}, "4 features for 2 keys"),
        ({"labels": np.array([0])}, "4 features"),
    ],
)
def test_columns_must_fit(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _saved(tmp_path, **changes)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no such file"):
        load_features(tmp_path / "z.safetensors")


@pytest.mark.parametrize("name", ["z.safetensors", "z.pt"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, name: str, kept: float) -> None:
    data = _saved(tmp_path, name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DataError, match=name):
        load_features(tmp_path / name)


def test_every_flipped_bit_of_the_data_is_found(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for position in range(start, len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="does not match its hash"):
            load_features(path)


def test_file_of_another_kind(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "x", {"features": torch.zeros(1, 2)}, kind="encoder")
    with pytest.raises(DataError, match="'encoder'"):
        load_features(tmp_path / "x")
    checkpoint.save(tmp_path / "y", {"features": torch.zeros(4)}, kind="features")
    with pytest.raises(DataError, match="the file has no features"):
        load_features(tmp_path / "y")
    checkpoint.save(tmp_path / "z", {"features": torch.zeros(4, 2)}, kind="features")
    with pytest.raises(DataError, match="the file has no keys"):
        load_features(tmp_path / "z")
