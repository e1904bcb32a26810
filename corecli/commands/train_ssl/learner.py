"""The learner of `train-ssl`: what changes from step to step, saved and restored; and what it logs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from corecli.base import registry
from corecli.base.config import parse_fields
from corecli.base.errors import CorecliError, DataError, UsageError
from corecli.commands.train_ssl.stages import TrainStage
from corecli.commands.train_ssl.views import pair_of_views
from corecli.data.features import FeatureTable
from corecli.data.imageset import ImageSet
from corecli.data.rows import Rows, at
from corecli.engine import optim, schedule
from corecli.engine.dist import World, mean_over_ranks
from corecli.engine.progress import note
from corecli.engine.run import Tensors, merge, split
from corecli.nets.encoder import Encoder
from corecli.ssl.parts.method import Context, Method
from corecli.ssl.parts.online import OnlineProbe, figures, has_collapsed, subset_rows
from corecli.views.policies import Policy

Start = Callable[[TrainStage], tuple[Method, Optimizer]]


class Learner:
    """The method and the optimizer of the current stage, and the online probe, which is None without labels."""

    def __init__(
        self, stages: Sequence[TrainStage], start: Start, *, probe: OnlineProbe | None = None, quiet: bool = False
    ) -> None:
        """Enter the first stage; `start` returns the method and the optimizer of a stage."""
        self._stages, self._start, self.probe = stages, start, probe
        self._warned, self._quiet = set[str](), quiet
        self._enter(stages[0])

    def enter(self, step: int) -> tuple[TrainStage, int]:
        """Return the stage of a step of the run, and the step within the stage; start the stage if it is another."""
        index, stage_step = schedule.find_stage(self._stages, step)
        if self._stages[index] is not self._stage:
            self._enter(self._stages[index])
        return self._stage, stage_step

    def _enter(self, stage: TrainStage) -> None:
        self._stage = stage
        self.method, self.optimizer = self._start(stage)
        for warning in set(self.method.notes) - self._warned:
            self._warned.add(warning)
            if not self._quiet:
                note(f"train-ssl: warning: {warning}")

    def published(self, export: str) -> Encoder:
        """Return the encoder to write: that of --export, or with auto the one the method's authors evaluate."""
        chosen = self.method.publishes if export == "auto" else export
        if chosen == "teacher" and self.method.teacher is not None:
            return self.method.teacher
        return self.method.encoder

    def state(self) -> Tensors:
        """Return everything that changes, by name."""
        parts = {"method": self.method.state_dict(), "optimizer": optim.optimizer_tensors(self.optimizer)}
        if self.probe is not None:
            parts["probe"] = self.probe.state_dict()
            parts["probe_optimizer"] = optim.optimizer_tensors(self.probe.optimizer)
        return merge(**parts)

    def restore(self, tensors: Tensors, step: int) -> None:
        """Load what `state` returned after `step` steps, in the stage of the last of them."""
        self.enter(step - 1)
        parts = split(tensors)
        self.method.load_state_dict(parts["method"])
        optim.restore_optimizer(self.optimizer, parts["optimizer"])
        if self.probe is not None:
            self.probe.load_state_dict(parts["probe"])
            optim.restore_optimizer(self.probe.optimizer, parts["probe_optimizer"])


def build_method(stage: TrainStage, encoder: Encoder, context: Context) -> Method:
    """Return the method of a stage on an encoder. Errors: UsageError, DataError."""
    module = registry.load("ssl", stage.method, "method")
    options = module.Options(**parse_fields(module.Options, stage.options, where=stage.method))
    return module.build(encoder, options=options, context=context)


class Columns:
    """What methods may know of the rows of a set: labels, groups, and targets from a feature table.

    Errors: DataError if the table has no row for an image.
    """

    def __init__(self, rows: Rows, table: FeatureTable | None) -> None:
        self._rows, self._table = rows, table
        self._rows_of_table = range(0) if table is None else table.rows_of(rows.keys, or_groups=rows.groups)
        self.num_classes = int(rows.labels.max()) + 1
        self.num_unlabeled = int((rows.labels < 0).sum())
        self.target_dim = None if table is None else table.features.shape[1]

    def of(self, rows: np.ndarray, device: torch.device) -> dict[str, Any]:
        """Return "labels" and "groups" of some rows, int64 [b], and with a table "targets", float32 [b, D]."""
        known = {"labels": self._rows.labels[rows], "groups": self._rows.groups_of(rows)}
        tensors = {name: torch.from_numpy(column).to(device) for name, column in known.items()}
        if self._table is not None:
            tensors["targets"] = self._table.features[torch.from_numpy(at(self._rows_of_table, rows))].to(device)
        return tensors


def check_data(method: Method, name: str, columns: Columns, *, targets_may_idle: bool) -> None:
    """Raise DataError for images without a label, UsageError for missing or unused targets."""
    num_unlabeled = columns.num_unlabeled
    if method.needs == "labels" and num_unlabeled:
        raise DataError(
            f"{num_unlabeled} images have no label, and {name} needs labels", hint="class sub-folders give labels"
        )
    if method.needs == "features" and columns.target_dim is None:
        raise UsageError(f"{name} needs --features")
    if method.needs != "features" and columns.target_dim is not None and not targets_may_idle:
        raise UsageError(f"{name} does not use --features", hint="use a method such as psl, or drop --features")


class Monitor:
    """The figures of log steps: values of the step over all ranks, and measures of a fixed subset of the images."""

    def __init__(self, encoder: Encoder, data: ImageSet, world: World, *, out: Path, quiet: bool) -> None:
        self._encoder, self._data, self._world, self._out = encoder, data, world, out
        self._rows = subset_rows(data.rows.labels)
        self._images: torch.Tensor | None = None
        self._warns = world.is_main and not quiet

    def figures(self, step_values: dict[str, torch.Tensor], policy: Policy) -> dict[str, float]:
        """Return the figures to log. Errors: CorecliError if training has diverged."""
        values = {name: float(mean_over_ranks(value)) for name, value in step_values.items()}
        if not np.isfinite(values["loss"]):
            raise self._diverged(f"the loss is {values['loss']}")
        if self._world.is_main:
            # Photographs are read once, because decoding takes long.
            images = self._data.read(self._rows) if self._images is None else self._images
            self._images = images if self._data.decodes else None
            labels = self._data.rows.labels[self._rows]
            try:
                values |= figures(self._encoder, images, labels, pair_of_views(images, policy))
            except DataError as error:
                raise self._diverged(error.reason) from error
            self._warn_of_collapse(values)
        return values

    def _warn_of_collapse(self, values: dict[str, float]) -> None:
        if self._warns and has_collapsed(values):
            measured = f"spread {values['spread']:.3g}, effective rank {values['effective_rank']:.3g}"
            note(f"train-ssl: warning: the features have nearly collapsed: {measured}")
            self._warns = False

    def _diverged(self, sign: str) -> CorecliError:
        return CorecliError(f"training diverged: {sign}", where=self._out, hint="lower --lr")
