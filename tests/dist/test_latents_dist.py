"""Two processes share the encoding of a set, and find what one finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from first_stages import HALVING

from corecli.data.imageset import open_set
from corecli.data.latents import LatentSet
from corecli.engine.dist import World
from corecli.generators.parts import latent
from corecli.generators import dit


def encoded(world: World, folder: Path) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """(moments, scale, files) of the digits, in four shards."""
    torch.manual_seed(0)
    generator = dit.build(dit.Config(image_size=8, first_stage=HALVING, size="tiny", patch=2))
    with patch.object(latent, "_SHARD_ROWS", 100):
        images = open_set("digits:8:test")
        latents = latent.prepare(generator, images, folder, world=world, batch_size=32, workers=0, quiet=True)
    assert isinstance(latents, LatentSet) and generator.first_stage is not None
    moments = latents.read(np.arange(len(latents.rows))).clone()
    return moments, generator.first_stage.scale.clone(), sorted(p.name for p in folder.iterdir())  # type: ignore


def test_two_processes_encode_what_one_does(two_ranks: Any, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    moments, scale, files = encoded(World(), tmp_path / "one")
    assert len(moments) == 355 and len(files) == 1
    for found in two_ranks.run(encoded, tmp_path / "two"):
        assert torch.equal(found[0], moments) and torch.equal(found[1], scale) and found[2] == files
    assert (tmp_path / "one" / files[0]).read_bytes() == (tmp_path / "two" / files[0]).read_bytes()
