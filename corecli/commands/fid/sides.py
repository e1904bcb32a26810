"""The sides of a comparison of `corecli fid`: images, a feature table or statistics, in some feature space."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from corecli.base.files import sniff

if TYPE_CHECKING:
    import torch

    from corecli.data.statistics import Statistics
    from corecli.metrics.frechet import Gaussian, Moments

Kind = Literal["images", "features", "statistics", "batch"]

_BLOCK = 8192


def kind_of(spec: str) -> Kind:
    """What a user named; a batch is statistics beside the images they are of, as ADM's evaluator has them."""
    from corecli.base.checkpoint import read_header
    from corecli.data.statistics import holds_statistics

    path = Path(spec)
    found = sniff(path) if path.exists() else "missing"
    if found == "npz" and holds_statistics(path):
        return "batch" if "arr_0.npy" in zipfile.ZipFile(path).namelist() else "statistics"
    if found in ("safetensors", "torch"):
        header = read_header(path)
        if header is not None and header["kind"] == "features":
            return "features"
    return "images"


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """One side: what is known of it. Tensors have a row for each image.

    metric: what a Frechet distance in this space is called; given: statistics from a file, which the distances then
    use; features [N, D], spatial [N, 2023] and logits [N, 1008]; groups: int64 [N], equal for images that the
    jackknife keeps together; labels: int64 [N], -1 unknown.
    """

    spec: str
    metric: str
    space: str | None = None
    fingerprint: str | None = None
    given: Statistics | None = None
    features: torch.Tensor | None = None
    spatial: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    groups: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    labels: torch.Tensor | None = None
    class_names: Sequence[str] = ()
    notes: tuple[str, ...] = ()

    @property
    def num(self) -> int | None:
        """Images behind the mean, where that is known."""
        if self.given is not None:
            return self.given.num_images
        return None if self.features is None else len(self.features)

    @property
    def dim(self) -> int:
        """The number of features."""
        if self.given is not None:
            return len(self.given.mean)
        assert self.features is not None
        return self.features.shape[1]

    @property
    def has_labels(self) -> bool:
        """Whether every image has one."""
        return self.labels is not None and bool((self.labels >= 0).all())

    @cached_property
    def pooled(self) -> Moments | Gaussian:
        """Of the features, or as a file gave it."""
        return self._law(self.features, spatial=False)

    @cached_property
    def pooled_spatial(self) -> Moments | Gaussian:
        """Of the spatial features, for sFID."""
        return self._law(self.spatial, spatial=True)

    def has_spatial(self) -> bool:
        """Whether sFID can be computed."""
        return self.given.spatial_mean is not None if self.given is not None else self.spatial is not None

    def refuse_other_space(self, other: Side) -> None:
        """DataError unless the two can be of one feature space."""
        from corecli.data.statistics import Statistics, refuse_other_space

        none = np.zeros((0, 0))
        about = [
            Statistics(mean=np.zeros(side.dim), covariance=none, space=side.space, fingerprint=side.fingerprint)
            for side in (self, other)
        ]
        refuse_other_space(*about, where=self.spec)

    def statistics(self) -> Statistics:
        """Mean and covariance with the space they are in."""
        from corecli.data.statistics import Statistics
        from corecli.metrics.frechet import Gaussian

        if self.given is not None:
            return self.given
        found = {}
        for prefix, law in (("", self.pooled), ("spatial_", self.pooled_spatial if self.has_spatial() else None)):
            gaussian = law if law is None or isinstance(law, Gaussian) else law.gaussian()
            if gaussian is not None:
                found |= {f"{prefix}mean": gaussian.mean.cpu().numpy()}
                found |= {f"{prefix}covariance": gaussian.matrix().cpu().numpy()}
        return Statistics(space=self.space, fingerprint=self.fingerprint, num_images=self.num, **found)

    def _law(self, rows: torch.Tensor | None, *, spatial: bool) -> Moments | Gaussian:
        import torch

        from corecli.metrics.frechet import Gaussian, Moments

        if self.given is not None:
            mean, covariance = self.given.mean, self.given.covariance
            if spatial:
                mean, covariance = self.given.spatial_mean, self.given.spatial_covariance
            return Gaussian.of(torch.from_numpy(mean), torch.from_numpy(covariance), self.given.num_images)
        assert rows is not None
        moments, groups = Moments(rows.shape[1]), torch.from_numpy(self.groups)
        for block, numbers in zip(rows.split(_BLOCK), groups.split(_BLOCK), strict=True):
            moments.update(block, numbers)
        return moments


def read_table(spec: str) -> Side:
    """A feature table. Errors: MissingInputError, DataError."""
    import torch

    from corecli.data.features import load_features
    from corecli.data.rows import make_rows

    table = load_features(Path(spec))
    encoder = table.header.get("encoder")
    return Side(
        spec=spec,
        metric=f"fd[{str(encoder)[:8]}]",
        space=table.header.get("space"),
        fingerprint=encoder,
        features=table.features,
        groups=make_rows(table.keys, groups=table.groups).group_ids,
        labels=torch.from_numpy(table.labels),
        class_names=tuple(table.header.get("class_names") or ()),
    )


def read_given(spec: str) -> Side:
    """A statistics file. Errors: MissingInputError, DataError."""
    from corecli.data.statistics import read_statistics

    given = read_statistics(Path(spec))
    metric = "fid" if (given.space or "inception").startswith("inception") else "fd"
    return Side(spec=spec, metric=metric, space=given.space, fingerprint=given.fingerprint, given=given)
