"""Generators of other tools, told by the content of their checkpoints: guided-diffusion's ADM, and DiT, the official
one or diffusers'."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from corecli.base import checkpoint
from corecli.base.errors import DataError, UsageError
from corecli.base.files import read_json
from corecli.generators import adm, dit
from corecli.generators.parts.diffusion import CHANNELS, Diffusion
from corecli.nets.autoencoder import Spec, downsampling
from corecli.nets.unet import MAX_NORM_GROUPS
from corecli.nets.weights import adm as adm_weights
from corecli.nets.weights import dit as dit_weights
from corecli.nets.weights.autoencoders import read_first_stage

_LABELS_OF_DIT = 0.1  # how often the official recipe drops them
_COSINE_PX = 64  # of guided-diffusion's published sizes, the one with a cosine schedule


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the weights do not show; None for what the published checkpoints have.

    image_size: in pixels. first_stage: of latents, a folder, an id or a file. schedule: "linear" or, as
    guided-diffusion's of 64 px, "cosine". head_channels, new_attention_order: of guided-diffusion's attention.
    """

    image_size: int | None = None
    first_stage: str | None = None
    schedule: str | None = None
    head_channels: int | None = None
    new_attention_order: bool | None = None


def is_foreign(path: Path) -> bool:
    """Whether a file or folder is not ours and holds one of these networks. Errors: MissingInputError, DataError."""
    if not path.is_dir() and checkpoint.read_header(path) is not None:
        return False
    tensors = _tensors(path)
    return adm_weights.is_adm(tensors) or dit_weights.is_dit(tensors)


def read_foreign(path: Path, told: Told | None = None) -> tuple[str, Diffusion]:
    """(family, generator) of a checkpoint; a folder is diffusers' of a DiT, or a pipeline's with one in it.

    Errors: MissingInputError; DataError for a network that is none of ours; UsageError where something must be told;
    UnavailableError for a first stage that cannot be had.
    """
    tensors, told = _tensors(path), told or Told()
    if adm_weights.is_adm(tensors):
        return "adm", _adm(tensors, told, path)
    if dit_weights.is_dit(tensors):
        return "dit", _dit(tensors, told, path)
    raise DataError("neither guided-diffusion's nor a DiT's weights", where=path)


def _adm(tensors: checkpoint.Tensors, told: Told, path: Path) -> Diffusion:
    found = adm_weights.convert(
        tensors,
        image_size=told.image_size,
        head_channels=told.head_channels,
        new_order=told.new_attention_order,
        where=path,
    )
    settings = dict(found.settings)
    channels, out_channels = settings.pop("in_channels"), settings.pop("out_channels")
    if channels != CHANNELS or out_channels not in (CHANNELS, 2 * CHANNELS):
        raise DataError(f"from {channels} to {out_channels} channels is no generator of images", where=path)
    config = adm.Config(
        **settings,
        **_labels(found.labels, dropout=0.0),
        learn_sigma=out_channels == 2 * CHANNELS,
        schedule=told.schedule or ("cosine" if settings["image_size"] == _COSINE_PX else "linear"),
        norm_groups=MAX_NORM_GROUPS,
        dropout=0.0,
    )
    return _filled(adm.build(config), found.tensors, found.labels)


def _dit(tensors: checkpoint.Tensors, told: Told, path: Path) -> Diffusion:
    found = dit_weights.convert(tensors, where=path)
    spec, weights = _first_stage(found.in_channels, told, path)
    side = found.patch * (found.grid or 0) or _sample_size(path)
    config = dit.Config(
        image_size=told.image_size or side * (1 if spec is None else downsampling(spec)),
        size=found.size,
        patch=found.patch,
        first_stage=None if spec is None else dict(spec),
        **_labels(found.labels, dropout=_LABELS_OF_DIT),
        learn_sigma=found.out_channels == 2 * found.in_channels,
        schedule=told.schedule or "linear",
    )
    generator = dit.build(config)
    if generator.data_shape[0] != found.in_channels:
        reason = f"a first stage of {generator.data_shape[0]} channels, and a DiT of {found.in_channels}"
        raise DataError(reason, where=told.first_stage or path, hint="say the one it was trained with")
    generator.load_state_dict({**generator.state_dict(), **weights})
    return _filled(generator, found.tensors, found.labels)


def _first_stage(channels: int, told: Told, path: Path) -> tuple[Spec | None, checkpoint.Tensors]:
    """(spec, weights) of what latents are decoded by: as told, or of a pipeline's folder."""
    if channels == CHANNELS and told.first_stage is None:
        return None, {}
    place = told.first_stage or (path if (path / "vae").is_dir() else None)
    if place is None:
        hint = "say the first stage, for the published DiTs stabilityai/sd-vae-ft-ema"
        reason = f"its {channels} channels are latents of a first stage that is not in the file"
        raise UsageError(reason, where=path, hint=hint)
    spec, weights = read_first_stage(place)
    return spec, {f"first_stage.{name}": tensor for name, tensor in weights.items()}


def _labels(table: torch.Tensor | None, *, dropout: float) -> dict[str, Any]:
    """The condition of a config. A table that was trained with dropout ends with the row of no class."""
    if table is None:
        return {"condition": "none"}
    return {"condition": "labels", "num_classes": len(table) - (dropout > 0), "condition_dropout": dropout}


def _filled(generator: Diffusion, network: checkpoint.Tensors, labels: torch.Tensor | None) -> Diffusion:
    """With the weights of the network, and with embeddings of labels that join the time embedding as they are."""
    generator.network.load_state_dict(network)
    if labels is not None:
        conditioning: Any = generator.conditioning
        conditioning.embedding.weight.data.copy_(labels)
        nn.init.eye_(conditioning.linear.weight)
    return generator.eval()


def _tensors(path: Path) -> checkpoint.Tensors:
    if not path.is_dir():
        return checkpoint.load_tensors(path)
    return checkpoint.load_tensors(_part(path) / "diffusion_pytorch_model.safetensors")


def _part(folder: Path) -> Path:
    """Where the network of a pipeline's folder is."""
    return folder / "transformer" if (folder / "transformer").is_dir() else folder


def _sample_size(path: Path) -> int:
    """The side of what a DiT of diffusers makes. Errors: UsageError where it is not said."""
    config = _part(path) / "config.json"
    size = read_json(config).get("sample_size") if path.is_dir() and config.is_file() else None
    if size is None:
        raise UsageError("the size of its images shows nowhere", where=path, hint="say the image size")
    return int(size)
