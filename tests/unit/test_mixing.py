"""Mixup, CutMix, erasing and RandAugment as functions of (seed, step)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from corecli.views.mixing import Mixing, draw_mixing, erase, mix
from corecli.views.randaugment import OPERATIONS, rand_augment

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), torch.tensor([0.2, 0.2, 0.2]).view(1, 3, 1, 1)


def images(num: int = 6, height: int = 16, width: int = 20) -> Tensor:
    return torch.rand(num, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_pairs_are_averaged_or_cut_into_each_other() -> None:
    x, labels = images(), torch.arange(6)
    mixed, others, keep = mix(x, labels, Mixing(keep=0.7))
    assert others.tolist() == [1, 0, 3, 2, 5, 4]
    torch.testing.assert_close(mixed, 0.7 * x + 0.3 * x[others])
    mixed, others, keep = mix(x, labels, Mixing(keep=0.9, box=(0.5, 0.25, 0.75, 1.0)))
    assert keep == 1 - 4 * 15 / 320
    inside = torch.zeros(16, 20, dtype=torch.bool)
    inside[8:12, 5:20] = True
    assert torch.equal(mixed, torch.where(inside, x[others], x))


def test_the_kind_and_the_weight_of_mixing_depend_on_the_step() -> None:
    both = [draw_mixing(mixup=0.8, cutmix=1.0, switch=0.5, seed=1, step=s) for s in range(400)]
    assert both[7] == draw_mixing(mixup=0.8, cutmix=1.0, switch=0.5, seed=1, step=7)
    assert 150 < sum(m.box is not None for m in both) < 250
    kept = np.array([m.keep for m in both if m.box is not None])  # Beta(1, 1) is uniform
    assert abs(kept.mean() - 0.5) < 0.08
    for m in both:
        if m.box is not None:
            area = (m.box[2] - m.box[0]) * (m.box[3] - m.box[1])
            assert 0 <= area <= 1 - m.keep + 1e-9
    assert {draw_mixing(mixup=0.8, cutmix=0, switch=0.5, seed=0, step=s).box for s in range(50)} == {None}
    assert None not in {draw_mixing(mixup=0, cutmix=1, switch=0.5, seed=0, step=s).box for s in range(50)}
    assert draw_mixing(mixup=0, cutmix=0, switch=0.5, seed=0, step=3) == Mixing(keep=1.0)


def test_erased_rectangles_do_not_depend_on_the_rank() -> None:
    x = torch.full((200, 3, 24, 24), 0.5)
    given = {"probability": 0.25, "mean": MEAN, "std": STD, "seed": 0, "step": 3}
    found = erase(x.clone(), **given, first=0)
    parts = [erase(x[a:b].clone(), **given, first=a) for a, b in ((0, 70), (70, 200))]
    assert torch.equal(torch.cat(parts), found)
    changed = (found != 0.5).all(1)
    assert 30 < int(changed.flatten(1).any(1).sum()) < 70
    for one in changed:
        rows, columns = one.any(1), one.any(0)
        assert torch.equal(one, rows[:, None] & columns)
        assert one.float().mean() < 0.37
    noise = found[changed[:, None].expand_as(found)]
    assert abs(float(noise.mean()) - float(MEAN.mean())) < 0.01


def amounts(value: float, num: int) -> Tensor:
    return torch.full((num, 1, 1, 1), value)


@pytest.mark.parametrize("value", [0.6, -0.85])
def test_operations_equal_torchvisions(value: float) -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    x = images(4).mul(255).round() / 255
    levels, factor = (x * 255).round().byte(), 1 + 0.9 * value
    expected = {
        "auto-contrast": functional.autocontrast(x),
        "equalize": functional.equalize(levels) / 255,
        "invert": 1 - x,
        "posterize": functional.posterize(levels, 4 - int(4 * abs(value))) / 255,
        "solarize": functional.solarize(levels, 256 - int(256 * abs(value))) / 255,
        "color": functional.adjust_saturation(x, factor),
        "contrast": functional.adjust_contrast(x, factor),
        "brightness": functional.adjust_brightness(x, factor),
        "sharpness": functional.adjust_sharpness(x, factor),
    }
    for name, other in expected.items():
        found = OPERATIONS[name](x, amounts(value, 4), MEAN)
        torch.testing.assert_close(found, other, rtol=0, atol=2e-3 if name == "color" else 1e-5, msg=name)
    bilinear = {"interpolation": functional.InterpolationMode.BILINEAR}
    plain = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **bilinear}
    moved = {
        "rotate": functional.rotate(x - MEAN, -30 * value, **bilinear) + MEAN,
        "shear-x": functional.affine(x - MEAN, **{**plain, "shear": [np.degrees(np.arctan(0.3 * value)), 0.0]}) + MEAN,
        "translate-x": functional.affine(x - MEAN, **{**plain, "translate": [-0.45 * value * 20, 0.0]}) + MEAN,
        "translate-y": functional.affine(x - MEAN, **{**plain, "translate": [0.0, -0.45 * value * 16]}) + MEAN,
    }
    for name, other in moved.items():
        inner, found = (
            (..., slice(4, -4), slice(5, -5)),
            [OPERATIONS[name](x, amounts(s * value, 4), MEAN) for s in (1, -1)],
        )
        assert min(float((one - other)[inner].abs().max()) for one in found) < 1e-3, (
            name
        )  # which way is the draw's sign


def test_randaugment_depends_only_on_the_position_in_the_batch() -> None:
    x = images(40)
    given = {"magnitude": 9.0, "mean": MEAN, "seed": 0, "step": 5, "batch": 40}
    found = rand_augment(x, **given, first=0)
    parts = [rand_augment(x[a:b], **given, first=a) for a, b in ((0, 12), (12, 40))]
    torch.testing.assert_close(torch.cat(parts), found, rtol=0, atol=1e-6)
    left_alone = (found == x).flatten(1).all(1)
    assert 3 <= int(left_alone.sum()) <= 18  # a quarter has no operation
    assert found.min() >= 0
    assert found.max() <= 1
    assert not torch.equal(rand_augment(x, **{**given, "step": 6}, first=0), found)
