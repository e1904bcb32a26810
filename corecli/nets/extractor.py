"""A feature space to measure in: the FID Inception network, or any encoder, by file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from corecli.base import checkpoint
from corecli.base.errors import DataError, UnavailableError, UsageError
from corecli.nets.encoder import Layer, load_encoder
from corecli.nets.inception import DIMS
from corecli.nets.weights.inception import PUBLIC_FILES, load_inception

Found = dict[str, Tensor]
_CPU_BATCH = 16  # the activations of more Inception images leave the processor's caches, which costs a seventh


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """uint8 images [B, 3, H, W] -> `features` float32 [B, D]; of the FID network also `logits` and `spatial`.

    metric: `fid` in the space of the FID network, else `fd[NAME]`, which must not be called FID.
    space: network, layer and resize; fingerprint: the hash of the weights; preprocessing: all that happens to images
    before them, as text. dims: the width of each tensor found.
    """

    metric: str
    space: str
    fingerprint: str
    preprocessing: str
    dims: Mapping[str, int]
    extract: Callable[[Tensor], Found]


def load_extractor(spec: str, *, layer: Layer, resize: str, device: torch.device) -> Extractor:
    """The network a user named: Inception weights by content, else an encoder as `load_encoder` takes it.

    Errors: UnavailableError naming the public file when there is none, DataError.
    """
    path = Path(spec)
    if not spec.startswith("timm:"):
        if not path.exists():
            hint = f"FID needs {PUBLIC_FILES[0]}, fetched once; any encoder file serves for an fd"
            raise UnavailableError("no such extractor", where=spec, hint=hint)
        if _looks_like_inception(path):
            if layer != "backbone":
                raise UsageError("Inception has no projector", where=spec, hint="drop --layer")
            return _inception(path, resize, device)
    if resize != "tf1":
        hint = "an encoder resizes as its own preprocessing says"
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
        dims={ours: DIMS[theirs] for ours, theirs in names.items()},
        extract=extract,
    )
