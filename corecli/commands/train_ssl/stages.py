"""The stages of a training run: the method, the views and the epoch of each, known without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from corecli.base import registry
from corecli.base.config import named_values
from corecli.base.errors import DataError, UsageError, unknown_name
from corecli.data.decode import Fit
from corecli.data.imageset import ImageSet
from corecli.data.members import Entry, anchors, pairs, parse_views
from corecli.data.mix import has_partner
from corecli.data.order import split
from corecli.data.rows import LARGE, REAL, Places, Rows, as_array
from corecli.data.sets import LargeSets, Sets
from corecli.engine.schedule import Stage
from corecli.views.policies import Policy, local_policy, parse_changes, view_policies


@dataclass(frozen=True, kw_only=True)
class StageViews:
    """The views of an image: `entries` say which members they show, policies how each is augmented."""

    entries: tuple[Entry, ...]
    policies: tuple[Policy, ...]  # one for each global view
    local_policy: Policy

    @property
    def num_global(self) -> int:
        """Global views of an image."""
        return len(self.policies)

    @property
    def num_local(self) -> int:
        """Local views of an image."""
        return sum(entry.num_local for entry in self.entries)


@dataclass(frozen=True, kw_only=True, eq=False)
class Epoch:
    """The slots of an epoch, and its segments; with `sets`, batches show images of a group together."""

    slots: Places
    segments: tuple[int, ...]
    sets: Sets | LargeSets | None

    @property
    def num_images(self) -> int:
        """Images of an epoch."""
        if self.sets is None:
            return len(self.slots)
        return sum(self.sets.num_images(rows) for rows in split(self.slots, self.segments))


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainStage(Stage):
    """A phase of --stage: a method and its steps, with the method's options, the views and the epoch."""

    options: dict[str, str]
    views: StageViews
    epoch: Epoch
    warmup_steps: int


def read_views(
    text: str,
    *,
    augment: Sequence[str],
    augment_set: Sequence[str],
    image_px: int,
    view_px: int | None,
    local_px: int | None,
) -> StageViews:
    """Return the views of --views, --augment and --augment-set for images of `image_px`. Errors: UsageError.

    view_px: side of global views; None: that of the image. By default, local views have 96 of 224 px (DINO) in
    proportion, rounded up to a multiple of 8.
    """
    entries = parse_views(text)
    changes = parse_changes(named_values(augment_set, option="--augment-set"))
    global_px = view_px or image_px
    local_px = local_px or min(global_px, 8 * math.ceil(global_px * 96 / 224 / 8))
    policies = view_policies(augment, num_views=sum(entry.num_global for entry in entries), changes=changes)
    return StageViews(
        entries=entries,
        policies=tuple(replace(policy, size=view_px) for policy in policies),
        local_policy=replace(local_policy(augment, changes=changes), size=local_px),
    )


def cuts_when_read(data: ImageSet, view_px: int | None) -> bool:
    """Whether views are cut by the processes that decode the images, which may then be of any size."""
    return view_px is not None and data.decodes


def eval_fit(*, view_px: int | None, eval_resize: int | None) -> Fit | None:
    """Return how the encoder sees images of any size after training; None without --view-px. Errors: UsageError.

    By default, photographs are resized to 8/7 of the views, such as 256 for 224 px.
    """
    if view_px is None:
        if eval_resize is not None:
            raise UsageError("--eval-resize needs --view-px", hint="give --view-px 224")
        return None
    if eval_resize is not None and eval_resize < view_px:
        raise UsageError(f"--eval-resize {eval_resize} is below --view-px {view_px}", hint="the crop would not fit")
    return Fit(crop=view_px, resize=eval_resize or round(view_px * 8 / 7))


def read_epoch(
    data: ImageSet, entries: tuple[Entry, ...], *, batch_size: int, num_parts: int, per_group: int, guard: bool
) -> Epoch:
    """Return an epoch over a set, with `per_group` images of a group together, in batches of `num_parts` parts.

    Errors: UsageError; DataError if an epoch does not fill a batch, or there is nothing to pair.
    """
    slots, segments = anchors(data.rows, data.slots, data.segments, entries)
    if batch_size % num_parts:
        raise UsageError(f"--batch-size {batch_size} is not a multiple of --accumulate {num_parts}")
    sets = None
    if per_group > 1:
        _check_sets(entries, batch_size, num_parts, per_group, guard=guard or data.guard)
        sets = _sets(data.rows, slots, segments, per_group)
    epoch = Epoch(slots=slots, segments=segments, sets=sets)
    if epoch.num_images < batch_size:
        hint = f"give --batch-size {epoch.num_images} or less"
        raise DataError(f"{epoch.num_images} images are fewer than a batch of {batch_size}", hint=hint)
    return epoch


