"""The condition of every image: features, a label or a caption."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from corecli.base.errors import DataError
from corecli.data.features import FeatureTable
from corecli.data.imageset import ImageSet


@dataclass(frozen=True, kw_only=True, eq=False)
class Conditions:
    """The conditions of N images.

    kind: "none", "features", "labels" or "captions". values: one condition a row, or None.
    which: row of `values` for each image, int64 [N]; None means that image i has row i.
    header: what a generator's file records about them.
    """

    kind: str
    values: torch.Tensor | None = None
    which: np.ndarray | None = None
    header: dict[str, Any] = field(default_factory=dict)

    def of(self, rows: np.ndarray, device: torch.device) -> torch.Tensor | None:
        """Return the conditions of some images, on a device."""
        if self.values is None:
            return None
        return self.values[rows if self.which is None else self.which[rows]].to(device)


def read_conditions(kind: str, data: ImageSet, table: FeatureTable | None) -> Conditions:
    """Return the labels of a set's images, or their features from a table; none for another kind.

    Errors: DataError if images have no label, or no row in the table.
    """
    if kind == "labels":
        labels = torch.from_numpy(np.array(data.rows.labels))
        if bool((labels < 0).any()):
            num = int((labels < 0).sum())
            raise DataError(f"{num} images have no label", hint="--condition labels needs a label for every image")
        return Conditions(kind=kind, values=labels, header={"kind": kind})
    if table is None:
        return Conditions(kind=kind, header={"kind": kind})
    header = {"kind": kind, "encoder": table.header.get("encoder"), "layer": table.header.get("layer")}
    rows = table.rows_of(data.rows.keys, or_groups=data.rows.groups)
    return Conditions(kind=kind, values=table.features, which=None if isinstance(rows, range) else rows, header=header)
