"""The two sides of a comparison: images, a feature table or statistics, each in some feature space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

    from corecli.data.statistics import Statistics
    from corecli.metrics.parts.frechet import Gaussian, Moments

Kind = Literal["images", "features", "statistics", "batch"]

_ROWS_PER_BLOCK = 8192


def kind_of(spec: str) -> Kind:
    """Return the kind of input that `spec` names; a batch has statistics and images, as for ADM's evaluator."""
    from corecli.base.archives import open_zip
    from corecli.base.checkpoint import find_header
    from corecli.data.statistics import holds_statistics

    path = Path(spec)
    if holds_statistics(path):
        with open_zip(path) as archive:
            return "batch" if "arr_0.npy" in archive.namelist() else "statistics"
    header = find_header(path)
    return "features" if header is not None and header["kind"] == "features" else "images"


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """One side of a comparison; tensors have one row per image.

    metric: name of a Frechet distance in this space; given: statistics from a file, which replace those of `features`
    in distances; features [N, D], spatial [N, 2023] and logits [N, 1008]; groups: int64 [N], equal for images that
    share a fold of the jackknife; labels: int64 [N], -1 unknown; notes: messages for stderr.
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
        """Number of images behind the mean, if known."""
        if self.given is not None:
            return self.given.num_images
        return None if self.features is None else len(self.features)

    @property
    def dim(self) -> int:
        """Number of features."""
        if self.given is not None:
            return len(self.given.mean)
        assert self.features is not None
        return self.features.shape[1]

    @property
    def has_labels(self) -> bool:
        """Whether every image has a label."""
        return self.labels is not None and bool((self.labels >= 0).all())

    @cached_property
    def moments(self) -> Moments | Gaussian:
        """Moments of the features, or the Gaussian of given statistics."""
        if self.given is not None:
            return _gaussian(self.given.mean, self.given.covariance, self.given.num_images)
        return self._moments(self.features)

    @cached_property
    def spatial_moments(self) -> Moments | Gaussian:
        """Moments of the spatial features, or the Gaussian of given statistics, for sFID."""
        if self.given is not None:
            return _gaussian(self.given.spatial_mean, self.given.spatial_covariance, self.given.num_images)
        return self._moments(self.spatial)

    def has_spatial(self) -> bool:
        """Whether sFID can be computed."""
        return self.given.spatial_mean is not None if self.given is not None else self.spatial is not None

    def check_same_space(self, other: Side) -> None:
        """Raise DataError if the two sides are in different feature spaces."""
        from corecli.data.statistics import Statistics, check_same_space

        none = np.zeros((0, 0))
        about = [
            Statistics(mean=np.zeros(side.dim), covariance=none, space=side.space, fingerprint=side.fingerprint)
            for side in (self, other)
        ]
        check_same_space(*about, where=self.spec)

    def statistics(self) -> Statistics:
        """Return mean and covariance, and the space that they are in."""
        from corecli.data.statistics import Statistics
        from corecli.metrics.parts.frechet import as_gaussian

        if self.given is not None:
            return self.given
        found = {}
        for prefix, moments in (("", self.moments), ("spatial_", self.spatial_moments if self.has_spatial() else None)):
            if moments is not None:
                gaussian = as_gaussian(moments)
                found |= {f"{prefix}mean": gaussian.mean.cpu().numpy()}
                found |= {f"{prefix}covariance": gaussian.matrix().cpu().numpy()}
        return Statistics(space=self.space, fingerprint=self.fingerprint, num_images=self.num, **found)

    def _moments(self, rows: torch.Tensor | None) -> Moments:
        import torch

        from corecli.metrics.parts.frechet import Moments

        assert rows is not None
        moments, groups = Moments(rows.shape[1]), torch.from_numpy(self.groups)
        for block, numbers in zip(rows.split(_ROWS_PER_BLOCK), groups.split(_ROWS_PER_BLOCK), strict=True):
            moments.update(block, numbers)
        return moments


def read_table(spec: str) -> Side:
    """Return a feature table as a side. Errors: MissingInputError, DataError."""
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
        groups=make_rows(table.keys, groups=table.groups, is_ours=True).group_ids,
        labels=torch.from_numpy(table.labels),
        class_names=tuple(table.header.get("class_names") or ()),
    )


def read_statistics_file(spec: str) -> Side:
    """Return a statistics file as a side. Errors: MissingInputError, DataError."""
    from corecli.data.statistics import read_statistics

    given = read_statistics(Path(spec))
    metric = "fid" if (given.space or "inception").startswith("inception") else "fd"
    return Side(spec=spec, metric=metric, space=given.space, fingerprint=given.fingerprint, given=given)


def _gaussian(mean: Any, covariance: Any, num_images: int | None) -> Gaussian:
    import torch

    from corecli.metrics.parts.frechet import Gaussian

    return Gaussian.of(torch.from_numpy(mean), torch.from_numpy(covariance), num_images)
