"""Sets with many rows: strings, joins, permutations, and what opening costs."""

from __future__ import annotations

import hashlib
import random
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corecli.base.errors import DataError
from corecli.base.layout import data_start
from corecli.data import groups, joins, mapped, members, mix, order, rows, sets
from corecli.data.beside import Beside
from corecli.data.formats import mixture
from corecli.data.imageset import open_set, write_set
from corecli.data.members import Members, anchors, parse_views
from corecli.data.mix import Mixture, Part, save_mixture
from corecli.data.order import Order
from corecli.data.permutation import permuted
from corecli.data.rows import group_of, make_rows
from corecli.data.sets import LargeSets
from corecli.data.strings import JoinedStrings, PackedStrings, digest_strings, pack, to_arrays

NUM = 100_000


def words(seed: int, num: int = 60) -> list[str]:
    """Different strings of up to 600 bytes, with marks of variants and letters of several bytes."""
    rng = random.Random(seed)
    drawn = ("".join(rng.choices("ab@@019/\u00e9\u72ac", k=rng.randrange(14))) for _ in range(num))
    return list(dict.fromkeys([*drawn, "x" * 511, "x" * 513, "x" * 600]))


@pytest.mark.parametrize("seed", range(20))
def test_columns_of_strings_are_like_lists(seed: int) -> None:
    known, shuffle = words(seed), np.random.default_rng(seed)
    column, order = pack(known), shuffle.permutation(len(known))
    taken = column.take(order)
    assert column == known and [column[i] for i in range(len(known))] == known and column[-1] == known[-1]
    assert list(taken) == [known[i] for i in order] and column[3:9] == known[3:9]
    joined = JoinedStrings([("p/", column, range(len(known))), ("", column, order)])
    listed = [f"p/{key}" for key in known] + [known[i] for i in order]
    assert joined == listed and list(joined.take(order[::-1])) == [listed[i] for i in order[::-1]]
    data, offsets = to_arrays(taken)
    assert data.tobytes() == "".join(taken).encode() and offsets[-1] == len(data)
    assert digest_strings("a", joined, "z") == hashlib.sha256("\0".join(["a", *listed, "z"]).encode()).hexdigest()


@pytest.mark.parametrize("seed", range(20))
def test_joins_are_those_of_a_dictionary(seed: int) -> None:
    known, shuffle = words(seed), np.random.default_rng(seed)
    column, order = pack(known), shuffle.permutation(len(known))
    assert joins.Finder(column).find(column.take(order)).tolist() == order.tolist()
    assert joins.Finder(column).find(pack(["nobody", known[0]])).tolist() == [-1, 0]
    assert [known[i] for i in joins.in_order(pack(known[:-3]))] == sorted(known[:-3])
    assert joins.first_duplicate(column) is None
    assert joins.first_duplicate(pack([*known, known[4], known[2]])) == known[4]
    seen: dict[str, int] = {}
    wanted = [seen.setdefault(group_of(key), len(seen)) for key in known]
    assert make_rows(known).group_ids.tolist() == wanted


def test_joins_survive_equal_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joins, "hashes", lambda strings: np.zeros(len(strings), dtype=np.uint64))
    column = pack(["a", "b", "c", "b"])
    assert joins.number(column).tolist() == [0, 1, 2, 1]
    assert joins.first_duplicate(column) == "b"
    assert joins.Finder(pack(["a", "b", "c"])).find(pack(["c", "x", "a"])).tolist() == [2, -1, 0]


def test_damaged_strings_are_named_when_they_are_read() -> None:
    data = np.frombuffer(b"ab\xff", dtype=np.uint8)
    column = PackedStrings(data, np.array([0, 2]), np.array([2, 3]), name="keys", where="x")
    assert column[0] == "ab"
    with pytest.raises(DataError, match="x: the keys column is not UTF-8"):
        column[1]
    with pytest.raises(DataError, match="x: the keys column is not in order"):
        column.between(np.array([0]), np.array([9])).decoded()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 1000, 4097])
