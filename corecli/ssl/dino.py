"""DINO: predict the prototypes that the teacher assigns to the other views (Caron et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from corecli.base.errors import UsageError
from corecli.nets.encoder import Encoder
from corecli.nets.initial import seeded
from corecli.ssl.parts.method import Batch, Context, Published, check_temperature, check_views, embed
from corecli.ssl.parts.prototypes import Prototypes, dino, next_center
from corecli.ssl.parts.teacher import TaughtMethod, follow, teacher_of

VIEWS, AUGMENT = "2g8l", "dino"
PROJECTOR = {"hidden": 2048, "dim": 256, "norm": "none", "layers": 3, "activation": "gelu"}  # section 3.1
TINY = {"set": ("prototypes=24", "warmup_epochs=0.2")}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of dino."""

    prototypes: int = 4096  # solo-learn for CIFAR; the paper: 65536
    student_temperature: float = 0.1  # section 3.2
    teacher_temperature: float = 0.07  # section 3.2, after a linear warm-up
    warmup_temperature: float = 0.04  # section 3.2
    warmup_epochs: float = 30.0  # section 3.2
    centre_momentum: float = 0.9  # the authors' code
    momentum_start: float = 0.996  # section 3.1, with a cosine; the authors advise 0.9995 for batches of 256
    momentum_end: float = 1.0
    # The authors' code: the prototypes are not trained at first, here for at most a tenth of the stage.
    freeze_epochs: float = 1.0


def build(encoder: Encoder, *, options: Options, context: Context) -> DINO:
    """Build DINO with prototypes; it trains the encoder's projector. Errors: UsageError."""
    check_views(context, method="dino", views=(2,), local_views=True)
    for temperature in (options.student_temperature, options.teacher_temperature, options.warmup_temperature):
        check_temperature(temperature)
    if options.prototypes < 2:
        raise UsageError(f"dino needs at least 2 prototypes, not {options.prototypes}")
    with seeded(context.seed, "dino"):
        prototypes = Prototypes(options.prototypes, encoder.projector_dim or encoder.num_features)
    return DINO(encoder, prototypes, options=options, steps_per_epoch=context.steps_per_epoch)


class DINO(TaughtMethod):
    """The cross-entropy of the student's views with the teacher's global views, centered and sharpened."""

    publishes: Published = "teacher"  # as the authors evaluate it
    accumulates = False
    centre: Tensor

    def __init__(self, encoder: Encoder, prototypes: Prototypes, *, options: Options, steps_per_epoch: int) -> None:
        super().__init__(encoder, momentum_start=options.momentum_start, momentum_end=options.momentum_end)
        self.options, self.steps_per_epoch = options, steps_per_epoch
        self.prototypes, self.teacher_prototypes = prototypes, teacher_of(prototypes)
        self.register_buffer("centre", torch.zeros(options.prototypes))
        self._next_center = self.centre

    def loss(self, batch: Batch) -> Tensor:
        frozen = self.is_frozen(batch.step, batch.total_steps)
        student = [
            logits
            for views in (batch.views, batch.local_views)
            if views
            for logits in self.prototypes(embed(self.encoder, views)[1], frozen=frozen)
        ]
        with torch.no_grad():
            teacher = list(self.teacher_prototypes(self.teach(batch.views)))
            self._next_center = next_center(self.centre, teacher, momentum=self.options.centre_momentum)
        return dino(
            student,
            teacher,
            center=self.centre,
            student_temperature=self.options.student_temperature,
            teacher_temperature=self.teacher_temperature(batch.step),
        )

    def after_step(self, step: int, total_steps: int) -> None:
        super().after_step(step, total_steps)
        follow(self.teacher_prototypes, self.prototypes, self.momentum(step, total_steps))
        self.centre.copy_(self._next_center)

    def teacher_temperature(self, step: int) -> float:
        """Return the teacher's temperature in `step`."""
        start, end = self.options.warmup_temperature, self.options.teacher_temperature
        warmup_steps = self.options.warmup_epochs * self.steps_per_epoch
        return end if step >= warmup_steps else start + (end - start) * step / warmup_steps

    def is_frozen(self, step: int, total_steps: int) -> bool:
        """Whether the prototypes are not trained in `step`."""
        return step < min(int(self.options.freeze_epochs * self.steps_per_epoch), total_steps // 10)
