"""Import generators of other tools: ADM of guided-diffusion, and DiT, official or of diffusers.

The kind is recognized by the names of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from corecli.base import checkpoint
from corecli.base.documents import read_json
from corecli.base.errors import DataError, UsageError
from corecli.base.schemas import CONFIG
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
class ImportOptions:
    """Settings that the weights do not contain; None means those of the published checkpoints.

    image_size: in pixels. first_stage: of a latent model, a folder, an id or a file. schedule: "linear", or "cosine" as
    in guided-diffusion at 64 px. head_channels, new_attention_order: of guided-diffusion's attention.
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


def read_foreign(path: Path, options: ImportOptions | None = None) -> tuple[str, Diffusion]:
    """Return (family, generator) of a checkpoint; a folder holds a DiT of diffusers, or a pipeline with one.

    Errors: MissingInputError; DataError for an unsupported network; UsageError if a setting must be given;
    UnavailableError for a first stage that cannot be downloaded.
    """
    tensors, options = _tensors(path), options or ImportOptions()
    if adm_weights.is_adm(tensors):
        return "adm", _adm(tensors, options, path)
    if dit_weights.is_dit(tensors):
        return "dit", _dit(tensors, options, path)
    raise DataError("neither weights of guided-diffusion nor of a DiT", where=path)


def _adm(tensors: checkpoint.Tensors, options: ImportOptions, path: Path) -> Diffusion:
    found = adm_weights.convert(
        tensors,
        image_size=options.image_size,
        head_channels=options.head_channels,
        new_order=options.new_attention_order,
        where=path,
    )
    settings = dict(found.settings)
    channels, out_channels = settings.pop("in_channels"), settings.pop("out_channels")
    if channels != CHANNELS or out_channels not in (CHANNELS, 2 * CHANNELS):
        raise DataError(f"not a generator of images: from {channels} to {out_channels} channels", where=path)
    config = adm.Config(
        **settings,
        **_labels(found.labels, dropout=0.0),
        learn_sigma=out_channels == 2 * CHANNELS,
        schedule=options.schedule or ("cosine" if settings["image_size"] == _COSINE_PX else "linear"),
        norm_groups=MAX_NORM_GROUPS,
        dropout=0.0,
    )
    return _filled(adm.build(config), found.tensors, found.labels)


def _dit(tensors: checkpoint.Tensors, options: ImportOptions, path: Path) -> Diffusion:
    found = dit_weights.convert(tensors, where=path)
    spec, weights = _first_stage(found.in_channels, options, path)
    side = found.patch * (found.grid or 0) or _sample_size(path)
    config = dit.Config(
        image_size=options.image_size or side * (1 if spec is None else downsampling(spec)),
        size=found.size,
        patch=found.patch,
        first_stage=None if spec is None else dict(spec),
        **_labels(found.labels, dropout=_LABELS_OF_DIT),
        learn_sigma=found.out_channels == 2 * found.in_channels,
        schedule=options.schedule or "linear",
    )
    generator = dit.build(config)
    if generator.data_shape[0] != found.in_channels:
        reason = f"the first stage has {generator.data_shape[0]} channels, but the DiT takes {found.in_channels}"
        raise DataError(reason, where=options.first_stage or path, hint="give the one it was trained with")
    generator.load_state_dict({**generator.state_dict(), **weights})
    return _filled(generator, found.tensors, found.labels)


def _first_stage(channels: int, options: ImportOptions, path: Path) -> tuple[Spec | None, checkpoint.Tensors]:
    """Return (spec, weights) of the first stage: the one given, or that of a pipeline's folder."""
    if channels == CHANNELS and options.first_stage is None:
        return None, {}
    place = options.first_stage or (path if (path / "vae").is_dir() else None)
    if place is None:
        hint = "give the first stage, for the published DiTs stabilityai/sd-vae-ft-ema"
        reason = f"its {channels} channels are latents of a first stage that is not in the file"
        raise UsageError(reason, where=path, hint=hint)
    spec, weights = read_first_stage(place)
    return spec, {f"first_stage.{name}": tensor for name, tensor in weights.items()}


def _labels(table: torch.Tensor | None, *, dropout: float) -> dict[str, Any]:
    """Return the condition of a config. The last row of a table trained with dropout is the null class."""
    if table is None:
        return {"condition": "none"}
    return {"condition": "labels", "num_classes": len(table) - (dropout > 0), "condition_dropout": dropout}


def _filled(generator: Diffusion, network: checkpoint.Tensors, labels: torch.Tensor | None) -> Diffusion:
    """Load the weights of the network, and label embeddings, which are added to the time embedding unchanged."""
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
    """Return the folder of the network, which is inside that of a pipeline."""
    return folder / "transformer" if (folder / "transformer").is_dir() else folder


def _sample_size(path: Path) -> int:
    """Return the side of a DiT's samples from diffusers' config. Errors: UsageError if the config has none."""
    config = _part(path) / "config.json"
    size = (
        read_json(config, CONFIG, any_integer=True).get("sample_size") if path.is_dir() and config.is_file() else None
    )
    if not isinstance(size, int):
        raise UsageError("unknown image size", where=path, hint="give the image size")
    return size
