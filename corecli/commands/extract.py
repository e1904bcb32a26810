"""Write the features of an image set as a table.

Every image passes the encoder once, in evaluation mode. Rows carry the image's key, group and label, and the header
the encoder's fingerprint, so that other verbs join a table to images by key and refuse one of another encoder.

The encoder is one of ours, a foreign checkpoint (torchvision, solo-learn, lightly or MoCo naming, told by content), or
`timm:NAME`, optionally `timm:NAME:WEIGHTS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from corecli.base import config as cfg
from corecli.base.config import Preset, option
from corecli.base.errors import UsageError
from corecli.base.outcome import Outcome, produced
from corecli.base.target import is_finished
from corecli.commands import _inputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from corecli.engine.dist import World

EXAMPLES = (
    (
        "The projector output that conditions a generator (CORE)",
        "--data DIR --encoder f.safetensors --out z.safetensors",
    ),
    ("Backbone features of a timm model", "--data DIR --encoder timm:vit_small_patch16_224 --out h.safetensors"),
)
PRESETS: dict[str, Preset] = {}
SHARD_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Config(_inputs.ReadsImages):
    """Options of `corecli extract`."""

    data: str = option(help="image set to read", role="input", metavar="SET")
    encoder: str = option(help="encoder file, or timm:NAME[:WEIGHTS]", role="input", metavar="FILE|NAME")
    out: Path = option(help="feature table to write", role="output", metavar="FILE")
    layer: Literal["auto", "backbone", "projector"] = option(
        "auto",
        help="which features; auto is the projector's where there is one, as CORE conditions on",
    )
    batch_size: int = option(256, help="images per forward pass", role="runtime", minimum=1)


def check(config: Config) -> dict[str, Any]:
    """What would be read and written. Errors: as `run`, as far as they show without torch."""
    _inputs.check_file(config.out)
    data = _inputs.open_images(config.data, config)
    _inputs.check_encoder(config.encoder)
    return {"num": len(data.rows), "out": str(config.out)}


def run(config: Config, world: World) -> Outcome:
    """Extract, shard by shard, and publish the table. Errors: DataError, CannotCreateError, InterruptedAfterSaving."""
    import torch

    from corecli.data.features import FeatureTable, save_features
    from corecli.data.loader import read_batches
    from corecli.engine.precision import autocast, place
    from corecli.engine.run import clear_work, open_folder
    from corecli.engine.shards import Shards
    from corecli.nets.encoder import load_encoder

    data = _inputs.open_images(config.data, config)
    encoder = place(load_encoder(config.encoder), world.device).eval()
    identity = cfg.identity(config, {"data": data.fingerprint, "encoder": encoder.fingerprint})
    if is_finished(config.out, identity, force=config.force):
        clear_work(config.out)
        return produced(config.out, notes=("already there, left alone",), num=len(data.rows))
    layer: Literal["backbone", "projector"] = "projector" if encoder.projector_dim else "backbone"
    if config.layer != "auto":
        layer = config.layer
    if layer == "projector" and not encoder.projector_dim:
        raise UsageError("this encoder has no projector", where=config.encoder, hint="use --layer backbone")
    folder = open_folder(config.out, identity, world, force=config.force)

    def make(batches: Iterator[tuple[int, int]]) -> Iterator[dict[str, torch.Tensor]]:
        rows = (np.arange(start, stop) for start, stop in batches)
        workers = _inputs.num_workers(config.workers)
        for images, _ in read_batches(data, rows, device=world.device, workers=workers):
            with autocast(config.precision, world.device):
                features = encoder.encode(images, layer)
            yield {"features": features}

    with Shards(folder, num_rows=len(data.rows), shard_size=SHARD_ROWS, world=world) as shards:
        shards.compute(make, label="extract", batch_size=config.batch_size, quiet=config.quiet)
        if world.is_main:
            features = torch.cat([shard["features"] for shard in shards.read()])
            header = {
                "encoder": encoder.fingerprint,
                "layer": layer,
                "space": f"{encoder.spec['backbone']}/{layer}",
                "preprocessing": encoder.spec["preprocessing"],
                "source": data.fingerprint,
                "class_names": list(data.class_names),
                "config": cfg.settings(config),
                "identity": identity,
            }
            rows = data.rows
            table = FeatureTable(
                features=features, keys=rows.keys, groups=rows.groups, labels=rows.labels, header=header
            )
            save_features(config.out, table)
    return produced(config.out, notes=_inputs.bad_files(data), num=len(data.rows), layer=layer)
