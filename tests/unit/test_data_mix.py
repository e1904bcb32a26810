"""Mixtures: which rows, how often, in which order, and what is said about them."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from corecli.base.errors import DataError, MissingInputError
from corecli.data.decode import Fit
from corecli.data.imageset import ImageSet, open_set, write_set
from corecli.data.mix import Mixture, Part, choose_rows, load_mixture, repeat_for_beta, save_mixture, summary
from corecli.data.rows import REAL, SYNTHETIC, Rows, make_rows

CLASSES = ("cat", "dog")


def _set(path: Path, keys: list[str], *, class_names: tuple[str, ...] = CLASSES, value: int = 0, size: int = 4) -> str:
    """A packed set whose image i is filled with value + i; labels come from the first folder."""
    labels = [class_names.index(k.split("/")[0]) if "/" in k and class_names else -1 for k in keys]
    fill = torch.arange(len(keys), dtype=torch.uint8)[:, None, None, None] + value
    images = fill.expand(-1, 3, size, size).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_set(path, make_rows(keys, labels=labels), iter([images]), class_names=class_names, header={}, format="packed")
    return str(path)


@pytest.fixture
def real(tmp_path: Path) -> str:
    """Six real images: four cats, two dogs."""
    return _set(tmp_path / "real", ["cat/0", "cat/1", "cat/2", "cat/3", "dog/0", "dog/1"])


@pytest.fixture
def synthetic(tmp_path: Path) -> str:
    """Variants of two of them, and one of an image that is not there."""
    return _set(tmp_path / "syn", ["cat/0@0", "cat/0@1", "dog/1@0", "dog/9@0"], value=100)


def _open(folder: Path, *parts: Part, name: str = "mix.json", **options: object) -> ImageSet:
    save_mixture(folder / name, Mixture(parts=parts, **options))  # type: ignore[arg-type]
    return open_set(folder / name)


def _shown(image_set: ImageSet) -> Counter[str]:
    return Counter(image_set.rows.keys[slot] for slot in image_set.slots)


# Rows, slots, pixels


def test_union_with_repeat(tmp_path: Path, real: str, synthetic: str) -> None:
    found = _open(tmp_path, Part(set=real, repeat=2), Part(set=synthetic))
    assert len(found.rows) == 10
    assert found.rows.groups[6:] == ["cat/0", "cat/0", "dog/1", "dog/9"]
    assert found.rows.origins.tolist() == [REAL] * 6 + [SYNTHETIC] * 4
    assert set(_shown(found).items()) == {
        *((k, 2) for k in found.rows.keys[:6]),
        *((k, 1) for k in found.rows.keys[6:]),
    }
    assert found.segments == (16,)
    assert found.read(np.array([7, 0, 9, 5]))[:, 0, 0, 0].tolist() == [101, 0, 103, 5]


def test_real_repeat_adds_a_seeded_balanced_share(tmp_path: Path, real: str) -> None:
    shown = _shown(_open(tmp_path, Part(set=real, repeat=2.5)))
    assert sorted(shown.values()) == [2, 2, 2, 3, 3, 3]
    assert Counter(key.split("/")[0] for key, times in shown.items() if times == 3) == {"cat": 2, "dog": 1}
    assert shown == _shown(_open(tmp_path, Part(set=real, repeat=2.5)))
    others = [_shown(_open(tmp_path, Part(set=real, repeat=2.5, seed=seed))) for seed in range(1, 6)]
    assert any(other != shown for other in others)
    assert sum(_shown(_open(tmp_path, Part(set=real, repeat=0.5))).values()) == 3


def test_nothing_to_show(tmp_path: Path, real: str) -> None:
    with pytest.raises(DataError, match="an epoch has no images"):
        _open(tmp_path, Part(set=real, repeat=0.01))


def test_sequential_segments(tmp_path: Path, real: str, synthetic: str) -> None:
    found = _open(tmp_path, Part(set=real, repeat=3), Part(set=synthetic, repeat=2), order="sequential")
    assert found.segments == (18, 8)
    assert set(found.slots[:18].tolist()) == set(range(6))
    assert set(found.slots[18:].tolist()) == set(range(6, 10))


def test_origin_and_guard(tmp_path: Path, real: str) -> None:
    found = _open(tmp_path, Part(set=real, origin="synthetic"), guard=True)
    assert found.rows.origins.tolist() == [SYNTHETIC] * 6
    assert found.guard


def test_accumulating_rounds_needs_a_prefix(tmp_path: Path, real: str, synthetic: str) -> None:
    second = _set(tmp_path / "syn2", ["cat/0@0", "dog/1@0"], value=200)
    with pytest.raises(
        DataError, match=r'the key \'cat/0@0\' is in both \S*syn and \S*syn2 \(give one part a "prefix"'
    ):
        _open(tmp_path, Part(set=real), Part(set=synthetic), Part(set=second), round=2)
    found = _open(tmp_path, Part(set=real), Part(set=synthetic), Part(set=second, prefix="round2"), round=2)
    assert found.rows.keys[-2:] == ["round2/cat/0@0", "round2/dog/1@0"]
    assert found.rows.groups[-2:] == ["cat/0", "dog/1"]
    assert found.rows.labels[-2:].tolist() == [0, 1]
    assert load_mixture(tmp_path / "mix.json").round == 2


def test_a_set_twice_is_a_collision(tmp_path: Path, real: str) -> None:
    with pytest.raises(DataError, match="key 'cat/0' is in"):
        _open(tmp_path, Part(set=real), Part(set=real))


def test_class_names_are_joined_by_name(tmp_path: Path, real: str) -> None:
    birds = _set(tmp_path / "birds", ["dog/7@0", "bird/0"], class_names=("bird", "dog"))
    plain = _set(tmp_path / "plain", ["7", "8"], class_names=())
    found = _open(tmp_path, Part(set=real), Part(set=birds), Part(set=plain))
    assert found.class_names == ("cat", "dog", "bird")
    assert found.rows.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, -1, -1]


def test_numbers_without_names_stay(tmp_path: Path, real: str) -> None:
    for name, labels in (("n.npz", [1, 0]), ("m.npz", [0, 7])):
        images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
        write_set(tmp_path / name, make_rows(["x", "y"], labels=labels), iter([images]), class_names=(), header={})
    assert _open(tmp_path, Part(set=real), Part(set=str(tmp_path / "n.npz"))).rows.labels[-2:].tolist() == [1, 0]
    with pytest.raises(DataError, match="label 7, but only 2 class names"):
        _open(tmp_path, Part(set=real), Part(set=str(tmp_path / "m.npz")))


def test_parts_of_different_sizes(tmp_path: Path, real: str) -> None:
    large = _set(tmp_path / "large", ["cat/9"], size=6)
    mixed = _open(tmp_path, Part(set=real), Part(set=large))
    assert mixed.is_mixed and [mixed.picture(row).size for row in (0, 6)] == [(4, 4), (6, 6)]
    with pytest.raises(DataError, match=r"cat/0 is 4 x 4, cat/9 is 6 x 6 \(--image-size"):
        mixed.read(np.arange(7))
    assert mixed.fitted(Fit(crop=4, resize=5)).read(np.arange(7)).shape == (7, 3, 4, 4)
    found = open_set(tmp_path / "mix.json", image_size=5)
    assert found.read(np.arange(7)).shape == (7, 3, 5, 5)


def test_nested_mixtures(tmp_path: Path, real: str, synthetic: str) -> None:
    inner = Part(set=str(tmp_path / "inner.json"), repeat=3)
    _open(tmp_path, Part(set=real, repeat=2, first=2), name="inner.json")
    found = _open(tmp_path, inner, Part(set=synthetic))
    assert _shown(found) == {"cat/0": 6, "cat/1": 6, "cat/0@0": 1, "cat/0@1": 1, "dog/1@0": 1, "dog/9@0": 1}
    assert found.read(np.array([1, 3]))[:, 0, 0, 0].tolist() == [1, 101]
    subset = _open(tmp_path, Part(set=str(tmp_path / "inner.json"), first=1))
    assert _shown(subset) == {"cat/0": 2}


def test_a_mixture_inside_itself(tmp_path: Path, real: str) -> None:
    for name, other in (("a.json", "b.json"), ("b.json", "a.json")):
        save_mixture(tmp_path / name, Mixture(parts=(Part(set=real), Part(set=str(tmp_path / other)))))
    with pytest.raises(DataError, match=r"a\.json: the mixture contains itself"):
        open_set(tmp_path / "a.json")


def test_bad_images_of_parts_are_told(tmp_path: Path) -> None:
    write_set(tmp_path / "d", make_rows([f"{i:02d}" for i in range(20)]),
              iter([torch.zeros(20, 3, 4, 4, dtype=torch.uint8)]), class_names=(), header={})  # fmt: skip
    (tmp_path / "d" / "03.png").write_bytes(b"")
    save_mixture(tmp_path / "m.json", Mixture(parts=(Part(set=str(tmp_path / "d")),)))
    found = open_set(tmp_path / "m.json", on_bad="skip")
    assert len(found.rows) == 19
    assert len(found.bad) == 1
    assert "03.png" in found.bad[0]
    assert found.decodes


def test_fingerprint_knows_the_slots(tmp_path: Path, real: str, synthetic: str) -> None:
    mixtures = [
        _open(tmp_path, Part(set=real)),
        _open(tmp_path, Part(set=real, repeat=2)),
        _open(tmp_path, Part(set=real, first=3)),
        _open(tmp_path, Part(set=real), guard=True),
        _open(tmp_path, Part(set=synthetic)),
    ]
    assert len({found.fingerprint for found in mixtures}) == 5
    assert _open(tmp_path, Part(set=real)).fingerprint == mixtures[0].fingerprint


# Subsets


def _rows(counts: dict[int, int]) -> Rows:
    keys = [f"{label}/{i:03d}" for label, count in counts.items() for i in range(count)]
    return make_rows(keys, labels=[label for label, count in counts.items() for _ in range(count)])


def test_fraction_is_balanced_by_largest_remainder() -> None:
    rows = _rows({0: 10, 1: 7, 2: 3})
    chosen = choose_rows(rows, Part(set="x", fraction=0.35), "x")  # 7 of 20: shares 3.5, 2.45, 1.05
    assert np.bincount(rows.labels[chosen]).tolist() == [4, 2, 1]
    assert chosen.tolist() == sorted(set(chosen.tolist()))


@pytest.mark.parametrize("fraction", [0.01, 0.1, 1 / 3, 0.5, 0.77, 1.0])
def test_fraction_has_the_right_total(fraction: float) -> None:
    rows = _rows({0: 33, 1: 50, 2: 17})
    assert len(choose_rows(rows, Part(set="x", fraction=fraction), "x")) == int(fraction * 100 + 0.5)


def test_per_class_and_first() -> None:
    rows = _rows({0: 10, 1: 7, 2: 3})
    assert np.bincount(rows.labels[choose_rows(rows, Part(set="x", per_class=3), "x")]).tolist() == [3, 3, 3]
    assert list(choose_rows(rows, Part(set="x", first=4), "x")) == [0, 1, 2, 3]
    with pytest.raises(DataError, match="class 2 has 3 images, fewer than 4"):
        choose_rows(rows, Part(set="x", per_class=4), "x")
    with pytest.raises(DataError, match="has 20 images, fewer than first 21"):
        choose_rows(rows, Part(set="x", first=21), "x")
    with pytest.raises(DataError, match="per_class needs labels"):
        choose_rows(make_rows(["a", "b"]), Part(set="x", per_class=1), "x")
    with pytest.raises(DataError, match="the subset has no images"):
        choose_rows(rows, Part(set="x", fraction=0.001), "x")


@pytest.mark.parametrize("of", [1, 3, 7, 100])
def test_shares_are_disjoint_balanced_and_everything(of: int) -> None:
    rows = _rows({0: 33, 1: 50, 2: 17})
    shares = [choose_rows(rows, Part(set="x", share=f"{k}/{of}"), "x") for k in range(1, of + 1)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(100))
    assert np.ptp([len(share) for share in shares]) <= 1
    for label in range(3):
        assert np.ptp([int((rows.labels[share] == label).sum()) for share in shares]) <= 1
    other = choose_rows(rows, Part(set="x", share=f"1/{of}", seed=1), "x")
    assert (other.tolist() == shares[0].tolist()) == (of == 1)


def test_more_shares_than_images() -> None:
    assert len(choose_rows(_rows({0: 3}), Part(set="x", share="3/9"), "x")) == 1
    with pytest.raises(DataError, match="the subset has no images"):
        choose_rows(_rows({0: 3}), Part(set="x", share="4/9"), "x")


def test_unlabeled_rows_are_not_a_class_of_their_own() -> None:
    rows = make_rows(["a", "b", "c", "d"], labels=[0, 0, -1, -1])
    assert set(choose_rows(rows, Part(set="x", per_class=2), "x").tolist()) == {0, 1}


def test_subset_does_not_depend_on_the_order_of_rows() -> None:
    rows = _rows({0: 10, 1: 10})
    shuffled = rows.take(np.random.default_rng(0).permutation(20))
    part = Part(set="x", fraction=0.5, seed=3)
    chosen = {rows.keys[i] for i in choose_rows(rows, part, "x")}
    assert chosen == {shuffled.keys[i] for i in choose_rows(shuffled, part, "x")}
    assert chosen != {rows.keys[i] for i in choose_rows(rows, Part(set="x", fraction=0.5, seed=4), "x")}


def test_smaller_subsets_lie_in_larger_ones() -> None:
    rows = _rows({0: 40, 1: 40})
    small, large = (set(choose_rows(rows, Part(set="x", fraction=f), "x").tolist()) for f in (0.25, 0.5))
    assert small < large


def test_subset_draws_every_row_equally_often() -> None:
    rows = _rows({0: 8})
    drawn = Counter(
        i for seed in range(800) for i in choose_rows(rows, Part(set="x", fraction=0.25, seed=seed), "x").tolist()
    )
    assert all(abs(count - 200) < 60 for count in drawn.values())  # 5 standard deviations


# Beta, collisions, partners


@pytest.mark.parametrize(
    ("real", "synthetic", "repeat", "beta"),
    [
        (50_000, 1_000_000, 10, 1 / 3),
        (50_000, 100_000, 2, 0.5),
        (100_000, 100_000, 2, 2 / 3),
        (10_000, 100_000, 10, 0.5),
    ],
)
def test_beta_of_the_published_settings(real: int, synthetic: int, repeat: int, beta: float) -> None:
    assert repeat_for_beta(beta, num_real=real, num_synthetic=synthetic) == pytest.approx(repeat)


@pytest.mark.parametrize(("beta", "num"), [(0, 5), (1, 5), (0.5, 0), (1.5, 5)])
def test_impossible_beta(beta: float, num: int) -> None:
    with pytest.raises(DataError, match="no repeat gives"):
        repeat_for_beta(beta, num_real=5, num_synthetic=num)


def test_summary(tmp_path: Path, real: str, synthetic: str) -> None:
    found = summary(_open(tmp_path, Part(set=real, repeat=2), Part(set=synthetic)), 4)
    assert (found["real"], found["synthetic"], found["beta"]) == (12, 4, 0.75)
    assert found["images"] == {"real": 6, "synthetic": 4}
    assert found["partners"] == {"matched": 2, "missing": 4, "extra": 1}
    assert found["per_class"] == {"cat": [8, 2], "dog": [4, 2]}
    json.dumps(found)


def test_summary_of_a_plain_unlabeled_set(tmp_path: Path) -> None:
    found = summary(open_set(_set(tmp_path / "x", ["a", "b"], class_names=())), 2)
    assert (found["beta"], found["per_class"], found["collisions_per_batch"]) == (1.0, {"unlabeled": [2, 0]}, 0.0)


def test_expected_collisions_by_enumeration(tmp_path: Path, real: str, synthetic: str) -> None:
    image_set = _open(tmp_path, Part(set=real, repeat=2), Part(set=synthetic))
    groups = [image_set.rows.groups[slot] for slot in image_set.slots]
    batches = list(itertools.combinations(groups, 3))
    pairs = sum(sum(a == b for a, b in itertools.combinations(batch, 2)) for batch in batches)
    assert summary(image_set, 3)["collisions_per_batch"] == pytest.approx(pairs / len(batches))


def test_expected_collisions_of_sequential_segments(tmp_path: Path, real: str, synthetic: str) -> None:
    parts = (Part(set=real, repeat=2), Part(set=synthetic))
    image_set = _open(tmp_path, *parts, order="sequential")
    alone = [summary(_open(tmp_path, part, name="one.json"), 3)["collisions_per_batch"] for part in parts]
    expected = 12 / 16 * alone[0] + 4 / 16 * alone[1]
    assert summary(image_set, 3)["collisions_per_batch"] == pytest.approx(expected)
    assert summary(_open(tmp_path, *parts, guard=True), 3)["collisions_per_batch"] == 0


def test_expected_collisions_of_adainf(tmp_path: Path) -> None:
    """A real image of N copies among L slots meets (B - 1)(N - 1)/(L - 1) of them: .31 % where B = 512, L = 1.5M."""
    for name, num in (("real", 500), ("syn", 10_000)):
        rows = make_rows([f"{name}{i}" for i in range(num)], origins=int(name == "syn"))
        images = torch.zeros(num, 3, 1, 1, dtype=torch.uint8)
        write_set(tmp_path / name, rows, iter([images]), class_names=(), header={}, format="packed")
    image_set = _open(tmp_path, Part(set=str(tmp_path / "real"), repeat=10), Part(set=str(tmp_path / "syn")))
    per_image = (512 - 1) * (10 - 1) / (15_000 - 1)
    real_in_batch = 512 * 5_000 / 15_000
    assert summary(image_set, 512)["collisions_per_batch"] == pytest.approx(real_in_batch * per_image / 2)


def test_batch_larger_than_the_set(tmp_path: Path, real: str) -> None:
    found = summary(_open(tmp_path, Part(set=real, repeat=2)), 512)
    assert found["collisions_per_batch"] == pytest.approx(6)  # all 12 slots: six pairs


def test_missing_partners(tmp_path: Path, real: str, synthetic: str) -> None:
    parts = (Part(set=real, repeat=2), Part(set=synthetic))
    with pytest.raises(DataError, match="4 real images have no synthetic partner: cat/1, cat/2, cat/3 "):
        _open(tmp_path, *parts, missing="fail")
    dropped = _open(tmp_path, *parts, missing="drop", order="sequential")
    assert dropped.rows.keys == ["cat/0", "dog/1", "cat/0@0", "cat/0@1", "dog/1@0", "dog/9@0"]
    assert dropped.segments == (4, 4)
    assert set(_shown(dropped).items()) >= {("cat/0", 2), ("dog/1", 2), ("dog/9@0", 1)}
    assert dropped.read(np.array([1, 2]))[:, 0, 0, 0].tolist() == [5, 100]
    assert _open(tmp_path, Part(set=real, first=1), Part(set=synthetic), missing="fail").segments == (5,)


# The file


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(tmp_path / "work" / "real", ["cat/0"])
    monkeypatch.chdir(tmp_path / "work")
    parts = (Part(set="real"), Part(set="digits:16"), Part(set=str(tmp_path / "abs")))
    save_mixture(Path("out/deep/mix.json"), Mixture(parts=parts))
    written = json.loads(Path("out/deep/mix.json").read_text())
    assert [part["set"] for part in written["parts"]] == ["../../real", "digits:16", str(tmp_path / "abs")]
    save_mixture(Path("out/one.json"), Mixture(parts=(Part(set="real"),)))
    (tmp_path / "work").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert open_set("moved/out/one.json").rows.keys == ["cat/0"]


def test_file_says_little_and_says_it_again(tmp_path: Path) -> None:
    part = Part(set="/x", repeat=2, fraction=0.5, seed=3, origin="real", prefix="a/b")
    told = {"identity": {"a": 1}, "config": {"b": 2}}
    mixture = Mixture(parts=(part,), order="sequential", guard=True, missing="drop", round=3, **told)
    save_mixture(tmp_path / "m.json", mixture)
    assert load_mixture(tmp_path / "m.json") == mixture
    save_mixture(tmp_path / "m.json", Mixture(parts=(Part(set="/x"),)))
    assert json.loads((tmp_path / "m.json").read_text()) == {"kind": "mixture", "format": 1, "parts": [{"set": "/x"}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": []}, "the mixture has no parts"),
        ({"parts": "x"}, 'm.json: parts: expected a list, found "x"'),
        ({"parts": [{"repeat": 2}]}, r"parts\[0\]: expected a member 'set', found \[\"repeat\"\]"),
        ({"parts": [{"set": "x"}, {"set": 5}]}, r"parts\[1\].set: expected a string, found 5"),
        ({"parts": [{"set": "x", "repeats": 2}]}, "unknown key 'repeats'"),
        ({"parts": [{"set": "x", "repeat": 0}]}, r"parts\[0\].repeat: expected a number above 0, found 0"),
        ({"parts": [{"set": "x", "repeat": True}]}, "repeat: expected a number above 0, found true"),
        ({"parts": [{"set": "x", "repeat": "2"}]}, 'repeat: expected a number above 0, found "2"'),
        ({"parts": [{"set": "x", "fraction": 1.5}]}, "fraction: expected a number in 0..1 or null, found 1.5"),
        ({"parts": [{"set": "x", "per_class": 2.5}]}, "per_class: expected a positive integer or null, found 2.5"),
        ({"parts": [{"set": "x", "first": -1}]}, "first: expected a positive integer or null, found -1"),
        ({"parts": [{"set": "x", "seed": None}]}, "seed: expected an integer, found null"),
        ({"parts": [{"set": "x", "fraction": 0.5, "first": 3}]}, "several subsets"),
        ({"parts": [{"set": "x", "fraction": 0.5, "share": "1/2"}]}, "several subsets"),
        *(
            ({"parts": [{"set": "x", "share": s}]}, f"share: expected K/N .* or null, found {json.dumps(s)}")
            for s in ("0/2", "3/2", "1/0", "half", 0.5)
        ),
        ({"parts": [{"set": "x", "origin": "fake"}]}, 'origin: expected one of real, synthetic or null, found "fake"'),
        (
            {"parts": [{"set": "x", "prefix": "../up"}]},
            'prefix: expected a relative path, such as "round1", found "../up"',
        ),
        ({"order": "random"}, 'm.json: order: expected one of union, sequential, found "random"'),
        ({"missing": "skip"}, 'missing: expected one of .*, found "skip"'),
        ({"guard": "false"}, 'guard: expected true or false, found "false"'),
        ({"shuffle": 1}, "unknown key 'shuffle'"),
        ({"format": 2}, "format 2 is newer"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    content = {"kind": "mixture", "format": 1, "parts": [{"set": "x"}], **changes}
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        open_set(tmp_path / "m.json")


def test_part_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="nowhere: no such file or directory"):
        _open(tmp_path, Part(set=str(tmp_path / "nowhere")))
