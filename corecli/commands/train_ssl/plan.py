"""The stages of a training run of `train-ssl`: what each is going to do, as far as can be told without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from corecli.base import registry
from corecli.base.config import named_values
from corecli.base.errors import DataError, UsageError, about, unknown_name
from corecli.data.imageset import ImageSet
from corecli.data.members import Entry, anchors, pairs, parse_views
from corecli.data.mix import has_partner
from corecli.data.order import Sets
from corecli.data.rows import REAL
from corecli.engine.schedule import Stage, check_warmup, parse_duration, parse_stage
from corecli.views.policies import Policy, local_policy, parse_changes, view_policies

if TYPE_CHECKING:
    from corecli.commands.train_ssl.options import Config


@dataclass(frozen=True, kw_only=True, eq=False)
class StagePlan(Stage):
    """A stage: its method with the options given for it, the views of an image and the slots of an epoch."""

    options: dict[str, str]
    entries: tuple[Entry, ...]
    policies: tuple[Policy, ...]  # of the global views
    local_policy: Policy
    slots: np.ndarray
    segments: tuple[int, ...]
    sets: Sets | None
    warmup_steps: int

    @property
    def num_views(self) -> int:
        """Global views of an image."""
        return len(self.policies)

    @property
    def num_local_views(self) -> int:
        """Local views of an image."""
        return sum(entry.num_local for entry in self.entries)

    @property
    def epoch_images(self) -> int:
        """Images of an epoch."""
        return _epoch_images(self.slots, self.segments, self.sets)


def plan_stages(config: Config, data: ImageSet) -> tuple[StagePlan, ...]:
    """The stages in turn: of --stage, or the one of --method and --steps.

    Errors: UsageError; DataError when an epoch does not fill a batch, or there is nothing to pair.
    """
    texts = config.stage or (f"{config.method}:{config.steps}",)
    stages = tuple(_plan_stage(text, config, data) for text in texts)
    _check_options(config, stages)
    return stages


def projector_of(config: Config, stages: tuple[StagePlan, ...]) -> Any:
    """The spec of the projector the last method was published with, in the sizes asked for; None when none has one."""
    told = [registry.constants("ssl", stage.method) for stage in stages]
    is_vit = config.backbone.startswith(("vit-", "timm:vit"))
    published = [of["PROJECTOR_VIT"] if is_vit and "PROJECTOR_VIT" in of else of["PROJECTOR"] for of in told]
    spec = next((spec for spec in reversed(published) if spec is not None), None)
    sizes = {"hidden": config.projector_hidden, "dim": config.projector_dim, "norm": config.projector_norm}
    given = {name: size for name, size in sizes.items() if size is not None}
    return None if spec is None else {**spec, **given}


def local_px(config: Config, image_size: int) -> int:
    """The side of local views: as asked for, or 96 of 224 px (DINO) in proportion, up to a multiple of 8."""
    return config.local_px or min(image_size, 8 * math.ceil(image_size * 96 / 224 / 8))


def account(config: Config, data: ImageSet, stages: tuple[StagePlan, ...]) -> dict[str, Any]:
    """What training is going to cost and show: told before it starts, so that runs can be compared at equal cost."""
    paired = next((stage for stage in stages if pairs(stage.entries)), None)
    told: dict[str, Any] = {
        "plan": ", ".join(f"{stage.method} for {stage.steps} steps" for stage in stages),
        "total_steps": sum(stage.steps for stage in stages),
        "views": "; ".join(dict.fromkeys(_spelled(stage.entries) for stage in stages)),
        "epochs": round(sum(stage.steps * config.batch_size / stage.epoch_images for stage in stages), 2),
        "presentations": sum(stage.steps * config.batch_size * stage.num_views for stage in stages),
    }
    if any(stage.num_local_views for stage in stages):
        told["local_presentations"] = sum(s.steps * config.batch_size * s.num_local_views for s in stages)
    if stages[0].sets is not None:
        told["short_groups"] = stages[0].sets.num_short(stages[0].slots)
    if num_alone := max(_num_alone(stage, data) for stage in stages):
        told["alone_in_their_group"] = num_alone
    if paired is not None:
        real = data.rows.origins == REAL
        told["without_partner"] = int((real & ~has_partner(data.rows)).sum())
    return told


def _plan_stage(text: str, config: Config, data: ImageSet) -> StagePlan:
    method, length, views = parse_stage(text)
    registry.check("ssl", method, "method")
    told = registry.constants("ssl", method)
    entries = parse_views(views or config.views or told["VIEWS"])
    augment = config.augment or (told["AUGMENT"],)
    changes = parse_changes(named_values(config.augment_set, option="--augment-set"))
    with about(config.data):
        slots, segments = anchors(data.rows, data.slots, data.segments, entries)
    sets = _sets(config, data, entries)
    num_images = _epoch_images(slots, segments, sets)
    if num_images < config.batch_size:
        reason = f"{num_images} images are fewer than a batch of {config.batch_size}"
        raise DataError(reason, where=config.data, hint=f"give --batch-size {num_images} or less")
    epoch = num_images // config.batch_size
    stage = Stage(method=method, steps=length.to_steps(steps_per_epoch=epoch, batch_size=config.batch_size))
    plan = StagePlan(
        method=stage.method,
        steps=stage.steps,
        options={name: value for name, value in named_values(config.set).items() if name in told["Options"]},
        entries=entries,
        policies=view_policies(augment, num_views=sum(entry.num_global for entry in entries), changes=changes),
        local_policy=local_policy(augment, changes=changes),
        slots=slots,
        segments=segments,
        sets=sets,
        warmup_steps=_warmup_steps(config, stage, epoch),
    )
    if _num_alone(plan, data) == len(slots) and not plan.num_local_views:
        hint = "give --views 2g, or --set label-by=class; inflate joins images by group"
        raise DataError("every image is alone in its group, so that nothing attracts", where=config.data, hint=hint)
    return plan


def _sets(config: Config, data: ImageSet, entries: tuple[Entry, ...]) -> Sets | None:
    """What --images-per-group asks for. Errors: UsageError where batches cannot be so."""
    size, part = config.images_per_group, config.batch_size // config.accumulate
    if config.batch_size % config.accumulate:
        raise UsageError(f"--batch-size {config.batch_size} is no multiple of --accumulate {config.accumulate}")
    if size == 1:
        return None
    if pairs(entries):
        raise UsageError("--images-per-group is for views of the image at hand", hint="give --views 2g")
    if config.guard or data.guard:
        raise UsageError("images of a group are to be kept apart (guard), not shown together", hint="drop one of both")
    if part % size:
        told = f"--batch-size {config.batch_size}" + (f" in {config.accumulate} parts" if config.accumulate > 1 else "")
        raise UsageError(f"{told} is no multiple of --images-per-group {size}")
    return Sets(groups=data.rows.group_ids, size=size)


def _epoch_images(slots: np.ndarray, segments: tuple[int, ...], sets: Sets | None) -> int:
    if sets is None:
        return len(slots)
    return sum(sets.num_images(rows) for rows in np.split(slots, np.cumsum(segments)[:-1]))


def _num_alone(stage: StagePlan, data: ImageSet) -> int:
    """Images that a contrast over groups has nothing for, as they are shown once and no other is of their group."""
    by = stage.options.get("label_by", registry.constants("ssl", stage.method)["Options"].get("label_by"))
    if by != "group" or stage.num_views > 1 or stage.sets is not None:
        return 0
    return int((np.bincount(data.rows.group_ids[stage.slots]) == 1).sum())


def _warmup_steps(config: Config, stage: Stage, epoch: int) -> int:
    if config.warmup == "auto":
        steps = min(stage.steps // 10, 10 * epoch)
    else:
        steps = parse_duration(config.warmup).to_steps(steps_per_epoch=epoch, batch_size=config.batch_size)
    check_warmup((stage,), steps)
    return steps


def _check_options(config: Config, stages: tuple[StagePlan, ...]) -> None:
    """UsageError for an option of --set that no stage's method has, or --synthetic-probability without a coin."""
    methods = list(dict.fromkeys(stage.method for stage in stages))
    known = [name for method in methods for name in registry.constants("ssl", method)["Options"]]
    for name in named_values(config.set):
        if name not in known:
            raise unknown_name(f"option of {' and '.join(methods)}", name, known)
    sources = {entry.source for stage in stages for entry in stage.entries}
    if config.synthetic_probability is not None and "mixed" not in sources:
        raise UsageError("--synthetic-probability is for mixed views", hint="give --views real:1g,mixed:1g")


def _spelled(entries: tuple[Entry, ...]) -> str:
    def spell(entry: Entry) -> str:
        counts = "".join(f"{n}{unit}" for n, unit in ((entry.num_global, "g"), (entry.num_local, "l")) if n)
        return counts if entry.source == "any" else f"{entry.source}:{counts}"

    return ",".join(map(spell, entries))
