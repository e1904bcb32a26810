"""Names for the features of an encoder. Tables and generators store the name, and two of them compare by it.

A name is `backbone`, `projector`, or `backbone:POOL:BLOCKS` for pooled blocks of a vision transformer (`vit.pooled`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from corecli.nets.encoder import Encoder, Layer
    from corecli.nets.vit import Pool


def layer_name(layer: Literal["backbone", "projector"], pool: Pool | None, blocks: int | None) -> str:
    """Return the name of a layer, or of pooled blocks: by default class tokens and the last block."""
    return layer if pool is None and blocks is None else f"backbone:{pool or 'cls'}:{blocks or 1}"


def take_layer(encoder: Encoder, name: str) -> Layer:
    """Prepare an encoder to compute the features of a name; return the layer to pass to `Encoder.encode`.

    Pooling removes the projector, which changes the fingerprint. Errors: UsageError if the network cannot pool.
    """
    layer, _, pooling = name.partition(":")
    if pooling:
        pool, blocks = pooling.split(":")
        encoder.set_projector(None)
        encoder.set_pooling(cast("Pool", pool), int(blocks))
    return cast("Layer", layer)
