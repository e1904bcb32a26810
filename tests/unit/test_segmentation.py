"""Masks: their scores against loops over pixels, reading and cutting them, maps of patches, and sliding windows."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from corecli.base.errors import DataError, UsageError
from corecli.data.decode import decode_mask
from corecli.data.masks import NOT_COUNTED, open_masked, random_window
from corecli.metrics.parts.segmentation import count_pixels, overlap
from corecli.nets.encoder import Encoder, build_encoder
from corecli.nets.patches import Segmenter, patch_features, slide


def png(values: np.ndarray, mode: str | None = None) -> bytes:
    stream, image = io.BytesIO(), Image.fromarray(values)
    if mode == "P":
        image = Image.fromarray(values, mode="L").convert("P")
        image.putdata(values.ravel().tolist())
    image.save(stream, "PNG")
    return stream.getvalue()


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(values))


# Scores


def brute_force(masks: np.ndarray, predicted: np.ndarray, num_classes: int) -> tuple[list[float], float, float]:
    iou, accuracy = [], []
    for c in range(num_classes):
        pairs = [(t == c, p == c) for t, p in zip(masks.flat, predicted.flat, strict=True) if t >= 0]
        union = sum(t or p for t, p in pairs)
        there = sum(t for t, _ in pairs)
        both = sum(t and p for t, p in pairs)
        iou.append(both / union if union else math.nan)
        accuracy.append(both / there if there else math.nan)
    right = [t == p for t, p in zip(masks.flat, predicted.flat, strict=True) if t >= 0]
    return iou, float(np.nanmean(accuracy)), sum(right) / len(right)


def test_scores_are_those_of_a_loop_over_pixels() -> None:
    """Class 4 is predicted but not there, class 5 neither; some pixels do not count. Counts of parts add up."""
    rng = np.random.default_rng(0)
    masks = rng.integers(-1, 4, (5, 7, 9))
    predicted = np.where(rng.random(masks.shape) < 0.6, masks.clip(0), rng.integers(0, 5, masks.shape))
    truth, guess = torch.from_numpy(masks), torch.from_numpy(predicted)
    counts = count_pixels(truth[:2], guess[:2], 6) + count_pixels(truth[2:], guess[2:], 6)
    assert counts.dtype == torch.int64
    assert int(counts.sum()) == (masks >= 0).sum()
    found, (iou, accuracy, right) = overlap(counts), brute_force(masks, predicted, 6)
    np.testing.assert_allclose(found.iou, iou, rtol=1e-12)
    assert math.isnan(iou[5])
    assert iou[4] == 0
    expected = (np.nanmean(iou), accuracy, right)
    assert (found.miou, found.mean_accuracy, found.pixel_accuracy) == pytest.approx(expected, rel=1e-12)


# Files


def test_masks_of_all_kinds_are_numbers(tmp_path: Path) -> None:
    values = np.array([[0, 1, 255], [7, 2, 3]], dtype=np.uint8)
    for data in (png(values), png(values, "P"), png(values.astype(np.uint16))):
        assert decode_mask(data, name="m").tolist() == values.tolist()
    with pytest.raises(DataError, match="this is a PNG file of mode RGB"):
        decode_mask(png(np.zeros((2, 2, 3), np.uint8)), name="m")
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "JPEG")
    with pytest.raises(DataError, match="this is a JPEG file of mode L"):
        decode_mask(stream.getvalue(), name="m")


def test_images_of_any_sizes_meet_their_masks_by_key(tmp_path: Path) -> None:
    for number, size in enumerate(((4, 6), (5, 3))):
        save(tmp_path / f"images/a/{number}.png", np.full((*size, 3), number, np.uint8))
        save(tmp_path / f"masks/a/{number}.png", np.full(size, number, np.uint8))
    save(tmp_path / "masks/b.png", np.zeros((1, 1), np.uint8))  # of no image
    images, masks = str(tmp_path / "images"), str(tmp_path / "masks")
    data = open_masked(images, masks)
    for number, size in enumerate(((4, 6), (5, 3))):
        image, mask = data.read(number)
        assert image.shape == (3, *size)
        assert (image == number).all()
        assert (mask == number).all()
    shifted = open_masked(images, masks, zero_is_no_class=True)
    assert [shifted.read_mask(row).max() for row in (0, 1)] == [NOT_COUNTED, 0]
    save(tmp_path / "masks/a/1.png", np.zeros((3, 5), np.uint8))
    with pytest.raises(DataError, match=r"the mask is 5 x 3 but its image .* is 3 x 5"):
        data.read(1)
    (tmp_path / "masks/a/1.png").unlink()
    with pytest.raises(DataError, match="1 of 2 images have no mask, such as a/1"):
        open_masked(images, masks)
    with pytest.raises(UsageError, match="has no masks of its own"):
        open_masked(images, None)


def test_voc_has_masks_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder laid out as VOC 2012's archive is."""
    root = tmp_path / "VOCdevkit/VOC2012"
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("x\ny\n")
    for name, value in (("x", 1), ("y", 2)):
        save(root / f"SegmentationClass/{name}.png", np.full((3, 2), value, np.uint8))
        (root / "JPEGImages").mkdir(exist_ok=True)
        Image.new("RGB", (2, 3)).save(root / f"JPEGImages/{name}.jpg")
    monkeypatch.setenv("TORCHVISION_DATA", str(tmp_path))
    data = open_masked("torchvision:VOCSegmentation:val", None)
    assert [data.read(row)[1].max() for row in (0, 1)] == [1, 2]


