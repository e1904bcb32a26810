"""Two views of 224 px of photographs in JPEG files, on one thread: decoding, crops and colors, against torchvision."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corecli.data.pictures import open_picture
from corecli.views.augment import augment, draw_colors, draw_cuts
from corecli.views.cutting import cut_views
from corecli.views.policies import get_policy

pytestmark = pytest.mark.bench
PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos-200.tar"
PX, NUM, ROUNDS = 224, 48, 5
JITTER = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    if not PHOTOS.exists():
        pytest.skip(f"{PHOTOS} is absent")
    torch.set_num_threads(1)
    with tarfile.open(PHOTOS) as archive:
        members = [member for member in archive if member.name.endswith(".JPEG") and member.size < 200_000]
        return [archive.extractfile(member).read() for member in members[:NUM]]


def cut_ours(files: list[bytes]) -> list[torch.Tensor]:
    """Views of all files, uint8 [B, 3, PX, PX], for each of the two."""
    policy = get_policy("strong", size=PX)
    cuts = [draw_cuts(policy, seed=0, step=0, view=view, batch=len(files)) for view in range(2)]
    views = [torch.empty(len(files), 3, PX, PX, dtype=torch.uint8) for _ in cuts]
    for i, data in enumerate(files):
        picture = open_picture(data, name=i)
        boxes = [cut[i : i + 1].boxes(np.array([picture.size]))[0] for cut in cuts]
        cut_views(picture, [(cut, i) for cut in cuts], boxes, [view[i] for view in views])
    return views


def color_ours(views: list[torch.Tensor]) -> None:
    policy = get_policy("strong", size=PX)
    for view, images in enumerate(views):
        augment(images, draw_colors(policy, seed=0, step=0, view=view, batch=len(images)))


def ours(files: list[bytes]) -> None:
    color_ours(cut_ours(files))


def torchvision_on_pillow(files: list[bytes]) -> None:
    from torchvision import transforms as t

    one = t.Compose(
        [
            t.RandomResizedCrop(PX, (0.08, 1), interpolation=t.InterpolationMode.BICUBIC),
            t.RandomHorizontalFlip(),
            t.RandomApply([t.ColorJitter(**JITTER)], 0.8),
            t.RandomGrayscale(0.2),
            t.RandomApply([t.GaussianBlur(23, (0.1, 2.0))], 0.5),
            t.ToTensor(),
        ]
    )
    for data in files:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        _ = one(image), one(image)


def torchvision_on_tensors(files: list[bytes]) -> None:
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2 as t

    one = t.Compose(
        [
            t.RandomResizedCrop(PX, (0.08, 1), interpolation=t.InterpolationMode.BICUBIC, antialias=True),
            t.RandomHorizontalFlip(),
            t.RandomApply([t.ColorJitter(**JITTER)], 0.8),
            t.RandomGrayscale(0.2),
            t.RandomApply([t.GaussianBlur(23, (0.1, 2.0))], 0.5),
            t.ToDtype(torch.float32, scale=True),
        ]
    )
    for data in files:
        image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        _ = one(image), one(image)


def seconds_of(*works: Callable[[], object]) -> list[float]:
    """The median processor time of each, in turn."""
    found = [[] for _ in works]
    for _ in range(ROUNDS):
        for work, times in zip(works, found, strict=True):
            started = time.process_time()
            work()
            times.append(time.process_time() - started)
    return [float(np.median(times)) for times in found]


def test_photographs_become_views_faster_than_with_torchvision(photographs: list[bytes]) -> None:
    views = cut_ours(photographs)
    names = ("ours", "decode and crop", "color", "torchvision on Pillow", "torchvision on tensors")
    times = seconds_of(
        lambda: ours(photographs),
        lambda: cut_ours(photographs),
        lambda: color_ours(views),
        lambda: torchvision_on_pillow(photographs),
        lambda: torchvision_on_tensors(photographs),
    )
    for name, seconds in zip(names, times, strict=True):
        print(f"{name:24} {2 * NUM / seconds:7.0f} views/s {seconds / 2 / NUM * 1e6:7.0f} us a view")
    assert times[3] > 2 * times[0]
    assert times[4] > 1.3 * times[0]
