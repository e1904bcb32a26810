"""Two processes share the pass over the images and one cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corecli.commands.fid.images import measure_images
from corecli.data.imageset import open_set, write_set
from corecli.data.rows import make_rows
from corecli.engine.dist import World
from corecli.nets.extractor import Extractor


def measured(world: World, images: Path, cache: Path | None, batch_size: int) -> tuple[dict[str, Tensor], int]:
    """Return the features on this rank and the number of images it put through the network."""
    seen = []

    def extract(x: Tensor) -> dict[str, Tensor]:
        seen.append(len(x))
        pixels = x.flatten(1).float()
        return {"features": pixels[:, :5], "logits": pixels[:, 5:8]}

    names: Any = {
        "metric": "fd",
        "space": "first pixels",
        "fingerprint": "f",
        "preprocessing": "",
        "seen": {"image_size": 8},
    }
    extractor = Extractor(**names, dims={"features": 5, "logits": 3}, extract=extract)
    options: Any = {"batch_size": batch_size, "workers": 0, "label": "", "quiet": True}
    found, notes = measure_images(
        open_set(images), extractor, world, names=("features", "logits"), cache=cache, **options
    )
    assert notes == ()
    return found, sum(seen)


def test_two_ranks_gather_the_features_of_one(two_ranks: Any, tmp_path: Path) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (21, 3, 4, 4), dtype=np.uint8))
    images = tmp_path / "images.npz"
    write_set(images, make_rows([f"{i:02d}" for i in range(21)]), [pixels], class_names=(), header={})
    expected = pixels.flatten(1).float()
    for cache in (None, tmp_path / "cache"):
        for batch_size in (4, 64):  # 6 batches, and fewer than ranks
            (mine, seen), (other, seen_there) = two_ranks.run(measured, images, cache, batch_size)
            assert torch.equal(mine["features"], expected[:, :5])
            assert torch.equal(mine["logits"], expected[:, 5:8])
            assert other == {}
            assert seen + seen_there == (0 if cache is not None and batch_size == 64 else 21)
    assert torch.equal(measured(World(), images, tmp_path / "cache", 7)[0]["features"], expected[:, :5])
