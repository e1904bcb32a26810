"""SimCLR's two views of a batch against transforms of single Pillow images, solo-learn's and lightly's; one thread, CPU
time.
"""

from __future__ import annotations

import random
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest
import torch
from torchvision import transforms as tv1

from corecli.data.memory import keep_freed_memory
from corecli.views.augment import augment, draw
from corecli.views.policies import POLICIES

ROUNDS = 5


class PillowBlur:
    """Pillow's own Gaussian filter, as solo-learn uses it: faster than torchvision's blur, so the harder peer."""

    def __call__(self, image: PIL.Image.Image) -> PIL.Image.Image:
        return image.filter(PIL.ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def torchvision_views(images: list[PIL.Image.Image], size: int, blur: Callable) -> Callable[[], None]:
    transform = tv1.Compose(
        [
            tv1.RandomResizedCrop(size, (0.08, 1.0), interpolation=tv1.InterpolationMode.BICUBIC),
            tv1.RandomApply([tv1.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            tv1.RandomGrayscale(0.2),
            tv1.RandomApply([blur], 0.5),
            tv1.RandomHorizontalFlip(),
            tv1.ToTensor(),
        ]
    )
    return lambda: torch.stack([transform(image) for image in images for _ in range(2)])


def lightly_views(images: list[PIL.Image.Image], size: int) -> Callable[[], None]:
    transform = pytest.importorskip("lightly.transforms").SimCLRTransform(input_size=size)
    return lambda: torch.stack([view for image in images for view in transform(image)])


def our_views(images: torch.Tensor, *, compiled: bool) -> Callable[[], None]:
    batch, size = len(images), tuple(images.shape[-2:])

    def views() -> None:
        for view in (0, 1):
            p = draw(POLICIES["strong"], seed=0, step=0, view=view, batch=batch, image_size=size)
            augment(images, p, compile=compiled)

    return views


def microseconds_per_view(candidates: dict[str, tuple[Callable, int]]) -> dict[str, float]:
    """Medians over interleaved rounds, so that what else the machine does falls on all alike."""
    seen: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, (views, count) in candidates.items():
            start = time.process_time()
            views()
            seen[name].append((time.process_time() - start) / (2 * count) * 1e6)
    return {name: statistics.median(times) for name, times in seen.items()}


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.bench
@pytest.mark.parametrize(("size", "batch", "num_peer", "bound"), [(32, 512, 96, 8.0), (224, 32, 24, 2.0)])
def test_views_of_a_batch_against_those_of_single_images(size, batch, num_peer, bound, one_thread):
    keep_freed_memory()
    random.seed(0)
    torch.manual_seed(0)  # of the peers' draws
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, size // 4, size // 4, generator=g)
    images = torch.nn.functional.interpolate(coarse, size, mode="bilinear").mul(255).to(torch.uint8)
    pillow = [PIL.Image.fromarray(np.array(x.permute(1, 2, 0))) for x in images[:num_peer]]
    eager, compiled = our_views(images, compiled=False), our_views(images, compiled=True)
    with warnings.catch_warnings(record=True) as uncompiled:
        warnings.simplefilter("always")
        compiled()
    eager()
    kernel = 2 * (size // 20) + 1
    times = microseconds_per_view(
        {
            "corecli eager": (eager, batch),
            "as solo-learn": (torchvision_views(pillow, size, PillowBlur()), num_peer),
            "lightly": (lightly_views(pillow, size), num_peer),
            "torchvision v1": (torchvision_views(pillow, size, tv1.GaussianBlur(kernel, (0.1, 2.0))), num_peer),
            "corecli compiled": (compiled, batch),
        }
    )
    if any("uncompiled" in str(w.message) for w in uncompiled):
        del times["corecli compiled"]
    print()
    for name, time_us in times.items():
        print(f"{size} px  {name:28s} {time_us:8.1f} us/view  eager is {time_us / times['corecli eager']:5.2f} x")
    for peer in ("as solo-learn", "lightly"):
        assert times[peer] / times["corecli eager"] >= bound
