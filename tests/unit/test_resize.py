"""The resize protocols against the tools they are named after, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from corecli.base.errors import DataError, UsageError
from corecli.nets.resize import RESIZES, to_inception_input


def image(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=generator)


def test_tf1_by_hand():
    """Source position j * W / 299, neighbors clamped at the edge, (x - 128) / 128."""
    x = image(5, 3)
    found = to_inception_input(x, "tf1").double()
    rows, columns = (np.arange(299) * n / 299 for n in (5, 3))
    expected = np.empty((299, 299))
    values = x[1, 2].double().numpy()
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            top, left = int(r), int(c)
            below, right, dr, dc = min(top + 1, 4), min(left + 1, 2), r - int(r), c - int(c)
            upper = values[top, left] * (1 - dc) + values[top, right] * dc
            lower = values[below, left] * (1 - dc) + values[below, right] * dc
            expected[i, j] = (upper * (1 - dr) + lower * dr - 128) / 128
    np.testing.assert_allclose(found[1, 2], expected, atol=2e-5)


@pytest.mark.parametrize("size", [(32, 32), (40, 61), (400, 320), (299, 299)])
def test_tf1_equals_torch_fidelity(size):
    peer = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    expected = peer.interpolate_bilinear_2d_like_tensorflow1x(image(*size).float(), (299, 299), align_corners=False)
    assert torch.equal(to_inception_input(image(*size), "tf1"), (expected - 128) / 128)


@pytest.mark.parametrize("size", [(32, 32), (40, 61), (400, 320)])
def test_clean_equals_pil_on_floats(size):
    x = image(*size)
    planes = [Image.fromarray(plane.numpy().astype(np.float32)) for plane in x[0]]
    resized = [np.asarray(plane.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255) for plane in planes]
    np.testing.assert_allclose(to_inception_input(x, "clean")[0] * 128 + 128, np.stack(resized), atol=0.01)


def test_every_protocol_gives_the_networks_range_and_shape():
    x = torch.tensor([0, 255], dtype=torch.uint8).repeat_interleave(3 * 80 * 90).view(2, 3, 80, 90)
    for name in RESIZES:
        found = to_inception_input(x, name)
        assert found.shape == ((2, 3, 80, 90) if name == "none" else (2, 3, 299, 299))
        assert found.dtype == torch.float32
        white = 1.0 if name == "torch" else 127 / 128
        torch.testing.assert_close(found[:, 0, 40, 40], torch.tensor([-1.0, white]))


def test_none_keeps_the_pixels():
    assert torch.equal(to_inception_input(image(80, 75), "none"), (image(80, 75).float() - 128) / 128)


def test_unknown_protocols_and_wrong_images_are_refused():
    with pytest.raises(UsageError, match="32x80 px are too small"):
        to_inception_input(image(80, 32), "none")
    with pytest.raises(UsageError, match="did you mean 'clean'"):
        to_inception_input(image(8, 8), "cleen")
    for wrong in (image(8, 8).float(), image(8, 8)[:, :1], image(8, 8)[0]):
        with pytest.raises(DataError, match="expected uint8 images"):
            to_inception_input(wrong)
