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
from corecli.data.rows import REAL
from corecli.engine.schedule import Stage, check_warmup, parse_duration, parse_stage

if TYPE_CHECKING:
    from corecli.commands.train_ssl import Config


@dataclass(frozen=True, kw_only=True, eq=False)
class StagePlan(Stage):
    """A stage: its method with the options given for it, the views of an image and the slots of an epoch."""

    options: dict[str, str]
    entries: tuple[Entry, ...]
    augment: tuple[str, ...]
    slots: np.ndarray
    slot_stages: tuple[int, ...]
    warmup_steps: int

    @property
    def num_views(self) -> int:
        """Global views of an image."""
        return sum(entry.num_global for entry in self.entries)

    @property
    def num_local_views(self) -> int:
        """Local views of an image."""
        return sum(entry.num_local for entry in self.entries)


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
    sizes = {"hidden": config.projector_hidden, "dim": config.projector_dim}
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
        "epochs": round(sum(stage.steps * config.batch_size / len(stage.slots) for stage in stages), 2),
        "presentations": sum(stage.steps * config.batch_size * stage.num_views for stage in stages),
    }
    if any(stage.num_local_views for stage in stages):
        told["local_presentations"] = sum(s.steps * config.batch_size * s.num_local_views for s in stages)
    if paired is not None:
        real = data.rows.origins == REAL
        told["without_partner"] = int((real & ~has_partner(data.rows)).sum())
    return told


def _plan_stage(text: str, config: Config, data: ImageSet) -> StagePlan:
    method, length, views = parse_stage(text)
    registry.check("ssl", method, "method")
    told = registry.constants("ssl", method)
    entries = parse_views(views or config.views or told["VIEWS"])
    with about(config.data):
        slots, slot_stages = anchors(data.rows, data.slots, data.stages, entries)
    if len(slots) < config.batch_size:
        reason = f"{len(slots)} images are fewer than a batch of {config.batch_size}"
        raise DataError(reason, where=config.data, hint=f"give --batch-size {len(slots)} or less")
    epoch = len(slots) // config.batch_size
    stage = Stage(method=method, steps=length.to_steps(steps_per_epoch=epoch, batch_size=config.batch_size))
    return StagePlan(
        method=stage.method,
        steps=stage.steps,
        options={name: value for name, value in named_values(config.set).items() if name in told["Options"]},
        entries=entries,
        augment=config.augment or (told["AUGMENT"],),
        slots=slots,
        slot_stages=slot_stages,
        warmup_steps=_warmup_steps(config, stage, epoch),
    )


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
