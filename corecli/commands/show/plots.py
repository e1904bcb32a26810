"""Plots: the scatter plot of a feature table, and the curves of a training run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from corecli.base.documents import check, loads, read_bytes
from corecli.base.errors import DataError
from corecli.base.files import missing
from corecli.base.schemas import LOG_LINE
from corecli.commands.show.pictures import evenly

if TYPE_CHECKING:
    from corecli.data.features import FeatureTable

LOG = "log.jsonl"
_TIMES = ("seconds", "data_wait")  # of the machine, not of the training


def draw_scatter(out: Path, table: FeatureTable, *, embedding: str, shown: bool) -> tuple[str, ...]:
    """Draw a feature table as a scatter plot, colored by label; return notes. Errors: DataError below 4 rows."""
    import torch

    from corecli.draw.embedding import LARGEST_TSNE, NUM_STEPS, pca, tsne_2d
    from corecli.draw.plot import write_scatter
    from corecli.engine.progress import Progress

    if len(table) < 4:
        raise DataError(f"{len(table)} rows are too few for a scatter plot (at least 4)")
    features, labels, notes = table.features, table.labels, ()
    if embedding == "pca":
        points, shares = pca(features)
        first, second = (
            f"component {i + 1} ({100 * float(share):.1f} % of variance)" for i, share in enumerate(shares)
        )
        axes = (first, second)
    else:
        rows = evenly(len(table), LARGEST_TSNE)
        if len(rows) < len(table):
            notes = (f"t-SNE of {len(rows)} of {len(table)} rows, evenly chosen",)
        features, labels, axes = features[torch.from_numpy(rows)], labels[rows], ("", "")
        with Progress("t-SNE", total=NUM_STEPS, shown=shown) as progress:
            points = tsne_2d(features, steps=NUM_STEPS, step_done=progress.advance)
    title = f"{table.header.get('space') or 'features'}: {len(features)} images, {features.shape[1]} dimensions"
    names = table.header.get("class_names") or ()
    write_scatter(out, points.numpy(), labels, names=names, axes=axes, title=title)
    return notes


def draw_curves(out: Path, folder: Path, *, columns: int) -> None:
    """Draw a curve for each value that a run has logged. Errors: DataError, MissingInputError."""
    from corecli.draw.plot import write_curves

    write_curves(out, read_log(folder), columns=columns)


def read_log(folder: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Return {name: (steps, values)} of all numbers in the log of a run folder, in their order.

    A step without the number is omitted. A last line without an end is still being written and is ignored.
    Errors: DataError, MissingInputError.
    """
    path = folder / LOG
    if not path.exists():
        raise missing(path)
    found: dict[str, tuple[list[float], list[float]]] = {}
    for number, line in enumerate(read_bytes(path).decode(errors="replace").split("\n")[:-1], start=1):
        try:
            record = check(loads(line), LOG_LINE, where=path, path=f"line {number}")
        except ValueError as error:
            raise DataError(f"line {number} is not a record of a step", where=path) from error
        step = record.pop("step")
        for name, value in record.items():
            if isinstance(value, int | float) and math.isfinite(value) and name not in _TIMES:
                steps, values = found.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    if not found:
        raise DataError("the log has no values yet", where=path)
    return found
