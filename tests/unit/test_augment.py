from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import replace

import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from corecli.base.errors import UsageError
from corecli.views import augment as augment_module
from corecli.views import color as color
from corecli.views import resample
from corecli.views.augment import Parameters, augment, draw, to_float
from corecli.views.policies import POLICIES, Policy, get_policy, local_policy, parse_changes, view_policies

EVERYTHING = replace(POLICIES["strong"], solarize=0.3)


def images_of(batch: int, height: int, width: int | None = None, *, seed: int = 0) -> torch.Tensor:
    """Return images of noise and a gradient, with flat, gray and saturated patches, the hard cases of color spaces."""
    width = width or height
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (batch, 3, height, width), generator=g, dtype=torch.uint8)
    x[:, :, : height // 4] = torch.linspace(0, 255, width).to(torch.uint8)
    x[:, 0, height // 2 :, : width // 4] = 255
    x[:, :, height // 2 :, width // 2 :] = x[:, :, height // 2 :, width // 2 :] // 128 * 255
    return x


def drawn(policy: Policy, batch: int, size: int, **overrides) -> Parameters:
    p = draw(policy, seed=3, step=7, view=0, batch=batch, image_size=(size, size))
    return replace(p, **overrides)


def torchvision_view(image: torch.Tensor, p: Parameters, i: int) -> torch.Tensor:
    """Return one image after torchvision's functions in float64 with the same parameters."""
    top, left, height, width = p.boxes[i].tolist()
    x = image.double() / 255
    x = tv.resized_crop(x, top, left, height, width, list(p.size), InterpolationMode.BICUBIC, antialias=True).clamp(
        0, 1
    )
    x = tv.horizontal_flip(x) if p.flip[i] else x
    changes = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for operation in p.order[i].tolist():
        x = changes[operation](x, float(p.factors[i, operation])) if operation >= 0 else x
    x = tv.rgb_to_grayscale(x, 3) if p.grey[i] else x
    kernel = 2 * max(1, min(p.size) // 10 // 2) + 1
    x = tv.gaussian_blur(x, [kernel] * 2, [float(p.sigma[i])] * 2) if p.sigma[i] > 0 else x
    return tv.solarize(x, p.policy.threshold) if p.solarize[i] else x


@pytest.mark.parametrize(("source", "size"), [(32, 32), (64, 64), (224, 224), (96, 32), (64, 224), (33, 20)])
def test_views_equal_torchvisions_float_functions(source, size):
    batch = 24 if max(source, size) <= 96 else 5
    images = images_of(batch, source)
    p = drawn(replace(EVERYTHING, size=size), batch, source)
    expected = torch.stack([torchvision_view(image, p, i) for i, image in enumerate(images)])
    views = augment(images, p)
    near = (views - expected).abs() < 1e-5
    # solarize is a step: within rounding of its threshold a pixel may fall on either side
    assert near.float().mean() > 1 - 1e-5
    assert near[torch.from_numpy(~p.solarize)].all()
    assert views.dtype == torch.float32 and views.min() > -1e-6 and views.max() < 1 + 1e-6


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(("source", "size"), [((32, 32), 32), ((64, 64), 64), ((224, 224), 224), ((90, 150), 40)])
def test_a_crop_equals_torchvisions_when_enlarged_and_when_reduced(source, size, dense, monkeypatch):
    monkeypatch.setattr(resample, "_LARGEST_DENSE_PX", 1000 if dense else 0)
    height, width = source
    boxes = np.array([[0, 0, *source], [3, 5, 7, 6], [1, 0, height - 1, width], [height - 9, width - 25, 9, 25]])
    flip = np.array([False, True, True, False])
    images = images_of(4, *source)
    views = resample.resized_crop(images, boxes, flip, (size, size))
    for image, box, mirrored, view in zip(images, boxes.tolist(), flip, views, strict=True):
        expected = tv.resized_crop(image.double() / 255, *box, [size, size], InterpolationMode.BICUBIC, antialias=True)
        expected = tv.horizontal_flip(expected) if mirrored else expected
        assert (view - expected.clamp(0, 1)).abs().max() < 2e-6


@pytest.mark.parametrize("size", [32, 64, 224])
def test_jitter_equals_torchvision_in_every_order(size):
    orders = np.array([*itertools.permutations(range(4)), (-1, -1, -1, -1)])
    orders = orders if size < 224 else orders[::4]
    orders = orders[np.argsort(color.hue_position(orders), kind="stable")]
    factors = np.random.default_rng(0).uniform([0.2, 0.2, 0.2, -0.5], [1.8, 1.8, 1.8, 0.5], (len(orders), 4))
    x = to_float(images_of(len(orders), size))
    views, one_by_one = x.clone(), x.clone()
    color.jitter(views.flatten(2), orders, factors)
    for view, order, factor in zip(one_by_one, orders, factors, strict=True):
        color.jitter_one(view.flatten(1), order, factor)
    changes = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for i, order in enumerate(orders.tolist()):
        expected = x[i].double()
        for operation in order:
            expected = changes[operation](expected, factors[i, operation]) if operation >= 0 else expected
        assert (views[i] - expected).abs().max() < 1e-5
        assert (one_by_one[i] - expected).abs().max() < 1e-5


def test_hue_agrees_with_hsv_on_ties_greys_and_a_full_turn():
    levels = torch.tensor([0.0, 0.25, 0.5, 1.0])
    pixels = torch.cartesian_prod(levels, levels, levels).T.expand(5, 3, -1).contiguous()
    turns = torch.tensor([-0.5, -1 / 3, 0.0, 0.1, 0.5])
    expected = torch.stack([tv.adjust_hue(x[:, None], float(t))[:, 0] for x, t in zip(pixels, turns, strict=True)])
    turned = torch.stack(tuple(color.rotate_hue(pixels, turns)), 1)
    assert torch.allclose(turned, expected, atol=1e-6)
    color.rotate_hue(pixels, turns, out=pixels.unbind(1))
    assert torch.equal(pixels, turned)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(("size", "radius"), [(32, 1), (64, 3), (100, 11), (32, 10), (7, 3)])
def test_blur_equals_torchvision(size, radius, dense, monkeypatch):
    monkeypatch.setattr(resample, "_LARGEST_DENSE_PX", 1000 if dense else 0)
    x = to_float(images_of(6, size))
    sigma = np.array([0.1, 0.3, 0.7, 1.0, 1.5, 2.0])
    views = resample.gaussian_blur(x, sigma, radius=radius)
    for image, view, s in zip(x.double(), views, sigma.tolist(), strict=True):
        assert (view - tv.gaussian_blur(image, [2 * radius + 1] * 2, [s, s])).abs().max() < 1e-6


@pytest.mark.parametrize("edge", ["reflect", "replicate"])
@pytest.mark.parametrize("size", [(20, 31), (90, 64)])
def test_blurs_by_matrices_and_by_taps_are_equal(size, edge, monkeypatch):
    x = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))
    views = []
    for largest in (1000, 0):
        monkeypatch.setattr(resample, "_LARGEST_DENSE_PX", largest)
        views.append(resample.gaussian_blur(x, np.array([0.4, 1.0, 2.0]), radius=10, edge=edge))
    assert (views[0] - views[1]).abs().max() < 1e-6


def test_the_full_blur_kernel_is_pillows_gaussian_and_a_tenth_is_not():
    g = np.random.default_rng(0)
    small = PIL.Image.fromarray(g.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    picture = small.resize((32, 32), PIL.Image.Resampling.BICUBIC)
    images = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    blurred = np.array(picture.filter(PIL.ImageFilter.GaussianBlur(2.0)), dtype=np.float32)
    error = {}
    for kernel in ("tenth", "full"):
        p = draw(
            Policy(blur=1.0, sigma=(2.0, 2.0), blur_kernel=kernel), seed=0, step=0, view=0, batch=1, image_size=(32, 32)
        )
        error[kernel] = np.abs(augment(images, p)[0].permute(1, 2, 0).numpy() * 255 - blurred).mean()
    assert error["full"] < 1.5 < 5.0 < error["tenth"]


@pytest.mark.parametrize("size", [32, 96, 224])
def test_a_slice_of_the_parameters_gives_bit_identical_views(size):
    images = images_of(16, size)
    p = draw(EVERYTHING, seed=0, step=5, view=1, batch=16, image_size=(size, size))
    whole = augment(images, p)
    for start in range(0, 16, 4):
        rows = slice(start, start + 4)
        assert torch.equal(augment(images[rows], p[rows]), whole[rows])


def test_parameters_are_a_function_of_seed_step_and_view():
    def boxes(seed, step, view):
        return draw(EVERYTHING, seed=seed, step=step, view=view, batch=8, image_size=(32, 32)).boxes

    assert np.array_equal(boxes(1, 2, 0), boxes(1, 2, 0))
    others = [boxes(2, 2, 0), boxes(1, 3, 0), boxes(1, 2, 1)]
    assert not any(np.array_equal(boxes(1, 2, 0), other) for other in others)


@pytest.mark.parametrize("name", ["strong", "weak"])
def test_parameters_have_the_frequencies_and_ranges_of_the_policy(name):
    policy, n = POLICIES[name], 20_000
    p = draw(policy, seed=0, step=0, view=0, batch=n, image_size=(200, 200))
    table = {"strong": (0.08, 0.8, 0.8, 0.2), "weak": (0.2, 0.4, 0.4, 0.1)}  # CORE Tables 9 and 12
    least_area, chance, strength, hue = table[name]
    frequencies = [(p.flip, 0.5), (p.order[:, 0] >= 0, chance), (p.grey, 0.2), (p.sigma > 0, 0.5), (p.solarize, 0.0)]
    for happened, expected in frequencies:
        assert abs(happened.mean() - expected) < 4 * math.sqrt(0.25 / n)
    low = np.array([1 - strength] * 3 + [-hue])
    high = np.array([1 + strength] * 3 + [hue])
    assert (p.factors >= low).all() and (p.factors <= high).all()
    assert np.abs(p.factors.mean(0) - (low + high) / 2).max() < 0.02
    sigma = p.sigma[p.sigma > 0]
    assert sigma.min() >= 0.1 and sigma.max() <= 2.0 and abs(sigma.mean() - 1.05) < 0.03
    area = p.boxes[:, 2] * p.boxes[:, 3] / 200**2
    assert area.min() > least_area * 0.97 and area.max() <= 1.0
    orders = np.unique(p.order[p.order[:, 0] >= 0], axis=0, return_counts=True)[1]
    assert len(orders) == 24 and orders.min() > 0.8 * chance * n / 24


def test_crops_are_distributed_as_torchvisions():
    n, image = 4000, torch.empty(3, 60, 90)
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)])
    ours = draw(POLICIES["crop"], seed=0, step=0, view=0, batch=n, image_size=(60, 90)).boxes
    for a, b in zip(theirs.T, ours.T, strict=True):
        grid = np.arange(91)
        distance = np.abs((a[:, None] <= grid).mean(0) - (b[:, None] <= grid).mean(0)).max()  # Kolmogorov-Smirnov
        assert distance < 1.95 * math.sqrt(2 / n)  # p = 0.001


