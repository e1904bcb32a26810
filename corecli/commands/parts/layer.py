"""Which features of an encoder, as a name that tables and generators carry, so that two of them compare by it.

A name is `backbone`, `projector`, or, of a vision transformer's blocks, `backbone:POOL:BLOCKS` (`vit.pooled`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from corecli.nets.encoder import Encoder, Layer
    from corecli.nets.vit import Pool


def layer_name(layer: Literal["backbone", "projector"], pool: Pool | None, blocks: int | None) -> str:
    """The name of a layer, or of what is pooled in its place: by default class tokens, and of the last block."""
    return layer if pool is None and blocks is None else f"backbone:{pool or 'cls'}:{blocks or 1}"


def take_layer(encoder: Encoder, name: str) -> Layer:
    """Let an encoder give the features of a name; the layer to ask it for.

    For pooled ones its projector is taken off, which changes its fingerprint. Errors: UsageError for networks without.
    """
    layer, _, pooling = name.partition(":")
    if pooling:
        pool, blocks = pooling.split(":")
        encoder.set_projector(None)
        encoder.set_pooling(cast("Pool", pool), int(blocks))
    return cast("Layer", layer)
