"""Plots and captioned sheets, read back pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corecli.draw import plot
from corecli.draw.plot import class_colors, write_curves, write_scatter
from corecli.draw.sheet import write_sheet


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def spots(picture: np.ndarray, color: tuple[int, int, int], *, near: int = 12) -> np.ndarray:
    """(row, column) of the pixels of about that color."""
    return np.argwhere(np.abs(picture - np.array(color)).max(-1) <= near)


def test_points_are_where_they_belong_in_the_color_of_their_class(tmp_path: Path) -> None:
    points = np.array([[0.0, 0], [10, 0], [0, 5], [10, 5]])
    write_scatter(tmp_path / "s.png", points, np.array([0, 1, 4, -1]), names=["cat", "dog"], axes=("x", "y"))
    picture = pixels(tmp_path / "s.png")[52:688, 52:688]  # within the frame
    through = [0.667 * np.array(c) + 0.333 * 255 for c in (*class_colors(3), (176, 176, 182))]
    places = [spots(picture, tuple(color), near=6).mean(0) for color in through]
    left, right, low, high = 16, 620, 469, 167  # one scale for both axes: twice as wide as high
    expected = [(low, left), (low, right), (high, left), (high, right)]
    assert np.allclose(np.stack(places), expected, atol=2)


def test_the_legend_names_classes_and_counts_what_it_leaves_out() -> None:
    classes = [(f"class {i}", (i, i, i)) for i in range(40)]
    entries = plot._legend(classes, unknown=True)
    assert [name for name, _ in entries[28:]] == ["class 28", "class 29", "and 10 more", "no label"]
    assert plot._legend([("a" * 30, (0, 0, 0))], unknown=False) == [("a" * 21 + "...", (0, 0, 0))]
    assert plot._legend([], unknown=True) == []


def test_a_legend_beside_the_points_only_where_there_are_classes(tmp_path: Path) -> None:
    points = np.random.default_rng(0).standard_normal((50, 2))
    for name, labels in (("with", np.arange(50) % 3), ("without", np.full(50, -1))):
        write_scatter(tmp_path / f"{name}.png", points, labels, names=["a", "b", "a long name"])
    beside = [pixels(tmp_path / f"{name}.png")[:, 696:] for name in ("with", "without")]
    assert all(len(spots(beside[0], color)) > 40 for color in class_colors(3))
    assert (beside[1] == 255).all()


@pytest.mark.parametrize("num", [10, 11, 100])
def test_colors_differ(num: int) -> None:
    colors = np.array(class_colors(num))
    assert len(np.unique(colors, axis=0)) == num
    assert colors.max() <= 255
    assert colors.min() >= 0


def test_a_curve_goes_through_its_values(tmp_path: Path) -> None:
    write_curves(tmp_path / "c.png", {"loss": ([0, 50, 100], [1.0, 3.0, 2.0]), "lr": ([0, 1], [0, 0])}, columns=3)
    picture = pixels(tmp_path / "c.png")
    assert picture.shape == (270, 800, 3)
    drawn = spots(picture, class_colors(1)[0], near=60)
    left, right, top, bottom = 62, 380, 42, 234
    reach = (bottom - top) / 2.24  # of one unit: the range is 1 to 3 and a margin of 6 %
    for x, value in ((left + 2, 1 + 4 / 159), ((left + right) / 2, 3), (right, 2)):
        rows = drawn[np.abs(drawn[:, 1] - x) < 1.5, 0]
        assert rows.mean() == pytest.approx(bottom - (value - 0.88) * reach, abs=3)
    flat = spots(picture, class_colors(2)[1], near=60)
    assert flat[:, 0].mean() == pytest.approx((top + bottom) / 2, abs=2)  # a constant runs through the middle


def test_ticks_are_round_and_within_the_range() -> None:
    assert plot._ticks(0, 100) == [0, 25, 50, 75, 100]
    assert plot._ticks(-0.13, 0.27) == pytest.approx([-0.1, 0, 0.1, 0.2])
    assert plot._ticks(5.27, 5.56) == pytest.approx([5.3, 5.4, 5.5])
    assert [plot._short(value) for value in (0.05, 1500, 100_000, 2.5e6, -3)] == ["0.05", "1.5k", "100k", "2.5M", "-3"]


def test_captions_stand_below_their_images_and_heads_apart(tmp_path: Path) -> None:
    images = torch.full((4, 3, 64, 64), 10, dtype=torch.uint8)
    write_sheet(tmp_path / "plain.png", images.numpy(), columns=2)
    write_sheet(tmp_path / "captioned.png", images.numpy(), columns=2, head_columns=1, captions=["", "0.98", "", "0.5"])
    plain, captioned = pixels(tmp_path / "plain.png"), pixels(tmp_path / "captioned.png")
    assert plain.shape[:2] == (2 * 66 + 2, 2 * 66 + 2)
    assert captioned.shape[:2] == (2 * 80 + 2, 2 * 66 + 2 + 8)
    assert (captioned[66:80, :74] == 255).all()  # no caption
    below = np.argwhere(captioned[66:80, 76:] < 200)
    assert len(below) > 10
    assert below[:, 1].mean() == pytest.approx(32, abs=3)
    big = tmp_path / "big.png"
    write_sheet(big, images[:1].numpy(), columns=1, shown_px=200)
    assert pixels(big).shape[0] == 3 * 64 + 4
