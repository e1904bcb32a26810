"""The cosine similarity of images to what they were made from, in the features of an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from corecli.base.errors import DataError
from corecli.commands.parts.layer import take_layer
from corecli.data.imageset import open_set
from corecli.engine.precision import autocast, place
from corecli.nets.encoder import Layer, load_encoder

if TYPE_CHECKING:
    from corecli.data.features import FeatureTable


class Judge:
    """An encoder that compares image i with row source[i] of a feature table or of an image set.

    Errors: DataError if it is not the table's encoder, unless forced; UsageError.
    """

    def __init__(
        self,
        encoder: str,
        *,
        source: np.ndarray,
        table: FeatureTable | None,
        features: Path | None,
        images: str | None,
        min_similarity: float | None,
        precision: str,
        device: torch.device,
        force: bool,
    ) -> None:
        self.min_similarity = min_similarity
        self._rows, self._table, self._precision, self._device = source, table, precision, device
        self._encoder = place(load_encoder(encoder), device).eval()
        self.fingerprint = self._encoder.fingerprint
        self._layer: Layer = "projector" if self._encoder.projector_dim else "backbone"
        if table is None:
            size = self._encoder.spec["preprocessing"]["image_size"]
            self._images = open_set(str(images), image_size=size)
            return
        if not force and table.header["encoder"] != self.fingerprint:
            hint = "name the encoder the table was extracted with; --force accepts another"
            raise DataError(f"not the encoder of {features}", where=encoder, hint=hint)
        self._layer = take_layer(self._encoder, table.header["layer"])

    @torch.no_grad()
    def similarity(self, images: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Return the cosine similarities, float32 [B], of images start to stop, uint8 [B, 3, H, W]."""
        return F.cosine_similarity(self._features(images), self._expected(start, stop), dim=1)

    def keeps(self, similarity: torch.Tensor) -> torch.Tensor:
        """Return which images --min-similarity keeps, bool [B]."""
        lowest = self.min_similarity
        return torch.ones_like(similarity, dtype=torch.bool) if lowest is None else similarity >= lowest

    def _expected(self, start: int, stop: int) -> torch.Tensor:
        rows = self._rows[start:stop]
        if self._table is not None:
            return self._table.features[rows].to(self._device)
        return self._features(self._images.read(rows))

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        with autocast(self._precision, self._device):
            return self._encoder.encode(images, self._layer)
