"""Learning rates as functions of the step, and lengths of training in steps, epochs or images. Imports no torch.

A run of several stages, such as `psl:10000` then `simclr:90000` (CORE, PSL-10K + G2R), restarts the warm-up and the
cosine in each stage, because each stage has its own objective.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from corecli.base.errors import UsageError

Shape = Literal["cosine", "linear", "constant"]

_UNITS = {
    "steps": ("", "step", "steps", "it"),
    "epochs": ("ep", "epoch", "epochs"),
    "images": ("img", "imgs", "image", "images"),
}
_SCALES = {"": 1, "k": 1_000, "m": 1_000_000}
_DURATION = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([km]?)\s*([a-z]*)\s*", re.IGNORECASE)

_LONGEST = 1e15


@dataclass(frozen=True, kw_only=True)
class Duration:
    """A length of training in steps, epochs or images."""

    value: float
    unit: Literal["steps", "epochs", "images"]

    def to_steps(self, *, steps_per_epoch: int, batch_size: int) -> int:
        """Return the length in steps, rounded up; `batch_size` counts the images of all processes."""
        steps = {"steps": 1.0, "epochs": float(steps_per_epoch), "images": 1 / batch_size}[self.unit]
        return math.ceil(self.value * steps)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A method and the number of its steps."""

    method: str
    steps: int


def learning_rate(step: int, *, peak: float, total_steps: int, warmup_steps: int = 0, shape: Shape = "cosine") -> float:
    """Return the learning rate of `step` in 0..total_steps-1: linear warm-up, then half a cosine, a line or constant.

    The warm-up starts at peak / (warmup_steps + 1), so that no step is wasted, and reaches the peak at `warmup_steps`.
    The cosine (Loshchilov & Hutter, SGDR, Eq. 5, without restarts) and the line reach 0 at `total_steps`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if shape == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if shape == "linear":
        return peak * (1 - min(progress, 1.0))
    return peak * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def weight_decay(step: int, *, start: float, end: float, total_steps: int) -> float:
    """Return the weight decay of `step`, from start to end by half a cosine (DINO, appendix and code)."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * step / total_steps))


def parse_duration(text: str) -> Duration:
    """Parse `500`, `10k steps`, `10ep`, `0.5 epochs`, `100k images` or `100Kimg`. Errors: UsageError."""
    match = _DURATION.fullmatch(text)
    names = {name: unit for unit, aliases in _UNITS.items() for name in aliases}
    if match is None or match.group(3).lower() not in names:
        raise UsageError(f"{text!r} is not a length of training", hint="write 500, 10ep or 100k images")
    value = float(match.group(1)) * _SCALES[match.group(2).lower()]
    if value > _LONGEST:
        raise UsageError(f"{text[:40]!r} is too long", hint="no training takes more than 10^15 steps, epochs or images")
    unit = names[match.group(3).lower()]
    if unit == "steps" and not value.is_integer():
        raise UsageError(f"{text!r} is not a whole number of steps")
    return Duration(value=value, unit=unit)  # pyright: ignore[reportArgumentType]


def parse_stage(text: str) -> tuple[str, Duration, str | None]:
    """Parse `METHOD:DURATION[:VIEWS]`, such as `psl:10000`, `simclr:50ep` or `psl:10000:1g`. Errors: UsageError."""
    method, separator, rest = text.partition(":")
    length, _, views = rest.partition(":")
    if not (method and separator):
        raise UsageError(f"stage {text!r} has no length", hint="write METHOD:STEPS, such as psl:10000")
    return method, parse_duration(length), views or None


def find_stage(stages: Sequence[Stage], step: int) -> tuple[int, int]:
    """Return (index of the stage that contains `step` of the run, step within that stage)."""
    for index, stage in enumerate(stages):
        if step < stage.steps:
            return index, step
        step -= stage.steps
    raise IndexError(f"step {step} is after the last stage")


def check_warmup(stages: Sequence[Stage], warmup_steps: int) -> None:
    """Check that every stage has steps left after the warm-up. Errors: UsageError."""
    for stage in stages:
        if stage.steps < 1:
            raise UsageError(f"stage {stage.method} has no steps")
        if warmup_steps >= stage.steps:
            hint = "lower --warmup"
            raise UsageError(f"a warm-up of {warmup_steps} steps leaves none of the {stage.steps} steps", hint=hint)
