"""Two views of 224 px of photographs in JPEG files, on one thread, against torchvision and albumentations.

CORECLI_PHOTOGRAPHS is the tar file of photographs; without it, the one in shared/data is read.
"""

from __future__ import annotations

import io
import os
import tarfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corecli.data.memory import keep_freed_memory
from corecli.data.pictures import open_picture
from corecli.views.augment import augment, draw_colors, draw_cuts
from corecli.views.cutting import cut_views
from corecli.views.policies import get_policy

pytestmark = pytest.mark.bench
PHOTOS = Path(os.environ.get("CORECLI_PHOTOGRAPHS", Path(__file__).parents[3] / "shared" / "data" / "photos-200.tar"))
PX, NUM, ROUNDS = 224, 48, 5
JITTER = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    if not PHOTOS.exists():
        pytest.skip(f"{PHOTOS} is absent")
    torch.set_num_threads(1)
    keep_freed_memory()  # as train-ssl does
    with tarfile.open(PHOTOS) as archive:
        members = [member for member in archive if member.name.endswith(".JPEG") and member.size < 200_000]
        return [archive.extractfile(member).read() for member in members[:NUM]]


def cut_ours(files: list[bytes]) -> list[torch.Tensor]:
    """Views of all files, uint8 [B, 3, PX, PX], for each of the two."""
    policy = get_policy("strong", size=PX)
    cuts = [draw_cuts(policy, seed=0, step=0, view=view, batch=len(files)) for view in range(2)]
    views = [torch.empty(len(files), 3, PX, PX, dtype=torch.uint8) for _ in cuts]
    pictures = [open_picture(data, name=i) for i, data in enumerate(files)]
    sizes = np.array([picture.size for picture in pictures])
    boxes = [cut.boxes(sizes) for cut in cuts]
    for i, picture in enumerate(pictures):
        cut_views(picture, [(cut, i) for cut in cuts], [box[i] for box in boxes], [view[i] for view in views])
    return views


def color_ours(views: list[torch.Tensor]) -> None:
    policy = get_policy("strong", size=PX)
    for view, images in enumerate(views):
        augment(images, draw_colors(policy, seed=0, step=0, view=view, batch=len(images)))


def ours(files: list[bytes]) -> None:
    color_ours(cut_ours(files))


class TwoViews(torch.utils.data.Dataset):
    """A data set as the peers' users write it: two views of a file for each index."""

    def __init__(self, files: list[bytes], decode: Callable, transform: Callable) -> None:
        self._files, self.decode, self._transform = files, decode, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.decode(self._files[index])
        return self._transform(image), self._transform(image)


def torchvision_on_pillow(files: list[bytes]) -> TwoViews:
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
    return TwoViews(files, lambda data: Image.open(io.BytesIO(data)).convert("RGB"), one)


def albumentations_on_opencv(files: list[bytes]) -> TwoViews | None:
    """Albumentations computes on uint8 with OpenCV, so each of its steps rounds to 255 levels."""
    try:
        import albumentations as a
        import cv2
        from albumentations.pytorch import ToTensorV2
    except ImportError:
        return None
    cv2.setNumThreads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = a.Compose(
            [
                a.RandomResizedCrop((PX, PX), scale=(0.08, 1), interpolation=cv2.INTER_CUBIC),
                a.HorizontalFlip(),
                a.ColorJitter((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2), p=0.8),
                a.ToGray(p=0.2),
                a.GaussianBlur(blur_limit=23, sigma_limit=(0.1, 2.0), p=0.5),
                a.ToFloat(255),
                ToTensorV2(),
            ]
        )

    def decode(data: bytes) -> np.ndarray:
        return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB))

    return TwoViews(files, decode, lambda image: one(image=image)["image"])


def torchvision_on_tensors(files: list[bytes]) -> TwoViews:
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
    return TwoViews(
        files, lambda data: decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB), one
    )


def all_items(items: TwoViews) -> None:
    for i in range(len(items)):
        _ = items[i]


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
    views, v1, peer = cut_ours(photographs), torchvision_on_pillow(photographs), albumentations_on_opencv(photographs)
    batches = torch.utils.data.DataLoader(v1, batch_size=16)
    v2 = torchvision_on_tensors(photographs)
    works = {
        "ours": lambda: ours(photographs),
        "  decode and crop": lambda: cut_ours(photographs),
        "  color": lambda: color_ours(views),
        "torchvision v1, Pillow": lambda: all_items(v1),
        "torchvision v1, DataLoader": lambda: list(batches),
        "torchvision v2, tensors": lambda: all_items(v2),
    }
    if peer is not None:
        works["albumentations, OpenCV"] = lambda: all_items(peer)
        works["  decode"] = lambda: all_items(TwoViews(photographs, peer.decode, lambda image: image))
    times = dict(zip(works, seconds_of(*works.values()), strict=True))
    print()
    for name, seconds in times.items():
        print(f"{name:28} {2 * NUM / seconds:7.0f} views/s {seconds / 2 / NUM * 1e6:7.0f} us a view")
    assert times["torchvision v1, DataLoader"] > 2 * times["ours"]
    assert times["torchvision v2, tensors"] > 1.3 * times["ours"]