def test_a_window_is_the_same_place_in_image_and_mask() -> None:
    """Blocks of 8 px whose color is their class."""
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 5, (4, 6)).repeat(8, 0).repeat(8, 1).astype(np.int32)
    image = np.stack([mask * 40] * 3).astype(np.uint8)
    window, labels = random_window(image, mask, scale=1, place=(0.0, 0.999), size=16)
    assert np.array_equal(labels, mask[:16, 32:])
    assert np.array_equal(window, image[:, :16, 32:])
    window, labels = random_window(image, mask, scale=2, place=(0.5, 0.5), size=40)
    assert (np.abs(window[0] / 40 - labels) < 0.1).mean() > 0.7  # but at the borders of blocks
    window, labels = random_window(image, mask, scale=0.5, place=(0.5, 0.5), size=20)
    assert (labels[:16, :20] >= 0).all()
    assert (labels[16:] == NOT_COUNTED).all()
    assert (window[:, 16:] == 0).all()


# Networks


@pytest.mark.parametrize("shape", [(32, 32), (16, 40), (30, 21)])
def test_patches_of_a_transformer_are_its_last_tokens_on_any_grid(shape: tuple[int, int]) -> None:
    encoder = build_encoder("vit-micro/8", image_size=32, projector_dim=None).eval()
    x = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    net: Any = encoder.backbone
    tall, wide = (-(-side // 8) * 8 for side in shape)
    padded = encoder.mean.expand(2, 3, tall, wide).clone()
    padded[..., : shape[0], : shape[1]] = x
    with torch.no_grad():
        maps = patch_features(encoder, x)
        tokens = net.forward_features((padded - encoder.mean) / encoder.std)
    assert maps.shape == (2, 64, tall // 8, wide // 8)
    torch.testing.assert_close(maps[:, :, 1, 2], tokens[:, 1 + wide // 8 + 2])


def test_a_resnet_has_the_map_that_it_averages_and_other_networks_none() -> None:
    encoder = build_encoder("resnet10-tiny", image_size=32, projector_dim=None).eval()
    x = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        maps = patch_features(encoder, x)
        torch.testing.assert_close(maps.mean((2, 3)), encoder(x)[0])
    assert maps.shape[2:] == (4, 6)
    encoder.backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 48, 8))
    with pytest.raises(UsageError, match="no patch features"):
        patch_features(encoder, x)


def segmenter(encoder: Encoder) -> Segmenter:
    net = Segmenter(encoder, 3, seed=1)
    with torch.no_grad():
        net.head[1].weight.mul_(100)  # type: ignore[index,union-attr,operator]
    return net.eval()


def test_logits_are_a_linear_layer_on_patches_and_bilinear_between_them() -> None:
    encoder = build_encoder("vit-micro/8", image_size=32, projector_dim=None)
    net, x = segmenter(encoder), torch.rand(2, 3, 32, 24)
    with torch.no_grad():
        found = net(x)
        maps = patch_features(encoder, x) / math.sqrt(1 + 1e-5)
        weight, bias = net.head[1].weight, net.head[1].bias  # type: ignore[index,union-attr]
        logits = torch.einsum("bdhw,cd->bchw", maps, weight[:, :, 0, 0]) + bias[:, None, None]
    torch.testing.assert_close(found, F.interpolate(logits, (32, 24), mode="bilinear"), rtol=1e-4, atol=1e-4)
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not net.train().encoder.training


@pytest.mark.parametrize("shape", [(32, 32), (20, 30)])
def test_one_window_that_covers_the_image_is_the_image(shape: tuple[int, int]) -> None:
    net = segmenter(build_encoder("vit-micro/8", image_size=32, projector_dim=None))
    image = torch.rand(3, *shape)
    with torch.no_grad():
        torch.testing.assert_close(slide(net, image, crop=32, stride=20), net(image[None])[0])


def test_windows_cover_everything_and_their_logits_are_averaged() -> None:
    """A network whose logit is the pixel itself, and the number of the window in a second one."""
    seen: list[torch.Tensor] = []

    class Echo(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.extend(x)
            return torch.stack((x[:, 0], torch.full_like(x[:, 0], float(len(x)))), 1)

    image = torch.rand(3, 23, 17)
    found = slide(Echo(), image, crop=10, stride=7, batch_size=4)
    torch.testing.assert_close(found[0], image[0])
    corners = [(y, x) for y in (0, 7, 13) for x in (0, 7)]
    assert all(torch.equal(w, image[:, y : y + 10, x : x + 10]) for w, (y, x) in zip(seen, corners, strict=True))