def _sets(rows: Rows, slots: Places, segments: tuple[int, ...], size: int) -> Sets | LargeSets:
    is_whole = isinstance(slots, range) and slots == range(len(rows)) and len(segments) == 1
    if is_whole and len(rows) > LARGE:
        return LargeSets(rows=rows, size=size)
    return Sets(groups=rows.group_ids, size=size)


def _check_sets(entries: tuple[Entry, ...], batch_size: int, num_parts: int, per_group: int, *, guard: bool) -> None:
    """Raise UsageError if --images-per-group does not work with other options."""
    if pairs(entries):
        raise UsageError("--images-per-group does not work with paired views", hint="give --views 2g")
    if guard:
        raise UsageError("--images-per-group does not work with --guard", hint="drop one of them")
    if batch_size // num_parts % per_group:
        batch = f"--batch-size {batch_size}" + (f" in {num_parts} parts" if num_parts > 1 else "")
        raise UsageError(f"{batch} is not a multiple of --images-per-group {per_group}")


def num_alone(stage: TrainStage, rows: Rows) -> int:
    """Return the number of images without a positive, if a method contrasts groups over one global view."""
    published = registry.constants("ssl", stage.method)["Options"]
    if stage.options.get("label_by", published.get("label_by")) != "group":
        return 0
    if stage.views.num_global > 1 or stage.epoch.sets is not None:
        return 0
    if rows.are_alone and isinstance(stage.epoch.slots, range):
        return len(stage.epoch.slots)
    return int((np.bincount(rows.groups_of(as_array(stage.epoch.slots))) == 1).sum())


def check_positives(stage: TrainStage, rows: Rows) -> None:
    """Raise DataError if no image has a positive."""
    if num_alone(stage, rows) == len(stage.epoch.slots) and not stage.views.num_local:
        hint = "give --views 2g, or --set label-by=class; inflate joins images by group"
        raise DataError("no positive pairs: every group has one image", hint=hint)


def check_unused_options(stages: Sequence[TrainStage], given: Mapping[str, str], probability: float | None) -> None:
    """Raise UsageError for an option of --set that no method has, or an unused --synthetic-probability."""
    methods = list(dict.fromkeys(stage.method for stage in stages))
    known = [name for method in methods for name in registry.constants("ssl", method)["Options"]]
    for name in given:
        if name not in known:
            raise unknown_name(f"option of {' and '.join(methods)}", name, known)
    sources = {entry.source for stage in stages for entry in stage.views.entries}
    if probability is not None and "mixed" not in sources:
        raise UsageError("--synthetic-probability needs mixed views", hint="give --views real:1g,mixed:1g")


def projector_spec(methods: Sequence[str], backbone: str, sizes: Mapping[str, Any]) -> Any:
    """Return the published projector of the last method that has one, with the given sizes; None if none has one."""
    is_vit = backbone.startswith(("vit-", "timm:vit"))
    constants = [registry.constants("ssl", method) for method in methods]
    published = [c["PROJECTOR_VIT"] if is_vit and "PROJECTOR_VIT" in c else c["PROJECTOR"] for c in constants]
    spec = next((spec for spec in reversed(published) if spec is not None), None)
    given = {name: size for name, size in sizes.items() if size is not None}
    return None if spec is None else {**spec, **given}


def plan_of(stages: Sequence[TrainStage], rows: Rows, batch_size: int) -> dict[str, Any]:
    """Return what --dry-run prints: the cost of training and the images shown, so that runs compare at equal cost."""
    shown: dict[str, Any] = {
        "plan": ", ".join(f"{stage.method} for {stage.steps} steps" for stage in stages),
        "total_steps": sum(stage.steps for stage in stages),
        "views": "; ".join(dict.fromkeys(_spell(stage.views.entries) for stage in stages)),
        "epochs": round(sum(stage.steps * batch_size / stage.epoch.num_images for stage in stages), 2),
        "presentations": sum(stage.steps * batch_size * stage.views.num_global for stage in stages),
    }
    if any(stage.views.num_local for stage in stages):
        shown["local_presentations"] = sum(stage.steps * batch_size * stage.views.num_local for stage in stages)
    if (sets := stages[0].epoch.sets) is not None:
        shown["short_groups"] = sets.num_short(stages[0].epoch.slots)
    if alone := max(num_alone(stage, rows) for stage in stages):
        shown["alone_in_their_group"] = alone
    if any(pairs(stage.views.entries) for stage in stages):
        shown["without_partner"] = int(((rows.origins == REAL) & ~has_partner(rows)).sum())
    return shown


def _spell(entries: tuple[Entry, ...]) -> str:
    def spell(entry: Entry) -> str:
        counts = "".join(f"{n}{unit}" for n, unit in ((entry.num_global, "g"), (entry.num_local, "l")) if n)
        return counts if entry.source == "any" else f"{entry.source}:{counts}"

    return ",".join(map(spell, entries))
