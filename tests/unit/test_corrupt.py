"""Corruptions depend only on pixels and seed, have the published strength, and equal independent formulas."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from corecli.base.errors import UsageError
from corecli.base.rng import numpy_generator
from corecli.views import corruptions
from corecli.views.corrupt import CORRUPTIONS, SEVERITIES, corrupt
from corecli.views.corruptions import TABLE

RANDOM = {"gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog"}
RANDOM |= {"elastic_transform"}
# The published constants of these are no ladder of mean distances: affine and local warps trade places, two
# severities of CIFAR-C's motion blur are the same blur, and frost takes light from the image while it adds its own.
UNEVEN = {"elastic_transform", "glass_blur", "motion_blur", "frost"}


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """Real images, 96 x 128: uint8 [8, 3, 96, 128]."""
    datasets = pytest.importorskip("sklearn.datasets")
    crops = []
    for photograph in datasets.load_sample_images().images:
        whole = np.asarray(Image.fromarray(photograph).resize((256, 192), Image.Resampling.BICUBIC))
        crops += [whole[y : y + 96, x : x + 128] for y in (0, 96) for x in (0, 128)]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def small(photographs: Tensor) -> Tensor:
    """Real images of 32 px: uint8 [16, 3, 32, 32]."""
    halves = photographs[:, :, :64:2, ::2]
    return torch.cat(halves.split(32, dim=3))


def test_the_names_known_without_torch_are_complete() -> None:
    assert tuple(TABLE) == CORRUPTIONS
    assert len(CORRUPTIONS) == 15
    assert all(len(c.large) == len(c.small) == len(SEVERITIES) for c in TABLE.values())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupted_image_depends_only_on_its_seed_and_pixels(photographs: Tensor, name: str) -> None:
    images, seeds = photographs[:4], [5, 6, 7, 8]
    whole = corrupt(images, name, 3, seeds=seeds)
    assert (whole.dtype, whole.shape) == (torch.uint8, images.shape)
    assert not torch.equal(whole, images)
    for rows in ([2], [3, 0], [1, 3, 2]):
        assert torch.equal(corrupt(images[rows], name, 3, seeds=[seeds[row] for row in rows]), whole[rows])
    other = corrupt(images, name, 3, seeds=[9, 10, 11, 12])
    assert torch.equal(other, whole) == (name not in RANDOM)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("side", [1, 8])
def test_corruptions_work_on_tiny_images(name: str, side: int) -> None:
    images = torch.arange(2 * 3 * side * (side + 1)).mul(37).remainder(256).byte().view(2, 3, side, side + 1)
    for severity in SEVERITIES:
        found = corrupt(images, name, severity, seeds=[0, 1])
        assert (found.dtype, found.shape) == (images.dtype, images.shape)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", ["photographs", "small"])
def test_a_higher_severity_is_farther_from_the_original(request: pytest.FixtureRequest, name: str, size: str) -> None:
    images: Tensor = request.getfixturevalue(size)
    distances = [
        float((corrupt(images, name, severity, seeds=list(range(len(images)))).float() - images.float()).abs().mean())
        for severity in SEVERITIES
    ]
    if name not in UNEVEN:
        assert np.all(np.diff(distances) > 0), distances
    elif name != "elastic_transform":
        assert distances[4] > 1.1 * distances[0], distances
    assert min(distances) > 0.5


def test_invalid_arguments_are_usage_errors(small: Tensor) -> None:
    with pytest.raises(UsageError, match=r"unknown corruption 'frosst' \(did you mean 'frost'\?\)"):
        corrupt(small, "frosst", 1, seeds=[0] * len(small))
    for severity in (0, 6):
        with pytest.raises(UsageError, match=f"severity {severity} of fog is not one of 1 to 5"):
            corrupt(small, "fog", severity, seeds=[0] * len(small))


def test_noise_is_as_strong_as_published() -> None:
    gray = torch.full((1, 3, 256, 256), 128, dtype=torch.uint8)
    gaussian, shot = (corrupt(gray, f"{kind}_noise", 1, seeds=[0]).double() / 255 for kind in ("gaussian", "shot"))
    assert float(gaussian.std()) == pytest.approx(0.08, rel=0.01)
    assert float(shot.std()) == pytest.approx((128 / 255 / 60) ** 0.5, rel=0.01)
    impulse = corrupt(gray, "impulse_noise", 5, seeds=[0])
    assert float((impulse == 0).double().mean()) == pytest.approx(0.27 / 2, rel=0.02)
    assert float((impulse == 255).double().mean()) == pytest.approx(0.27 / 2, rel=0.02)


def test_brightness_adds_to_the_value_of_hsv(small: Tensor) -> None:
    found = corrupt(small[:1], "brightness", 5, seeds=[0])
    for row, column in ((0, 0), (7, 9), (15, 3)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(small[0, :, row, column].double() / 255).tolist())
        expected = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.3)))
        assert np.abs(found[0, :, row, column].numpy() - expected).max() <= 0.51
    black = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert (corrupt(black, "brightness", 5, seeds=[0]) == 76).all()


def test_contrast_shrinks_toward_the_mean_of_a_channel(small: Tensor) -> None:
    x = small[:2].double().numpy()
    mean = x.mean((2, 3), keepdims=True)
    found = corrupt(small[:2], "contrast", 4, seeds=[0, 0]).numpy()
    assert np.abs(found - (mean + 0.3 * (x - mean))).max() <= 0.51


def test_defocus_is_a_correlation_with_a_soft_disk(photographs: Tensor) -> None:
    y, x = np.mgrid[-8:9, -8:9]
    disk = ((x**2 + y**2) <= 36).astype(float)
    soft = np.exp(-np.array([1.0, 0, 1]) / (2 * 0.5**2))
    disk = ndimage.convolve(disk / disk.sum(), np.outer(soft, soft) / soft.sum() ** 2, mode="mirror")
    expected = [ndimage.correlate(c, disk, mode="mirror") for c in photographs[0].double().numpy()]
    found = corrupt(photographs[:1], "defocus_blur", 3, seeds=[0])[0].numpy()
    assert np.abs(found - np.stack(expected)).max() <= 0.51


def test_glass_only_moves_pixels_where_it_does_not_blur(small: Tensor) -> None:
    found = corrupt(small[:1], "glass_blur", 1, seeds=[3])  # sigma 0.05
    assert not torch.equal(found, small[:1])
    before, after = (sorted(map(tuple, image[0].flatten(1).T.tolist())) for image in (small, found))
    assert before == after


def test_motion_blur_is_half_a_gaussian_along_a_line() -> None:
    x = torch.from_numpy(np.random.default_rng(0).random((1, 30, 40), dtype=np.float32))
    degrees, radius, sigma = -30.0, 6, 2.5
    weights = [np.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * radius + 1)]
    expected = np.zeros((30, 40))
    for i, weight in enumerate(weights):
        down, right = (int(np.ceil(i * f(np.radians(degrees)) - 0.5)) for f in (np.sin, np.cos))
        for row in range(30):
            for column in range(40):
                source = x[0, min(max(row + down, 0), 29), min(max(column + right, 0), 39)]
                expected[row, column] += weight / sum(weights) * float(source)
    assert np.abs(corruptions._trail(x, radius, sigma, degrees=degrees)[0].numpy() - expected).max() < 1e-5


def test_zoom_blur_is_a_mean_of_magnifications() -> None:
    """A linear ramp through the center, magnified by f, is the ramp of slope 1 / f."""
    ramp = (torch.arange(33) - 16.0).expand(3, 33, 33) / 64 + 0.5
    factors = np.arange(1, 1.31, 0.03)
    slope = (1 + (1 / factors).sum()) / (len(factors) + 1)
    found = corruptions.zoom_blur(ramp, (1.31, 0.03), np.random.default_rng(0))
    assert torch.allclose(found, slope * (ramp - 0.5) + 0.5, atol=1e-5)


def test_the_warp_of_elastic_is_that_of_scipy(small: Tensor) -> None:
    x = small[0].float() / 255
    height, width = x.shape[1:]
    g = numpy_generator(4, "corrupt", "elastic_transform")
    middle = np.array([height // 2, width // 2])
    points = middle + height // 3 * np.array([[1, 1], [-1, 1], [-1, -1]])
    moved = points + g.uniform(-0.05 * height, 0.05 * height, (3, 2))
    fields = [g.uniform(-1, 1, (height, width)) for _ in range(2)]
    dy, dx = (ndimage.gaussian_filter(f, 0.04 * height, mode="reflect", truncate=8) * 0.1 * height for f in fields)
    back = np.linalg.solve(np.c_[moved, np.ones(3)], points.astype(float))
    y, x_ = np.mgrid[:height, :width]
    source = np.stack([y + dy, x_ + dx, np.ones((height, width))], -1) @ back
    at = [source[..., 0], source[..., 1]]
    expected = np.stack([ndimage.map_coordinates(c, at, order=1, mode="reflect") for c in x.double().numpy()])
    found = corrupt(small[:1], "elastic_transform", 4, seeds=[4])[0].numpy() / 255
    assert np.abs(found - expected).max() < 0.5 / 255 + 1e-3


def test_pixelate_and_jpeg_are_those_of_pillow(photographs: Tensor) -> None:
    image = Image.fromarray(photographs[0].permute(1, 2, 0).numpy())
    box = image.resize((int(128 * 0.4), int(96 * 0.4)), Image.Resampling.BOX).resize((128, 96), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=15)
    for name, expected in (("pixelate", box), ("jpeg_compression", Image.open(buffer))):
        found = corrupt(photographs[:1], name, 3, seeds=[0])[0].permute(1, 2, 0).numpy()
        assert np.array_equal(found, np.asarray(expected)), name


def test_snow_whitens_and_fog_hides() -> None:
    gray = torch.full((1, 3, 64, 64), 60, dtype=torch.uint8)
    assert (corrupt(gray, "snow", 5, seeds=[0]) >= 60).all()
    fog = corrupt(gray, "fog", 5, seeds=[0]).double()
    assert float(fog.max()) == pytest.approx(
        60 * (60 / 255 + 1.5) / (60 / 255 + 1.5), abs=0.51
    )  # where clouds are full
    assert float(fog.min()) == pytest.approx(60 * (60 / 255) / (60 / 255 + 1.5), abs=0.51)  # where there are none


def test_frost_is_bluish_white() -> None:
    black = torch.zeros(8, 3, 224, 224, dtype=torch.uint8)
    ice = corrupt(black, "frost", 5, seeds=list(range(8))).double().mean((0, 2, 3)) / 255
    assert 0.15 < float(ice[0]) < float(ice[1]) < float(ice[2]) < 0.6
