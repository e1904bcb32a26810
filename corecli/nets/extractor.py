"""The network whose features `fid` compares: the FID Inception network or any encoder, loaded from a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corecli.base import checkpoint
from corecli.base.errors import DataError, UnavailableError, UsageError
from corecli.nets.encoder import Layer, load_encoder
from corecli.nets.inception import DIMS
from corecli.nets.resize import SIZE_PX
from corecli.nets.weights.inception import PUBLIC_FILES, load_inception

Found = dict[str, Tensor]
_CPU_BATCH = 16  # larger batches of Inception do not fit the CPU caches and are a seventh slower


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A function from uint8 images [B, 3, H, W] to `features` float32 [B, D]; Inception also gives logits and spatial.

    metric: name of a Frechet distance in this space: `fid` for the FID network, else `fd[NAME]`; space: network, layer
    and resize; fingerprint: hash of the weights; preprocessing: description of the preprocessing; seen: the
    size, resize and interpolation for images of different sizes; dims: width of each
    tensor that `extract` returns.
    """

    metric: str
    space: str
    fingerprint: str
    preprocessing: str
    seen: Mapping[str, Any]
    dims: Mapping[str, int]
    extract: Callable[[Tensor], Found]


def load_extractor(spec: str, *, layer: Layer, resize: str, device: torch.device) -> Extractor:
    """Load FID Inception weights, recognized by content, or an encoder as in `load_encoder`.

    Errors: UnavailableError if the file does not exist, naming the public weights; DataError; UsageError.
    """
    path = Path(spec)
    if not spec.startswith("timm:"):
        if not path.exists():
            hint = f"download {PUBLIC_FILES[0]} for FID, or use any encoder"
            raise UnavailableError("extractor not found", where=spec, hint=hint)
        if _looks_like_inception(path):
            if layer != "backbone":
                raise UsageError("Inception has no projector", where=spec, hint="drop --layer")
            return _inception(path, resize, device)
    if resize != "tf1":
        hint = "drop --resize; an encoder uses its own preprocessing"
        raise UsageError("--resize is for Inception weights", where=spec, hint=hint)
    encoder = load_encoder(spec).to(device).eval()
    dim = encoder.num_features if layer == "backbone" else encoder.projector_dim
    if dim is None:
        raise DataError("this encoder has no projector", where=spec, hint="use --layer backbone")
    return Extractor(
        metric=f"fd[{path.stem}]",
        space=f"{encoder.spec['backbone']}/{layer}",
        fingerprint=encoder.fingerprint,
        preprocessing=json.dumps(encoder.spec, sort_keys=True),
        seen=encoder.spec["preprocessing"],
        dims={"features": dim},
        extract=lambda images: {"features": encoder.encode(images, layer)},
    )


def _looks_like_inception(path: Path) -> bool:
    if checkpoint.find_header(path) is not None:
        return False
    return any("Mixed_7c" in name or name.startswith("layers.") for name in checkpoint.load_tensors(path))


def _inception(path: Path, resize: str, device: torch.device) -> Extractor:
    net = load_inception(path).to(device)

    names = {"features": "pool", "logits": "logits", "spatial": "spatial"}

    def extract(images: Tensor) -> Found:
        parts = images.split(_CPU_BATCH if device.type == "cpu" else len(images))
        found = [net.features(part, resize) for part in parts]
        return {ours: torch.cat([part[theirs] for part in found]) for ours, theirs in names.items()}

    return Extractor(
        metric="fid",
        space=f"inception/pool/{resize}",
        fingerprint=net.fingerprint or "",
        preprocessing=resize,
        seen={"image_size": SIZE_PX, "interpolation": "bicubic"},
        dims={ours: DIMS[theirs] for ours, theirs in names.items()},
        extract=extract,
    )
