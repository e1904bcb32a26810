"""Positions of random crops: all are reached, the first and the last row and column too, with equal probability."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from corecli.views.augment import draw
from corecli.views.policies import POLICIES, Policy

NUM, NUM_COMPARED, SIGMAS = 20_000, 4_000, 5.0
SIZES = [(8, 8), (32, 32), (224, 224), (24, 40)]


def boxes_of(policy: Policy, image_size: tuple[int, int]) -> np.ndarray:
    """Boxes int64 [NUM, 4] of top, left, height, width."""
    return draw(policy, seed=5, step=3, view=1, batch=NUM, image_size=image_size).boxes


@pytest.mark.parametrize("image_size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["strong", "weak", "dino-local"])
def test_crops_touch_each_border_as_often_as_uniform_positions_do(name: str, image_size: tuple[int, int]) -> None:
    boxes = boxes_of(POLICIES[name], image_size)
    for axis, size in enumerate(image_size):
        start, side = boxes[:, axis], boxes[:, 2 + axis]
        assert (start >= 0).all() and (start + side <= size).all()
        free = side < size  # other crops touch both borders
        probability = 1 / (size - side[free] + 1)
        expected, deviation = probability.sum(), np.sqrt((probability * (1 - probability)).sum())
        assert expected > 10 * SIGMAS
        for touches in (start == 0, start + side == size):
            assert abs(touches[free].sum() - expected) < SIGMAS * deviation


@pytest.mark.parametrize("image_size", SIZES, ids=str)
def test_positions_of_crops_of_one_size_are_uniform_and_independent(image_size: tuple[int, int]) -> None:
    boxes = boxes_of(Policy(crop=(0.25, 0.25), ratio=(1.0, 1.0)), image_size)
    side = round((image_size[0] * image_size[1] / 4) ** 0.5)
    assert (boxes[:, 2:] == side).all()
    for axis, size in enumerate(image_size):
        num = size - side + 1
        counts = np.bincount(boxes[:, axis], minlength=num)
        assert len(counts) == num
        statistic = ((counts - NUM / num) ** 2 / (NUM / num)).sum()
        assert abs(statistic - (num - 1)) < SIGMAS * np.sqrt(2 * (num - 1))  # chi-squared of num - 1 degrees
    assert abs(np.corrcoef(boxes[:, 0], boxes[:, 1])[0, 1]) < SIGMAS / np.sqrt(NUM)


@pytest.mark.parametrize("image_size", [(8, 8), (32, 32), (224, 224), (375, 500)], ids=str)
@pytest.mark.parametrize("name", ["strong", "dino-local"])
def test_boxes_have_the_distribution_of_torchvisions(name: str, image_size: tuple[int, int]) -> None:
    """Area, aspect ratio and position, by Kolmogorov-Smirnov tests; shares of crops at each border."""
    policy, (height, width) = POLICIES[name], image_size
    ours = boxes_of(policy, image_size)[:NUM_COMPARED]
    assert policy.crop is not None
    torch.manual_seed(0)
    image, scale, ratio = torch.empty(3, height, width), list(policy.crop), list(policy.ratio)
    theirs = np.array([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(NUM_COMPARED)])
    for value in ("area", "ratio", "top", "left", "bottom", "right"):
        first, second = (_values(boxes, image_size)[value] for boxes in (ours, theirs))
        assert np.array(ks_2samp(first, second))[1] > 1e-4, value
        if value not in ("area", "ratio"):
            deviation = np.sqrt((first == 0).mean() * (1 - (first == 0).mean()) * 2 / NUM_COMPARED)
            assert abs((first == 0).mean() - (second == 0).mean()) < SIGMAS * deviation, value


def _values(boxes: np.ndarray, image_size: tuple[int, int]) -> dict[str, np.ndarray]:
    top, left, height, width = boxes.T
    ends = {"bottom": image_size[0] - top - height, "right": image_size[1] - left - width}
    return {"area": height * width, "ratio": width / height, "top": top, "left": left, **ends}