def test_every_seed_gives_a_permutation(size: int) -> None:
    found = [permuted(np.arange(size), size, seed) for seed in range(5)]
    assert all(np.array_equal(np.sort(one), np.arange(size)) for one in found)
    assert size < 4 or len({one.tobytes() for one in found}) > 1


def test_permutations_are_uniform() -> None:
    size, num = 12, 12_000
    found = permuted(np.tile(np.arange(size), num), size, np.repeat(np.arange(num), size)).reshape(num, size)
    positions = np.array([np.bincount(found[:, i], minlength=size) for i in range(size)])
    assert _chi_square(positions) < 1.35 * (size - 1) ** 2  # 121 degrees of freedom; the mean plus 2.7 deviations
    pairs = np.bincount(found[:, 3] * size + found[:, 8], minlength=size * size).reshape(size, size)
    assert not pairs.diagonal().any()
    off = pairs[~np.eye(size, dtype=bool)]
    assert _chi_square(off) < 1.35 * len(off)


def test_long_permutations_have_the_statistics_of_numpys() -> None:
    size = (1 << 21) + 5
    ours = permuted(np.arange(size), size, 7)
    assert np.array_equal(np.sort(ours), np.arange(size))
    theirs = np.random.default_rng(7).permutation(size)
    for one in (ours, theirs):
        assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 4e-3  # 5 deviations
        assert (one == np.arange(size)).sum() < 12  # one is expected
        cells = np.bincount(one[: 1 << 20] >> 12, minlength=size >> 12)[: size >> 12]
        assert 0.7 < cells.var() / (cells.mean() / 2) < 1.3  # of draws without replacement


def _chi_square(counts: np.ndarray) -> float:
    return float(((counts - counts.mean()) ** 2 / counts.mean()).sum())


@pytest.fixture
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rows, order, members, groups, sets):
        monkeypatch.setattr(module, "LARGE", 10, raising=False)


def test_a_long_epoch_shows_every_slot_once(small_is_large: None) -> None:
    made = [Order(range(103), segments=(103,), batch_size=10, seed=3, total_steps=40) for _ in range(2)]
    epochs = [np.concatenate([made[0].batch(10 * e + i) for i in range(10)]) for e in range(2)]
    assert all(len(np.unique(epoch)) == 100 and epoch.max() < 103 for epoch in epochs)
    assert not np.array_equal(*epochs)
    assert np.array_equal(made[1].batch(13), made[0].batch(13))


def test_long_epochs_of_pairs_and_sets(small_is_large: None) -> None:
    keys = [f"{i:02d}" for i in range(30)] + [f"{i:02d}@{v}" for v in range(3) for i in range(29)]
    found = make_rows(keys)
    entries = parse_views("real:1g,synthetic:1g,synthetic:1g")
    slots, segments = anchors(found, range(len(found)), (len(found),), entries)
    assert slots == range(30) and segments == (30,)
    real, first, second = Members(found, entries, seed=0).of(np.arange(30), (0, 0))
    assert real.tolist() == list(range(30)) and first[29] == second[29] == 29  # without a partner
    ids = found.group_ids
    assert (
        (ids[first] == ids[real]).all() and (first[:29] != second[:29]).all() and (found.origins[first[:29]] == 1).all()
    )
    grouped = LargeSets(rows=found, size=2)
    num = grouped.num_images(range(len(found)))
    assert (num, grouped.num_short(range(len(found)))) == (29 * 4 + 2, 1)
    shown = grouped.shuffled(0, num, seed=5)
    assert (ids[shown[::2]] == ids[shown[1::2]]).all()
    assert np.bincount(shown, minlength=len(found)).tolist() == [1] * 29 + [2] + [1] * 87


