"""Open sets, read their labels and compute their features, as the options of `probe` say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from corecli.base.errors import DataError
from corecli.commands.parts.inputs import fitted
from corecli.commands.probe.labels import ClassLists
from corecli.commands.probe.sets import check_classes, is_table
from corecli.data.features import FeatureTable, load_features
from corecli.data.imageset import ImageSet, open_set
from corecli.data.loader import Workers, read_batches
from corecli.data.order import sequential_batches
from corecli.data.pixels import OnBad
from corecli.data.strings import Strings, pack
from corecli.engine.dist import World, sum_over_ranks
from corecli.engine.precision import autocast
from corecli.engine.progress import Progress
from corecli.nets.encoder import Encoder, Layer


@dataclass(frozen=True, kw_only=True)
class Labeled:
    """The labeled rows of a set: their positions in it, their keys and labels, and the names of the classes.

    labels: int64 [N]; with --labels int8 [N, C]: 1 if the image has the class, 0 if not, -1 if the pair is ignored.
    """

    spec: str
    rows: np.ndarray
    keys: Strings
    labels: torch.Tensor
    class_names: tuple[str, ...]
    table: FeatureTable | None

    def take(self, indices: torch.Tensor) -> Labeled:
        """Return some of the rows."""
        picked = indices.numpy()
        return replace(self, rows=self.rows[picked], keys=self.keys.take(picked), labels=self.labels[indices])


@dataclass(frozen=True, kw_only=True)
class Reader:
    """An encoder with the processes that share it, and how images are read.

    image_size: images are resized and cropped to this side, in pixels; None leaves them as they are; batch_size: images
    per forward pass; shown: whether this process shows progress.
    """

    encoder: Encoder | None
    world: World
    layer: Layer = "backbone"
    precision: str = "auto"
    image_size: int | None = None
    on_bad: OnBad = "fail"
    workers: Workers = "auto"
    batch_size: int = 256
    shown: bool = False

    @property
    def net(self) -> Encoder:
        """The encoder, if one is needed."""
        assert self.encoder is not None
        return self.encoder

    @property
    def num_features(self) -> int:
        """The dimensions of the encoder's features."""
        return self.net.num_features if self.layer == "backbone" else self.net.projector_dim or 0

    def images(self, spec: str) -> ImageSet:
        """Open an image set. Errors: MissingInputError, DataError, UsageError."""
        data = open_set(spec, image_size=self.image_size, on_bad=self.on_bad)
        return data if self.encoder is None else fitted(data, self.encoder.spec["preprocessing"], spec)

    def labeled(self, spec: str, lists: ClassLists | None, *, least: int) -> Labeled:
        """Return the labeled rows of a table or an image set, without reading images; others are left out.

        lists: classes of images with several, which replace the set's own labels; least: number of classes needed.
        Errors: DataError if there are fewer classes, or `lists` have none of the keys.
        """
        table = load_features(Path(spec)) if is_table(spec) else None
        if table is not None:
            keys, labels, names = pack(table.keys), table.labels, tuple(table.header.get("class_names", ()))
        else:
            data = self.images(spec)
            keys, labels, names = data.rows.keys, data.rows.labels, data.class_names
        if lists is None:
            check_classes(labels, spec, least=least)
            known = np.flatnonzero(labels >= 0)
            labels = labels[known]
        else:
            known = np.array([row for row, key in enumerate(keys) if key in lists.own], dtype=np.int64)
            if not len(known):
                raise DataError(f"{lists.path} has none of its keys, such as {keys[0]!r}", where=spec)
            labels, names = lists.targets(list(keys.take(known))), lists.names
        return Labeled(
            spec=spec,
            rows=known,
            keys=keys.take(known),
            labels=torch.from_numpy(labels),
            class_names=names,
            table=table,
        )

    def num_dimensions(self, labeled: Labeled) -> int:
        """Return the dimensions of the features of a set."""
        return self.num_features if labeled.table is None else labeled.table.features.shape[1]

    def encode(self, views: torch.Tensor) -> torch.Tensor:
        """Return features [B, D] of views, float [B, 3, H, W] in [0, 1], with gradient."""
        with autocast(self.precision, self.world.device):
            h, z = self.net(views)
        return h if self.layer == "backbone" else z

    def features(self, labeled: Labeled, *, images: ImageSet | None = None) -> torch.Tensor:
        """Return features [N, D] of labeled rows, on the device: of a table, or computed from images.

        Processes share the images by batch, and each gets all features. `images` replaces the set's own, row by row.
        Errors: DataError if an image cannot be read, or features contain NaN or infinity.
        """
        if labeled.table is not None:
            return labeled.table.features[torch.from_numpy(labeled.rows)].to(self.world.device)
        features = self._encode_rows(labeled, images or self.images(labeled.spec))
        if not features.isfinite().all():
            raise DataError("features contain NaN or infinity", where=labeled.spec)
        return features.to(self.world.device)

    def _encode_rows(self, labeled: Labeled, data: ImageSet) -> torch.Tensor:
        num, world = len(labeled.rows), self.world
        features = torch.zeros(num, self.num_features)
        with Progress(f"probe {labeled.spec}", total=num, shown=self.shown) as progress:
            places = list(sequential_batches(num, self.batch_size, rank=world.rank, world_size=world.size))
            batches = (labeled.rows[place] for place in places)
            read = read_batches(data, batches, device=world.device, workers=self.workers)
            for place, (batch, _) in zip(places, read, strict=True):
                with autocast(self.precision, world.device):
                    features[place] = self.net.encode(batch, self.layer).cpu()
                progress.advance(len(place) * world.size, images=len(place) * world.size)
        return sum_over_ranks(features) if world.size > 1 else features
