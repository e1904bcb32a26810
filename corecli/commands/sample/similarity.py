"""How similar samples are to what they were made from, in the features of an encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from corecli.base.errors import DataError
from corecli.commands.parts.layer import take_layer
from corecli.data.imageset import open_set
from corecli.engine.precision import autocast, place
from corecli.nets.encoder import Layer, load_encoder

if TYPE_CHECKING:
    from corecli.commands.sample.options import Config
    from corecli.data.features import FeatureTable
    from corecli.engine.dist import World


class Judge:
    """The encoder of --encoder, which compares samples with the table's rows, or with the images, they are made from.

    Errors: DataError when it is not the encoder of the table (--force accepts it), UsageError.
    """

    def __init__(self, config: Config, source: Any, world: World) -> None:
        assert config.encoder is not None
        self._config, self._rows, self._device = config, source.plan.source, world.device
        self._encoder = place(load_encoder(config.encoder), world.device).eval()
        self.fingerprint = self._encoder.fingerprint
        self._layer: Layer = "projector" if self._encoder.projector_dim else "backbone"
        self._table: FeatureTable | None = getattr(source, "table", None)
        if self._table is None:
            size = self._encoder.spec["preprocessing"]["image_size"]
            self._images = open_set(str(config.images), image_size=size)
            return
        if not config.force and self._table.header["encoder"] != self.fingerprint:
            hint = "name the encoder the table was extracted with; --force accepts another"
            raise DataError(f"not the encoder of {config.features}", where=config.encoder, hint=hint)
        self._layer = take_layer(self._encoder, self._table.header["layer"])

    @torch.no_grad()
    def similarity(self, images: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """The cosines float32 [B] of images, uint8 [B, 3, H, W], of rows start to stop of the plan."""
        return F.cosine_similarity(self._features(images), self._wanted(start, stop), dim=1)

    def keeps(self, similarity: torch.Tensor) -> torch.Tensor:
        """Which images --min-similarity lets pass, bool [B]."""
        lowest = self._config.min_similarity
        return torch.ones_like(similarity, dtype=torch.bool) if lowest is None else similarity >= lowest

    def _wanted(self, start: int, stop: int) -> torch.Tensor:
        rows = self._rows[start:stop]
        if self._table is not None:
            return self._table.features[rows].to(self._device)
        return self._features(self._images.read(rows))

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        with autocast(self._config.precision, self._device):
            return self._encoder.encode(images, self._layer)
