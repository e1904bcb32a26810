"""Views that are cut out of single images of any size, and the pictures they are cut from."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from photographs import ORIENTATION, make_photographs
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as peer

from corecli.base.errors import DataError
from corecli.data.decode import decode
from corecli.data.imageset import open_set
from corecli.data.pictures import ArrayPicture, open_picture
from corecli.views.augment import Cuts, draw, draw_colors, draw_cuts
from corecli.views.cutting import cut_views
from corecli.views.policies import POLICIES, get_policy

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = make_photographs(tmp_path_factory.mktemp("files"), num=32)
    return [path.read_bytes() for path in sorted(folder.rglob("*.*"))]


def jpeg(image: np.ndarray, **options: object) -> bytes:
    """An image [H, W, 3] as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def smooth(height: int, width: int, cell: int = 16) -> np.ndarray:
    """A colorful image without hard edges, uint8 [H, W, 3]."""
    noise = Image.fromarray(RNG.integers(0, 256, (height // cell, width // cell, 3), dtype=np.uint8))
    return np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))


def cut(data: np.ndarray | bytes, cuts: Cuts, px: int) -> torch.Tensor:
    """The view of the first image of `cuts`, uint8 [3, px, px]."""
    picture = open_picture(data, name="x") if isinstance(data, bytes) else ArrayPicture(array=data.transpose(2, 0, 1))
    out = torch.empty(3, px, px, dtype=torch.uint8)
    cut_views(picture, [(cuts, 0)], [cuts.boxes(np.array([picture.size]))[0]], [out])
    return out


def test_pictures_are_what_decode_gives(files: list[bytes]) -> None:
    for data in files:
        picture, whole = open_picture(data, name="x"), decode(data, name="x")
        assert picture.size == whole.shape[1:]
        assert np.array_equal(picture.pixels().transpose(2, 0, 1), whole)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}], ids=str)
def test_a_jpeg_file_is_upright_at_every_scale(orientation: int, options: dict[str, object]) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = jpeg(smooth(96, 64), exif=exif, **options)
    picture, whole = open_picture(data, name="x"), decode(data, name="x").transpose(1, 2, 0)
    assert picture.size == whole.shape[:2]
    assert np.array_equal(picture.pixels(), whole)
    for divisor in picture.divisors:
        expected = np.asarray(Image.fromarray(whole).reduce(divisor))
        assert abs(picture.pixels(divisor).astype(int) - expected).mean() < 2


@pytest.mark.parametrize("divisor", [1, 2, 4, 8])
def test_a_reduced_size_is_rounded_up(divisor: int) -> None:
    assert open_picture(jpeg(smooth(90, 67)), name="x").pixels(divisor).shape == (
        -(-90 // divisor),
        -(-67 // divisor),
        3,
    )


def test_a_truncated_jpeg_file_is_named() -> None:
    picture = open_picture(jpeg(smooth(64, 64))[:-400], name="cat.jpg")
    with pytest.raises(DataError, match=r"cat\.jpg: truncated"):
        picture.pixels()


@pytest.mark.parametrize("px", [8, 32, 224])
@pytest.mark.parametrize("size", [(375, 500), (96, 64), (40, 900)], ids=str)
def test_views_are_torchvisions(px: int, size: tuple[int, int]) -> None:
    image, policy = smooth(*size), get_policy("strong", size=px)
    for step in range(8):
        cuts = draw_cuts(policy, seed=0, step=step, view=0, batch=1)
        box = cuts.boxes(np.array([size]))[0].tolist()
        options = {"interpolation": InterpolationMode.BICUBIC, "antialias": True}
        expected = peer.resized_crop(torch.tensor(image).permute(2, 0, 1), *box, [px, px], **options)
        expected = expected.flip(-1) if cuts.flip[0] else expected
        assert (cut(image, cuts, px).int() - expected.int()).abs().max() <= 1


def test_a_reduced_jpeg_file_gives_nearly_the_same_view() -> None:
    image, differences = smooth(1200, 1600, cell=100), []
    data = jpeg(image, quality=95)
    for step in range(8):
        cuts = draw_cuts(get_policy("strong", size=64), seed=0, step=step, view=0, batch=1)
        whole = decode(data, name="x").transpose(1, 2, 0)
        differences.append((cut(data, cuts, 64).int() - cut(whole, cuts, 64).int()).abs().float().mean())
    assert 0 < max(differences) < 4


def test_the_geometry_and_the_colors_together_are_the_parameters() -> None:
    policy, options = get_policy("strong", size=32), {"seed": 3, "step": 4, "view": 1, "batch": 50}
    whole = draw(policy, **options, image_size=(48, 40))
    cuts, colors = draw_cuts(policy, **options), draw_colors(policy, **options)
    assert np.array_equal(cuts.boxes(np.tile((48, 40), (50, 1))), whole.boxes)
    assert np.array_equal(cuts.flip, whole.flip) and np.array_equal(cuts.shrink, whole.shrink)
    for name in ("order", "factors", "grey", "sigma", "solarize"):
        assert np.array_equal(getattr(colors, name), getattr(whole, name))
    assert (colors.boxes == (0, 0, 32, 32)).all() and not colors.flip.any()


def test_boxes_depend_on_the_size_of_their_own_image_only() -> None:
    cuts = draw_cuts(POLICIES["strong"], seed=0, step=0, view=0, batch=40)
    sizes = RNG.integers(20, 400, (40, 2))
    boxes = cuts.boxes(sizes)
    for i in range(40):
        assert np.array_equal(cuts[i : i + 1].boxes(sizes[i : i + 1])[0], boxes[i])


def test_a_set_of_mixed_sizes_gives_its_pictures_and_fits_them(tmp_path: Path) -> None:
    image_set = open_set(make_photographs(tmp_path / "set", num=12))
    assert image_set.is_mixed
    with pytest.raises(DataError, match=r"images differ in size: .* \(--image-size"):
        image_set.read(np.arange(12))
    sizes = {image_set.picture(row).size for row in range(12)}
    assert len(sizes) > 6
    assert not open_set(tmp_path / "set", image_size=16).is_mixed
