"""Views of group members: MixDiff's pairs, GenSSL's coin, and variants drawn anew every epoch."""

from __future__ import annotations

import numpy as np
import pytest

from corecli.base.errors import DataError, UsageError
from corecli.data.members import Entry, Members, anchors, pairs, parse_views
from corecli.data.rows import Rows, make_rows

NUM, VARIANTS = 300, 4


def grouped(variants: int = VARIANTS) -> Rows:
    """NUM real images a/0000..., each with synthetic variants 1..K; the last one has none."""
    real = [f"a/{i:04d}" for i in range(NUM)]
    return make_rows(real + [f"{key}@{v}" for key in real[:-1] for v in range(1, variants + 1)])


def shown(views: str, *, epoch: int = 0, probability: float = 0.5, seed: int = 0, variants: int = VARIANTS) -> Rows:
    """The rows each entry shows for all real images, entries in turn."""
    rows = grouped(variants)
    members = Members(rows, parse_views(views), seed=seed, synthetic_probability=probability)
    return rows.take(members.of(np.arange(NUM), (0, epoch)).ravel())


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("2g", [("any", 2, 0)]),
        ("2g8l", [("any", 2, 8)]),
        ("any:1g", [("any", 1, 0)]),
        ("real:1g6l,synthetic:1g2l", [("real", 1, 6), ("synthetic", 1, 2)]),
        ("mixed:1g, mixed:1g", [("mixed", 1, 0), ("mixed", 1, 0)]),
        ("real:2g,synthetic:4l", [("real", 2, 0), ("synthetic", 0, 4)]),
    ],
)
def test_views_are_read(text: str, entries: list[tuple[str, int, int]]) -> None:
    expected = tuple(Entry(source=s, num_global=g, num_local=n) for s, g, n in entries)  # pyright: ignore[reportArgumentType]
    assert parse_views(text) == expected
    assert pairs(expected) == (entries[0][0] != "any")


@pytest.mark.parametrize("text", ["", "2", "g", "2l", "x:1g", "real:", "2g,2g", "real:1g,2g", "1l1g", "-1g"])
def test_views_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_views(text)


def test_pairs_are_of_one_group_and_of_the_origins_asked_for() -> None:
    rows = shown("real:1g6l,synthetic:1g2l")
    real, synthetic = rows.take(np.arange(NUM)), rows.take(np.arange(NUM, 2 * NUM))
    assert real.groups == synthetic.groups
    assert (real.origins == 0).all()
    assert (synthetic.origins[:-1] == 1).all()
    assert synthetic.keys[-1] == real.keys[-1]  # it has no partner and stands for itself


def test_variants_are_redrawn_every_epoch_and_equally_often() -> None:
    drawn = np.stack([shown("real:1g,synthetic:1g", epoch=e).variants[NUM:-1] for e in range(40)])
    assert set(drawn.ravel()) == {1, 2, 3, 4}
    counts = np.bincount(drawn.ravel(), minlength=5)[1:]
    assert np.abs(counts / drawn.size - 1 / VARIANTS).max() < 0.02
    assert 0.2 < (drawn[0] == drawn[1]).mean() < 0.3  # as chance has it
    again = shown("real:1g,synthetic:1g", epoch=7).variants[NUM:-1]
    assert np.array_equal(again, drawn[7])
    assert not np.array_equal(again, shown("real:1g,synthetic:1g", epoch=7, seed=1).variants[NUM:-1])


def test_a_group_keeps_its_variant_whatever_batch_it_is_in() -> None:
    rows = grouped()
    members = Members(rows, parse_views("real:1g,synthetic:1g"), seed=0)
    whole = members.of(np.arange(NUM), (0, 3))
    picked = np.array([17, 3, 17, 250])
    assert np.array_equal(members.of(picked, (0, 3)), whole[:, picked])


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_mixed_views_are_synthetic_with_the_probability_given(probability: float) -> None:
    both = [shown("mixed:1g,mixed:1g", epoch=e, probability=probability).origins for e in range(20)]
    origins = np.stack(both).reshape(20, 2, NUM)[:, :, :-1]
    assert origins.mean() == pytest.approx(probability, abs=0.02)
    if probability == 0.5:  # the two views toss coins of their own
        assert (origins[:, 0] == origins[:, 1]).mean() == pytest.approx(0.5, abs=0.02)


def test_synthetic_views_of_one_image_differ_while_there_are_enough() -> None:
    four = shown("synthetic:1g,synthetic:1g,synthetic:1g,synthetic:1g").variants.reshape(4, NUM)[:, :-1]
    assert (np.sort(four, axis=0) == np.arange(1, 5)[:, None]).all()
    one = shown("synthetic:1g,synthetic:1g", variants=1).keys
    assert one[:NUM] == one[NUM:]


def test_an_epoch_of_pairs_goes_over_the_real_images_alone() -> None:
    rows = grouped(1)
    slots = np.concatenate([np.tile(np.arange(NUM), 2), np.arange(NUM, len(rows))])
    paired, segments = anchors(rows, slots, (2 * NUM, NUM - 1), parse_views("real:1g,synthetic:1g"))
    assert np.array_equal(paired, np.tile(np.arange(NUM), 2))
    assert segments == (2 * NUM,)
    plain, segments = anchors(rows, slots, (2 * NUM, NUM - 1), parse_views("2g"))
    assert plain is slots
    assert segments == (2 * NUM, NUM - 1)


def test_nothing_to_pair_is_refused() -> None:
    only_real, only_synthetic = make_rows(["a", "b"]), make_rows(["a@1", "b@1"])
    for rows, message in ((only_real, "no synthetic images"), (only_synthetic, "no real images")):
        with pytest.raises(DataError, match=message):
            anchors(rows, np.arange(2), (2,), parse_views("real:1g,synthetic:1g"))