@pytest.mark.parametrize("image_size", [(20, 200), (200, 20), (60, 60), (50, 70)])
def test_crop_tries_and_fallback_are_torchvisions(image_size):
    shapes, places = np.random.default_rng(0).random((200, 10, 2)), np.full((200, 2), 0.5)
    policy = Policy(crop=(0.6, 1.0))
    boxes = augment_module._crop_boxes(policy, np.tile(image_size, (200, 1)), shapes, places)
    for tries, box in zip(shapes, boxes.tolist(), strict=True):
        assert tuple(box[2:]) == first_fitting_sides(tries, *image_size)
        assert 0 <= box[0] <= image_size[0] - box[2] and 0 <= box[1] <= image_size[1] - box[3]
    if max(image_size) == 200:
        never = torch.empty(3, *image_size)  # too long for the ratios: torchvision falls back to its center
        assert tuple(boxes[0]) == RandomResizedCrop.get_params(never, [0.99, 1.0], [3 / 4, 4 / 3])


def first_fitting_sides(tries: np.ndarray, height: int, width: int) -> tuple[int, int]:
    for u_area, u_ratio in tries.tolist():
        area = height * width * (0.6 + 0.4 * u_area)
        ratio = math.exp(math.log(3 / 4) + u_ratio * (math.log(4 / 3) - math.log(3 / 4)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return h, w
    if width / height < 3 / 4:
        return round(width / (3 / 4)), width
    return (height, round(height * 4 / 3)) if width / height > 4 / 3 else (height, width)


def test_policy_flip_only_mirrors_and_policy_none_only_scales():
    images = images_of(12, 16)
    assert torch.equal(augment(images, drawn(POLICIES["none"], 12, 16)), to_float(images))
    p = drawn(POLICIES["flip"], 12, 16)
    views, mirrored = augment(images, p), torch.from_numpy(p.flip)
    assert 0 < mirrored.sum() < 12
    assert torch.equal(views[mirrored], to_float(images)[mirrored].flip(-1))
    assert torch.equal(views[~mirrored], to_float(images)[~mirrored])


def test_one_image_in_twenty_is_shrunk_to_a_half_or_a_quarter():
    n = 20_000
    shrink = draw(POLICIES["synclr"], seed=0, step=0, view=0, batch=n, image_size=(8, 8)).shrink
    for part in (0.5, 0.25):
        assert abs((shrink == part).mean() - 0.025) < 4 * math.sqrt(0.025 / n)
    assert set(shrink) == {1.0, 0.5, 0.25}


@pytest.mark.parametrize(("part", "small"), [(0.5, (16, 10)), (0.25, (8, 5))])
def test_shrinking_resizes_down_and_up_as_pillow_does(part, small):
    images = images_of(3, 32, 20) // 2 + 64  # nothing is clipped: Pillow does so between rows and columns, too
    given = images.clone()
    p = draw(POLICIES["none"], seed=3, step=7, view=0, batch=3, image_size=(32, 20))
    views = augment(images, replace(p, shrink=np.array([1.0, part, 1.0])))
    assert torch.equal(images, given)
    assert torch.equal(views[::2], to_float(images)[::2])
    image = PIL.Image.fromarray(images[1].permute(1, 2, 0).numpy())
    for height, width in (small, (32, 20)):
        image = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    assert (views[1] * 255 - expected).abs().max() < 2.5  # rounding, of which Pillow has twice as much


def test_changes_apply_to_all_views_except_the_crop_of_local_views():
    changes = parse_changes({"flip": "0", "crop": "0.5,1", "hue": "0.4"})
    assert changes == {"flip": 0.0, "crop": (0.5, 1.0), "hue": 0.4}
    first, second = view_policies(["dino"], num_views=2, changes=changes)
    assert first == replace(POLICIES["dino-1"], flip=0, crop=(0.5, 1.0), hue=0.4)
    assert second == replace(POLICIES["dino-2"], flip=0, crop=(0.5, 1.0), hue=0.4)
    assert local_policy(["dino"], changes=changes) == replace(POLICIES["dino-local"], flip=0, hue=0.4)
    assert local_policy(["weak"], changes=changes) == replace(POLICIES["weak"], crop=(0.05, 0.4), flip=0, hue=0.4)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("flp", "0", "did you mean 'flip'"),
        ("size", "32", "size"),
        ("flip", "2", "flip must be from 0 to 1, not 2"),
        ("flip", "nan", "flip: nan is not a finite number"),
        ("flip", "often", "often"),
        ("crop", "0.5", "crop must be a range LOW,HIGH"),
        ("crop", "1,0.5", "crop must be a range LOW,HIGH"),
        ("crop", "0,1", "crop must be from 0.0001 to 1"),
        ("hue", "0.6", "hue must be from 0 to 0.5"),
    ],
)
def test_invalid_values_of_a_policy_are_errors(name, text, message):
    with pytest.raises(UsageError) as refused:
        parse_changes({name: text})
    assert message in f"{refused.value} {refused.value.hint}"


