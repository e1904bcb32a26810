"""Small photographs of many sizes and kinds, as people have them, made from the two that scikit-learn has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

ORIENTATION = 274
MODES = ("RGB", "L", "CMYK", "P")


def make_photographs(folder: Path, *, num: int = 24, least_px: int = 40, most_px: int = 120) -> Path:
    """Write photographs of `least_px` to `most_px` in two classes: color, gray, CMYK, palette, 16 bit and rotated."""
    rng, sources = np.random.default_rng(0), [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(num):
        width, height = rng.integers(least_px, most_px + 1, 2).tolist()
        left, top = (int(rng.integers(0, 200)) for _ in range(2))
        source = sources[number % 2].crop((left, top, left + 300, top + 200)).resize((width, height))
        path = folder / ("china", "flower")[number % 2] / f"{number:03d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(source, path, kind=number // 2)
    return folder


def _save(image: Image.Image, path: Path, kind: int) -> None:
    mode = MODES[kind % 4]
    if kind % 6 == 5:
        deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
        Image.fromarray(deep).save(path.with_suffix(".png"))
    elif mode == "P":
        image.convert("P").save(path.with_suffix(".png"))
    else:
        exif = Image.Exif()
        exif[ORIENTATION] = kind % 8 + 1
        image.convert(mode).save(path.with_suffix(".jpg"), quality=90, exif=exif)
