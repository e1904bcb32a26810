"""Convert the weights of DiTs of the official repository and of diffusers to the names of ours.

Size, patch, channels and classes follow from names and shapes, the number of heads from the published sizes. diffusers
keeps a time embedding in every block; all are equal in a converted official checkpoint. diffusers also uses other
frequencies and another epsilon than those the weights were trained with; ours are the original ones.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch

from corecli.base.errors import DataError
from corecli.nets.dit import SIZES, positions

Tensors = dict[str, torch.Tensor]

_FIRST, _FIRST_OF_DIFFUSERS = "x_embedder.proj.weight", "pos_embed.proj.weight"
_PREFIXES = ("ema.", "", "model.", "module.")  # of the networks in a checkpoint, the one that is evaluated first
_TABLE = "y_embedder.embedding_table.weight"
_FROM_DIFFUSERS = (
    (r"^pos_embed\.proj\.", "x_embedder.proj."),
    (r"^transformer_blocks\.0\.norm1\.emb\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
    (r"^transformer_blocks\.0\.norm1\.emb\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
    (r"^transformer_blocks\.0\.norm1\.emb\.class_embedder\.embedding_table\.", "y_embedder.embedding_table."),
    (r"^transformer_blocks\.(\d+)\.norm1\.linear\.", r"blocks.\1.adaLN_modulation.1."),
    (r"^transformer_blocks\.(\d+)\.attn1\.to_out\.0\.", r"blocks.\1.attn.proj."),
    (r"^transformer_blocks\.(\d+)\.attn1\.to_", r"blocks.\1.attn."),
    (r"^transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.", r"blocks.\1.mlp.fc1."),
    (r"^transformer_blocks\.(\d+)\.ff\.net\.2\.", r"blocks.\1.mlp.fc2."),
    (r"^proj_out_1\.", "final_layer.adaLN_modulation.1."),
    (r"^proj_out_2\.", "final_layer.linear."),
)
_LATER_EMBEDDER = re.compile(r"^transformer_blocks\.[1-9]\d*\.norm1\.emb\.")


@dataclass(frozen=True, kw_only=True)
class DitWeights:
    """size: name in `dit.SIZES`. grid: patches per side, None if unknown. tensors: weights of `DiT`.

    labels: embeddings of the classes and, last, of no class, [classes + 1, width], which are added to the time
    embedding; None without classes.
    """

    size: str
    patch: int
    in_channels: int
    out_channels: int
    grid: int | None
    tensors: Tensors
    labels: torch.Tensor | None


def is_dit(tensors: Tensors) -> bool:
    """Whether these are weights of a DiT, by the names of either tool."""
    return _prefix(tensors) is not None


def convert(tensors: Tensors, *, where: object) -> DitWeights:
    """Convert a checkpoint; its averaged weights if it has them. Errors: DataError for an unknown size."""
    prefix = _prefix(tensors) or ""
    found = {n.removeprefix(prefix): t.float() for n, t in tensors.items() if n.startswith(prefix)}
    if _FIRST_OF_DIFFUSERS in found:
        found = _from_diffusers(found, where)
    found = {n: t for n, t in found.items() if n.startswith(("x_", "y_", "t_", "pos_", "blocks.", "final_"))}
    labels, table = found.pop(_TABLE, None), found.pop("pos_embed", None)
    width, in_channels, patch = found[_FIRST].shape[:3]
    depth = len({n.split(".")[1] for n in found if n.startswith("blocks.")})
    size = next((name for name, s in SIZES.items() if (s.width, s.depth) == (width, depth)), None)
    if size is None:
        known = ", ".join(f"{name} ({s.width}, {s.depth})" for name, s in SIZES.items())
        raise DataError(f"unknown DiT size: width {width}, depth {depth}", where=where, hint=f"known are {known}")
    return DitWeights(
        size=size,
        patch=patch,
        in_channels=in_channels,
        out_channels=found["final_layer.linear.bias"].shape[0] // patch**2,
        grid=None if table is None else _grid(table, where),
        tensors=found,
        labels=labels,
    )


def _prefix(tensors: Tensors) -> str | None:
    for prefix in _PREFIXES:
        if f"{prefix}{_FIRST}" in tensors and f"{prefix}final_layer.linear.weight" in tensors:
            return prefix
    return "" if {_FIRST_OF_DIFFUSERS, "proj_out_2.weight"} <= tensors.keys() else None


def _from_diffusers(tensors: Tensors, where: object) -> Tensors:
    """Rename to the official names and join queries, keys and values. Errors: DataError if time embeddings differ."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        if _LATER_EMBEDDER.match(name):
            first = re.sub(r"^transformer_blocks\.\d+\.", "transformer_blocks.0.", name)
            if not torch.equal(tensor, tensors[first]):
                hint = "diffusers trained the time embeddings of its blocks separately"
                raise DataError(f"{name!r} differs from that of the first block", where=where, hint=hint)
            continue
        for pattern, replacement in _FROM_DIFFUSERS:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    for name in [n for n in renamed if ".attn.q." in n]:
        parts = [renamed.pop(name.replace(".attn.q.", f".attn.{part}.")) for part in "qkv"]
        renamed[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return renamed


def _grid(table: torch.Tensor, where: object) -> int:
    """Return the patches per side of a table of positions. Errors: DataError if the positions differ from ours."""
    grid = math.isqrt(table.shape[1])
    if grid**2 != table.shape[1] or not torch.allclose(table[0], positions(grid, table.shape[2]), atol=1e-4):
        raise DataError("its positions are not the sines and cosines of a square grid", where=where)
    return grid
