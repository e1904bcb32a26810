"""Rows: what keys tell, and what columns may say."""

from __future__ import annotations

import time

import numpy as np
import pytest

from corecli.base.errors import DataError
from corecli.data.columns import from_columns, to_columns
from corecli.data.rows import REAL, SYNTHETIC, group_of, label_by_folder, make_rows, numbered_keys, variant_key


@pytest.mark.parametrize(
    ("key", "group"),
    [
        ("dog/0007", "dog/0007"),
        ("dog/0007@2", "dog/0007"),
        ("a@b/0007", "a@b/0007"),
        ("dog@x", "dog@x"),
        ("@3", "@3"),
        ("a@1@2", "a@1"),
        ("a@\u0662", "a@\u0662"),  # a digit, but not one we write
    ],
)
def test_group_of_a_key(key: str, group: str) -> None:
    assert group_of(key) == group


def test_variant_key_is_the_inverse() -> None:
    assert group_of(variant_key("dog/0007", 12)) == "dog/0007"


def test_defaults_come_from_the_keys() -> None:
    rows = make_rows(["cat/1", "cat/1@0", "cat/1@3"])
    assert rows.groups == ["cat/1"] * 3
    assert rows.origins.tolist() == [REAL, SYNTHETIC, SYNTHETIC]
    assert rows.variants.tolist() == [0, 0, 3]
    assert rows.labels.tolist() == [-1, -1, -1]
    assert [c.dtype for c in (rows.labels, rows.origins, rows.variants)] == [np.int64, np.uint8, np.int32]


def test_group_ids_and_take() -> None:
    rows = make_rows(["b", "a@1", "a", "c"], labels=[0, 1, 2, 3])
    assert rows.group_ids.tolist() == [0, 1, 1, 2]
    taken = rows.take(np.array([3, 1]))
    assert (taken.keys, taken.groups, taken.labels.tolist()) == (["c", "a@1"], ["c", "a"], [3, 1])
    assert taken.variants.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"labels": [0, 1]}, "the column of labels has shape"),
        ({"labels": [0.5, 1.0, 2.0]}, "whole numbers"),
        ({"labels": [0, 1, -2]}, "outside"),
        ({"origins": [0, 1, 2]}, "outside"),
        ({"variants": [0, 0, 1 << 40]}, "outside"),
        ({"groups": ["a"]}, "1 groups for 3"),
    ],
)
def test_columns_are_checked(columns: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_rows(["a", "b", "c"], **columns, where="somewhere")


def test_duplicate_key_is_named() -> None:
    with pytest.raises(DataError, match=r"x\.bin: duplicate key 'dog/2'"):
        make_rows(["dog/1", "dog/2", "dog/2"], where="x.bin")


def test_a_name_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(DataError, match="not UTF-8"):
        make_rows(["good", "bad\udcff"])


def test_labels_by_folder() -> None:
    labels, names = label_by_folder(["dog/a", "cat/x/b", "loose", "cat/c"])
    assert (labels.tolist(), names) == ([1, 0, -1, 0], ("cat", "dog"))
    labels, names = label_by_folder(["dog/a", "cow/b"], ["cat", "cow"])
    assert (labels.tolist(), names) == ([-1, 1], ("cat", "cow"))
    assert label_by_folder(["a", "b"])[1] == ()


def test_numbered_keys_count_within_classes() -> None:
    assert numbered_keys([1, 0, 1, -1], ("a/b", "c")) == ["c/0000", "a_b/0000", "c/0001", "0000"]


@pytest.mark.parametrize("keys", [["a", "b@1", "c"], ["\u00e9t\u00e9/1", "\u72ac/2"], [""]])
def test_columns_round_trip(keys: list[str]) -> None:
    rows = make_rows(keys, groups=[f"g{i // 2}" for i in range(len(keys))], labels=np.arange(len(keys)))
    again = from_columns(to_columns(rows), num=len(keys), where="x")
    assert (again.keys, again.groups) == (rows.keys, rows.groups)
    assert all(np.array_equal(getattr(again, n), getattr(rows, n)) for n in ("labels", "origins", "variants"))


def test_columns_that_do_not_fit_are_refused() -> None:
    columns = to_columns(make_rows(["aa", "bb"]))
    for offsets in ([0, 3, 2], [1, 2, 4], [0, 2, 5], [0, 2]):
        with pytest.raises(DataError, match="keys column"):
            from_columns({**columns, "keys.offsets": np.array(offsets)}, num=2, where="x")
    with pytest.raises(DataError, match="not UTF-8"):
        from_columns({**columns, "keys.bytes": np.array([255, 254, 97, 98], dtype=np.uint8)}, num=2, where="x")


def test_a_million_rows_are_feasible() -> None:
    keys = [f"n{i % 1000:04d}/{i:08d}@{i % 3}" for i in range(200_000)]
    start = time.process_time()
    rows = make_rows(keys)
    again = from_columns(to_columns(rows), num=len(rows), where="x")
    assert again.groups[5] == "n0005/00000005"
    assert time.process_time() - start < 3.0  # a fifth of a million rows; measured 0.4 s
