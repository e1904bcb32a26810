"""The copy check detects copies, and none among new images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from corecli.base.errors import DataError
from corecli.metrics.copies import CopyCheck, copy_check
from corecli.metrics.parts.survey import survey


def draw(num: int, seed: int) -> Tensor:
    return torch.randn(num, 10, generator=torch.Generator().manual_seed(seed))


def checked(samples: Tensor, real: Tensor) -> CopyCheck:
    nearest = survey(samples, real, ("nearest",)).nearest
    assert nearest is not None
    return copy_check(nearest)


def test_new_samples_are_as_far_as_real_images_are():
    found = checked(draw(1500, 0), draw(1500, 1))
    assert found.ratio == pytest.approx(1, abs=0.03)
    assert found.fraction == pytest.approx(0.01, abs=0.01)
    assert found.authenticity == pytest.approx(0.66, abs=0.05)
    assert found.memorised < 0.005


def test_near_copies_are_detected():
    real = draw(500, 2)
    samples = torch.cat([real[:50] + 0.01 * draw(50, 3), draw(150, 4)])
    found = checked(samples, real)
    assert found.fraction >= 0.25
    assert found.ratio < 0.8
    assert found.indices[:50].tolist() == list(range(50))
    assert found.memorised == 0.25
    assert found.authenticity < 0.5
    assert found.ratio == pytest.approx(found.mean_to_real / found.mean_among_real)


def test_by_hand():
    found = checked(torch.tensor([[0.0], [5.0]]), torch.tensor([[0.0], [2.0], [6.0]]))
    assert found.distances.tolist() == [0, 1]
    assert found.mean_to_real == 0.5
    assert found.mean_among_real == pytest.approx((2 + 2 + 4) / 3)
    assert found.threshold == pytest.approx(2)
    assert found.fraction == 1
    assert found.memorised == 0.5  # the copy; 5 is 1 from 6 and 3 from 2, which is not more than three times as far
    assert found.authenticity == 0


def test_uint8_images():
    real = torch.randint(0, 256, (30, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    found = checked(real[:3], real)
    assert (found.ratio, found.fraction) == (0, 1)


@pytest.mark.parametrize(
    ("samples", "real", "words"),
    [
        (draw(0, 0), draw(5, 0), "0 samples and 5 reference images are too few"),
        (draw(5, 0), draw(1, 0), "at least two real images"),
        (draw(5, 0), draw(5, 0)[:, :4], "differ in shape"),
        (draw(5, 0), torch.ones(5, 10), "duplicate"),
        (torch.full((2, 10), torch.nan), draw(5, 0), "NaN"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(samples, real, words):
    with pytest.raises(DataError, match=words):
        checked(samples, real)