def test_size_resizes_without_a_crop():
    images = images_of(2, 48)
    views = augment(images, drawn(get_policy("none", size=24), 2, 48))
    expected = tv.resize(images.float() / 255, [24, 24], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    assert (views - expected).abs().max() < 1e-5


def test_the_error_for_an_unknown_policy_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'strong'"):
        get_policy("strng")


def test_views_ignore_autocast_and_leave_precision_settings_alone():
    images, p = images_of(8, 32), drawn(EVERYTHING, 8, 32)
    expected = augment(images, p)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(augment(images, p), expected)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_without_a_compiler_one_warning_and_the_same_views(monkeypatch):
    def no_compiler(*args, **kwargs):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(color, "_compiled_hue", color.CompiledOrEager(color.rotate_hue))
    images, p = images_of(8, 32), drawn(EVERYTHING, 8, 32)
    with pytest.warns(UserWarning, match="uncompiled: No working C"):
        views = augment(images, p, compile=True)
    assert torch.equal(views, augment(images, p))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        augment(images, p, compile=True)


@pytest.mark.slow
def test_compiled_views_equal_eager_ones():
    images, p = images_of(64, 32), drawn(EVERYTHING, 64, 32)
    assert (augment(images, p, compile=True) - augment(images, p)).abs().max() < 1e-5


@pytest.mark.gpu
def test_a_gpu_gives_the_same_views():
    for size in (32, 224):
        images, p = images_of(16, size), drawn(replace(EVERYTHING, solarize=0.0), 16, size)
        assert (augment(images.cuda(), p).cpu() - augment(images, p)).abs().max() < 1e-4


def test_images_that_do_not_match_the_parameters_raise_value_error():
    with pytest.raises(ValueError, match="do not match"):
        augment(images_of(4, 16), drawn(POLICIES["crop"], 4, 32))