def test_stored_arrays_are_used_again_and_replaced_when_damaged(tmp_path: Path) -> None:
    made: list[int] = []

    def build() -> dict[str, np.ndarray]:
        made.append(1)
        return {"x": np.arange(5)}

    place = tmp_path / "set.safetensors"
    for _ in range(2):
        assert Beside(place, "one").arrays("n", build)["x"].tolist() == [0, 1, 2, 3, 4]
    assert len(made) == 1
    Beside(place, "another").arrays("n", build)
    assert len(made) == 2
    stored = tmp_path / ".set.safetensors.n.safetensors"
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.write_bytes(data)
    assert Beside(place, "another").arrays("n", build)["x"].tolist() == [0, 1, 2, 3, 4]
    assert len(made) == 3


def test_opening_a_hundred_thousand_rows_costs_little(tmp_path: Path) -> None:
    keys = [f"{i:06d}" for i in range(NUM)]
    images = np.zeros((NUM, 3, 1, 1), dtype=np.uint8)
    path = tmp_path / "x.safetensors"
    write_set(path, make_rows(keys), iter([images]), class_names=(), header={})
    open_set(path)
    tracemalloc.start()
    start = time.process_time()
    found = open_set(path)
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.rows.keys[77] == "000077" and found.rows.groups_of(np.array([5])).tolist() == [5]
    assert peak < 12e6  # short columns are read once to check them; a list of keys alone takes 6 MB
    assert seconds < 0.5
    assert found.fingerprint == open_set(path).fingerprint == found.computed_fingerprint  # type: ignore[attr-defined]


def _two_sets(folder: Path) -> Path:
    """A mixture of 30 real images, some of them twice, and synthetic variants of 24 of them, in packed files."""
    pixels = np.random.default_rng(0).integers(0, 256, (78, 3, 2, 2), dtype=np.uint8)
    real = [f"{i:02d}" for i in range(30)]
    synthetic = [f"{i:02d}@{v}" for i in range(24) for v in (1, 2)]
    for name, keys, images in (("r", real, pixels[:30]), ("s", synthetic, pixels[30:])):
        labels = np.arange(len(keys)) % 3
        write_set(folder / f"{name}.safetensors", make_rows(keys, labels=labels), iter([images]),
                  class_names=("a", "b", "c"), header={})  # fmt: skip
    parts = (Part(set=str(folder / "r.safetensors"), repeat=1.5), Part(set=str(folder / "s.safetensors"), prefix="p"))
    save_mixture(folder / "mix.json", Mixture(parts=parts, missing="drop"))
    return folder / "mix.json"


def _described(path: Path) -> list[Any]:
    """Everything that can be read of a mixture."""
    found = open_set(path)
    columns = [found.rows.labels, found.rows.origins, found.rows.variants, rows.as_array(found.slots)]
    index, picked = groups.group_index(found.rows), np.arange(24)
    members_of = [array.tolist() for array in (*index.range_of(picked), *index.synthetic(picked))]
    return [
        *(column.tolist() for column in columns),
        list(found.rows.keys),
        list(found.rows.groups),
        found.segments,
        found.read_array(np.arange(len(found.rows))[::-1]).tolist(),
        mix.has_partner(found.rows).tolist(),
        mix.summary(found, 8),
        members_of,
    ]


def test_a_large_mixture_is_like_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    path = _two_sets(tmp_path)
    expected = _described(path)
    assert not list(tmp_path.glob(".mix*"))
    request.getfixturevalue("small_is_large")
    for module in (mix, mixture):
        monkeypatch.setattr(module, "LARGE", 10)
    monkeypatch.setattr(mapped, "SHORT_BYTES", 0)
    assert _described(path) == expected
    stored = tmp_path / ".mix.json.mixture.safetensors"
    monkeypatch.setattr(mixture, "_joined", None)  # the stored columns are used from now on
    assert _described(path) == expected
    data = bytearray(stored.read_bytes())
    data[data_start(stored) + 8] ^= 1
    stored.write_bytes(data)
    with pytest.raises(DataError, match="remove the file, and it is made again"):
        _described(path)
