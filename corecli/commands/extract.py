"""Write the features of an image set as a table.

Every image passes through the encoder once, in evaluation mode. Each row has the key, group and label of its image, and
the header has the fingerprint of the encoder. Other verbs therefore join the table to images by key and refuse a table
of another encoder.

The encoder is a file that train-ssl wrote, a checkpoint of another tool, or `timm:NAME`, optionally
`timm:NAME:WEIGHTS`. Checkpoints are recognized by their content: ResNets and plain ViTs as saved by torchvision, timm,
solo-learn, lightly and Lightning, MoCo, MoCo v3, BYOL, SimSiam, Barlow Twins, DINO, iBOT, DINOv2 and MAE. Heads and
decoders are dropped; any other weight that does not fit is an error. If a file has several networks, the one that its
authors evaluate is used: the online network of BYOL and MoCo, the teacher of DINO. Checkpoints of other tools normalize
images with the constants of ImageNet; if the model needs others, as the ViTs of timm do, write `timm:NAME:WEIGHTS`.

Images of one size are resized to the size that the encoder was trained with, and the center is cropped. Photographs of
different sizes are resized and cropped as published for the encoder: train-ssl --eval-resize for its own, crop_pct for
models of timm, 256 and 224 px for checkpoints of other tools.

--pool and --blocks select features of a vision transformer other than its output. Tables and generators record the
choice.

With --export the verb writes the weights of the backbone only and reads no images. They load with strict=True in
torchvision (with fc as an Identity) and in timm (with num_classes=0; for `vit-small/4` trained at 32 px, as
vit_small_patch16_224 with patch_size=4 and img_size=32).
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
from corecli.commands.parts.inputs import (
    ReadsImages,
    bad_files,
    check_encoder,
    check_file,
    fitted,
    num_workers,
    open_images,
)
from corecli.commands.parts.layer import layer_name, take_layer

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from corecli.engine.dist import World
    from corecli.nets.encoder import Encoder

SUMMARY = "write the features of an image set"
PLACE = 1
EXAMPLES = (
    (
        "The projector output that conditions a generator (CORE)",
        "--data DIR --encoder f.safetensors --out z.safetensors",
    ),
    ("Backbone features of a timm model", "--data DIR --encoder timm:vit_small_patch16_224 --out h.safetensors"),
    ("Weights of the backbone, for torchvision or timm", "--encoder f.safetensors --export backbone.pt"),
)
PRESETS: dict[str, Preset] = {}
SHARD_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Config(ReadsImages):
    """Options of `corecli extract`."""

    data: str | None = option(None, help="image set to read; required without --export", role="input", metavar="SET")
    encoder: str = option(help="encoder file, or timm:NAME[:WEIGHTS]", role="input", metavar="FILE|NAME")
    out: Path | None = option(
        None, help="feature table to write; required without --export", role="output", metavar="FILE"
    )
    export: Path | None = option(
        None,
        help="write the backbone for torchvision or timm instead, as .safetensors or .pt",
        role="output",
        metavar="FILE",
    )
    layer: Literal["auto", "backbone", "projector"] = option(
        "auto",
        help="features to write; auto is the projector if there is one, as in CORE",
    )
    pool: Literal["cls", "mean", "cls+mean"] | None = option(
        None, help="ViT pooling: class token, patch mean, or class tokens and the last patch mean"
    )
    blocks: int | None = option(None, help="concatenate the features of the last N blocks of a ViT", minimum=1)
    batch_size: int = option(256, help="images per forward pass", role="runtime", minimum=1)


def check(config: Config) -> dict[str, Any]:
    """Return what would be read and written. Errors: as `run`, as far as they can be found without torch."""
    if config.export is not None:
        _check_alone(config)
        check_file(config.export)
        check_encoder(config.encoder)
        return {"out": str(config.export)}
    spec, out = _places(config)
    if config.layer == "projector" and (config.pool or config.blocks):
        raise UsageError("--pool and --blocks select features of the backbone", hint="drop --layer projector")
    check_file(out)
    data = open_images(spec, config)
    check_encoder(config.encoder)
    return {"num": len(data.rows), "out": str(out)}


def run(config: Config, world: World) -> Outcome:
    """Extract, or export. Errors: UsageError, DataError, CannotCreateError, InterruptedAfterSaving."""
    if config.export is not None:
        return _export(config, config.export, world)
    return _extract(config, *_places(config), world)


def _extract(config: Config, spec: str, out: Path, world: World) -> Outcome:
    """Run all images through the encoder, shard by shard, and write the table."""
    import torch

    from corecli.data.features import FeatureTable, save_features
    from corecli.data.loader import read_batches
    from corecli.engine.precision import autocast, place
    from corecli.engine.run import clear_work, open_folder
    from corecli.engine.shards import Shards
    from corecli.nets.encoder import load_encoder

    data = open_images(spec, config)
    encoder = place(load_encoder(config.encoder), world.device).eval()
    identity = cfg.identity(config, {"data": data.fingerprint, "encoder": encoder.fingerprint})
    if is_finished(out, identity, force=config.force):
        clear_work(out)
        return produced(out, notes=("already there, left alone",), num=len(data.rows))
    name, fingerprint = _layer_name(config, encoder), encoder.fingerprint
    layer, seen = take_layer(encoder, name), fitted(data, encoder.spec["preprocessing"], spec)
    folder = open_folder(out, identity, world, force=config.force)

    def make(batches: Iterator[tuple[int, int]]) -> Iterator[dict[str, torch.Tensor]]:
        rows = (np.arange(start, stop) for start, stop in batches)
        workers = num_workers(config.workers)
        for images, _ in read_batches(seen, rows, device=world.device, workers=workers):
            with autocast(config.precision, world.device):
                features = encoder.encode(images, layer)
            yield {"features": features}

    with Shards(folder, num_rows=len(data.rows), shard_size=SHARD_ROWS, world=world) as shards:
        shards.compute(make, label="extract", batch_size=config.batch_size, quiet=config.quiet)
        if world.is_main:
            features = torch.cat([shard["features"] for shard in shards.read()])
            header = {
                "encoder": fingerprint,
                "layer": name,
                "space": f"{encoder.spec['backbone']}/{name}",
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
            save_features(out, table)
    return produced(out, notes=bad_files(data), num=len(data.rows), layer=name)


def _layer_name(config: Config, encoder: Encoder) -> str:
    """Return the name of the features. Errors: UsageError."""
    if config.pool or config.blocks:
        return layer_name("backbone", config.pool, config.blocks)
    if config.layer == "projector" and not encoder.projector_dim:
        raise UsageError("this encoder has no projector", where=config.encoder, hint="use --layer backbone")
    if config.layer == "auto":
        return "projector" if encoder.projector_dim else "backbone"
    return config.layer


def _export(config: Config, out: Path, world: World) -> Outcome:
    """Write the weights of the backbone only."""
    from corecli.nets.encoder import load_encoder, save_backbone

    encoder = load_encoder(config.encoder)
    identity = {"export": encoder.fingerprint}
    facts = {"backbone": encoder.spec["backbone"], "dim": encoder.num_features}
    if is_finished(out, identity, force=config.force):
        return produced(out, notes=("already there, left alone",), **facts)
    if world.is_main:
        save_backbone(out, encoder, identity=identity)
    return produced(out, **facts)


def _places(config: Config) -> tuple[str, Path]:
    """Return (image set, feature table). Errors: UsageError if one is missing."""
    if config.data is None or config.out is None:
        name = "--data" if config.data is None else "--out"
        raise UsageError(f"{name} is required", hint="or use --export FILE to write the backbone only")
    return config.data, config.out


def _check_alone(config: Config) -> None:
    """Refuse options of extraction beside --export. Errors: UsageError."""
    given = {name: getattr(config, name) for name in ("data", "out", "image_size", "pool", "blocks")}
    given["layer"] = None if config.layer == "auto" else config.layer
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"--export reads no images, so {cfg.flag(name)} does not apply", hint="drop one of them")
