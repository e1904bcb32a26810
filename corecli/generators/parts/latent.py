"""Latents of a first stage, for the families that learn them: its config, and latents that are encoded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from corecli.base import checkpoint
from corecli.base.errors import DataError, UsageError, unknown_name
from corecli.data.imageset import StoredSet
from corecli.data.latents import LatentSet, file_name, open_latents, write_latents
from corecli.data.loader import Workers, read_batches
from corecli.engine.dist import World, barrier
from corecli.engine.shards import Shards
from corecli.generators.parts.diffusion import CHANNELS, DiffusionConfig
from corecli.nets.autoencoder import FirstStage, Spec

SCALES = ("auto", "published", "measured")
_SHARD_ROWS = 4096
_ENOUGH_ROWS = 4096  # for the mean and std of a latent channel


@dataclass(frozen=True, kw_only=True)
class LatentConfig(DiffusionConfig):
    """Options of diffusion on pixels or latents.

    first_stage: spec of the first stage (see `nets.autoencoder`), or None for pixels.
    latent_scale: source of the scale of latents: the first stage's "published" numbers, or "measured" per channel on
    the training images; "auto" measures only if none are published.
    """

    first_stage: dict[str, Any] | None = None
    latent_scale: str = "auto"


def first_stage_of(config: LatentConfig) -> FirstStage | None:
    """Build the first stage of a config, with random weights, or return None. Errors: UsageError, DataError."""
    if config.latent_scale not in SCALES:
        raise unknown_name("scale of latents", config.latent_scale, SCALES)
    if config.first_stage is None:
        return None
    spec: Spec = config.first_stage  # pyright: ignore[reportAssignmentType]
    if config.latent_scale == "published" and spec.get("measured"):
        raise UsageError("the first stage has no published scale of latents", hint="use --latent-scale measured")
    return FirstStage(spec, image_size=config.image_size)


def data_shape_of(config: LatentConfig, first_stage: FirstStage | None) -> tuple[int, int, int]:
    """Return the shape (C, S, S) of latents, or of pixels without a first stage."""
    return (CHANNELS, config.image_size, config.image_size) if first_stage is None else first_stage.data_shape


def prepare(
    generator: Any, images: StoredSet, folder: Path, *, world: World, batch_size: int, workers: Workers, quiet: bool
) -> StoredSet:
    """Return what the generator trains on: the images, or their latents, which are kept in `folder`.

    All ranks encode latents together, in shards, unless a file of them exists. If their scale is measured, it is set in
    the generator's first stage.
    Errors: DataError if latents are not finite, or images have another size; CannotCreateError, StorageError,
    InterruptedAfterSaving.
    """
    stage = getattr(generator, "first_stage", None)
    if stage is None or not isinstance(generator.config, LatentConfig):
        return images
    size = generator.config.image_size
    if images.image_size != (size, size):
        height, width = images.image_size
        raise DataError(f"images are {width} x {height}, but the first stage takes {size} px", hint="give --image-size")
    stage_id, mirrored = checkpoint.fingerprint(stage.autoencoder.state_dict()), generator.config.flip
    path = folder / file_name(images, first_stage=stage_id, mirrored=mirrored)
    if not path.exists():
        with Shards(path.with_suffix(".d"), num_rows=len(images.rows), shard_size=_SHARD_ROWS, world=world) as shards:
            make = _encoder(generator, images, world, workers)
            shards.compute(make, label="encode", batch_size=batch_size, quiet=quiet)
            if world.is_main:
                chunks = (shard["moments"] for shard in shards.read())
                write_latents(path, images, chunks, first_stage=stage_id, mirrored=mirrored)
    barrier(world)
    latents = open_latents(path, images, first_stage=stage_id, mirrored=mirrored)
    _set_scale(generator, latents)
    return latents


def _encoder(generator: Any, images: StoredSet, world: World, workers: Workers) -> Any:
    def make(batches: Iterator[tuple[int, int]]) -> Iterator[dict[str, torch.Tensor]]:
        rows = (np.arange(start, stop) for start, stop in batches)
        for batch, _ in read_batches(images, rows, device=world.device, workers=workers):
            moments = generator.moments(batch)
            if not moments.isfinite().all():
                raise DataError("latents are not finite", hint="the first stage diverged")
            yield {"moments": moments}

    return make


def _set_scale(generator: Any, latents: LatentSet) -> None:
    """Measure shift and scale on rows spread evenly over the set, the same on every rank."""
    stage: FirstStage = generator.first_stage
    how = generator.config.latent_scale
    if how == "measured" or (how == "auto" and stage.spec.get("measured")):
        num = len(latents.rows)
        rows = np.unique(np.linspace(0, num - 1, min(num, _ENOUGH_ROWS)).astype(np.int64))
        stage.measure(latents.read(rows).flatten(0, 1).to(stage.scale.device))
