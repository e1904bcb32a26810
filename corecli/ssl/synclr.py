"""SynCLR: contrast crops of one caption's images with a teacher's, and predict masked patches (Tian et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from corecli.base.errors import UsageError
from corecli.engine.dist import current_rank, gather_with_gradient
from corecli.nets import vit
from corecli.nets.encoder import Encoder
from corecli.nets.initial import seeded
from corecli.nets.projector import ProjectorSpec, build_projector
from corecli.ssl.parts.method import (
    Batch,
    Context,
    Method,
    Published,
    check_temperature,
    check_views,
    embed,
)
from corecli.ssl.parts.multi_positive import LabelBy, check_label_by, labels_of, multi_positive, places
from corecli.ssl.parts.prototypes import PatchHead, draw_mask, ibot, num_masked, sinkhorn_knopp
from corecli.ssl.parts.teacher import check_momentum, cosine_momentum, follow, teacher_of

VIEWS, AUGMENT = "1g4l", "synclr"
PROJECTOR = {"hidden": 4096, "dim": 256, "norm": "batch", "layers": 3, "last_norm": "plain"}  # section 3.4: MoCo v3's
TINY = {
    "backbone": "vit-micro/4",
    "set": ("prototypes=24", "predictor_hidden=32", "patch_hidden=32", "patch_dim=16", "warmup_steps=8"),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of synclr."""

    label_by: LabelBy = "group"  # positives: images of a group (caption) or class, or views of an image (SimCLR)
    temperature: float = 0.08  # section 3.4; the authors' code: 0.1
    ema: bool = True  # keys from an averaged teacher; else from the student, with gradient and without predictor
    momentum_start: float = 0.994  # section 3.3, with a cosine
    momentum_end: float = 1.0
    predictor_hidden: int = 4096  # MoCo v3's
    ibot: float = 1.0  # weight of the patch loss; 0 turns it and the masks off
    prototypes: int = 8192  # the authors' command; the paper: 65536
    patch_hidden: int = 2048  # DINO's head
    patch_dim: int = 256
    masked_images: float = 0.5  # section 3.4: share of images that are masked
    masked_patches: float = 0.5  # section 3.4: share of their patches that are masked
    student_temperature: float = 0.1  # DINO's
    teacher_temperature: float = 0.07  # section 3.4, after a linear warm-up
    warmup_temperature: float = 0.04
    warmup_steps: int = 4000


def build(encoder: Encoder, *, options: Options, context: Context) -> SynCLR:
    """Build SynCLR with a predictor and a patch head; it trains the encoder's projector. Errors: UsageError."""
    check_views(context, method="synclr", views=(1, 2), local_views=True)
    for temperature in (
        options.temperature,
        options.student_temperature,
        options.teacher_temperature,
        options.warmup_temperature,
    ):
        check_temperature(temperature)
    check_momentum(options.momentum_start, options.momentum_end)
    check_label_by(options.label_by)
    if options.label_by == "image" and context.num_views + context.num_local_views == 1:
        raise UsageError("label-by=image needs 2 views of an image", hint="give --views 2g, or --set label-by=group")
    with seeded(context.seed, "synclr"):
        predictor = _predictor(encoder, options.predictor_hidden) if options.ema else nn.Identity()
        patches = _patch_head(encoder, options) if options.ibot else None
    return SynCLR(encoder, predictor, patches, options=options, context=context)


def _predictor(encoder: Encoder, hidden: int) -> nn.Module:
    """Return two layers with the norms of the projector."""
    spec = encoder.spec["projector"]
    dim = encoder.projector_dim or encoder.num_features
    norms = {"norm": spec["norm"], "last_norm": spec.get("last_norm", "none")} if spec else {"norm": "none"}
    return build_projector(dim, cast(ProjectorSpec, {"hidden": hidden, "dim": dim, **norms}))


def _patch_head(encoder: Encoder, options: Options) -> PatchHead:
    if not options.ema:
        raise UsageError("the patch loss needs a teacher", hint="give --set ema=true or --set ibot=0")
    if not vit.is_vit(encoder.backbone):
        raise UsageError(f"{encoder.spec['backbone']} has no patches to mask", hint="use a ViT, or --set ibot=0")
    for name in ("masked_images", "masked_patches"):
        if not 0 < getattr(options, name) <= 1:
            raise UsageError(f"{name} must be above 0 and at most 1, not {getattr(options, name):g}")
    if options.prototypes < 2:
        raise UsageError(f"synclr needs at least 2 prototypes, not {options.prototypes}")
    return PatchHead(
        encoder.num_features, hidden=options.patch_hidden, dim=options.patch_dim, prototypes=options.prototypes
    )


class SynCLR(Method):
    """The contrast of global crops, some of them masked, that of local crops, and the patch loss (SynCLR, Eq. 4).

    One pass of the student through the global crops serves the contrast and the patch loss. The keys are the teacher's
    projections of the unmasked global crops of all ranks, without the anchor's own crop. The teacher is in training
    mode, as in `TaughtMethod`.
    """

    publishes: Published = "teacher"  # as in DINO and iBOT; the paper does not say

    def __init__(
        self, encoder: Encoder, predictor: nn.Module, patches: PatchHead | None, *, options: Options, context: Context
    ) -> None:
        super().__init__(encoder, teacher=teacher_of(encoder) if options.ema else None)
        self.publishes = "teacher" if options.ema else "student"
        self.needs = "labels" if options.label_by == "class" else "nothing"
        self.options, self.context, self.predictor = options, context, predictor
        self.patches, self.teacher_patches = patches, None if patches is None else teacher_of(patches)
        self.mask_token = None
        if patches is not None:
            with seeded(context.seed, "mask token"):
                self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, encoder.num_features))
            self.notes = self._notes()

    def loss(self, batch: Batch) -> Tensor:
        labels = labels_of(batch, self.options.label_by)
        mask = None if self.patches is None else self._mask(batch)
        z, hidden = _embed(self.encoder, batch.views, mask, token=self.mask_token)
        with torch.no_grad():
            keys, shown = (z, None) if self.teacher is None else _embed(self.teacher, batch.views, mask)
        keys, key_labels = (gather_with_gradient(x) for x in (keys.flatten(0, 1), labels.repeat(len(keys))))
        loss = self._contrast(z, keys, labels, key_labels, itself=places(z.flatten(0, 1)))
        if batch.local_views:
            loss = loss + self._contrast(embed(self.encoder, batch.local_views)[1], keys, labels, key_labels)
        if hidden is not None and shown is not None:
            loss = loss + self.options.ibot * self._patch_loss(hidden, shown, batch.step)
        return loss

    def after_step(self, step: int, total_steps: int) -> None:
        momentum = cosine_momentum(self.options.momentum_start, self.options.momentum_end, step, total_steps)
        for teacher, student in ((self.teacher, self.encoder), (self.teacher_patches, self.patches)):
            if teacher is not None and student is not None:
                follow(teacher, student, momentum)

    def teacher_temperature(self, step: int) -> float:
        """Return the teacher's temperature in `step`."""
        start, end, warmup = (
            self.options.warmup_temperature,
            self.options.teacher_temperature,
            self.options.warmup_steps,
        )
        return end if step >= warmup else start + (end - start) * step / warmup

    def _contrast(
        self, z: Tensor, keys: Tensor, labels: Tensor, key_labels: Tensor, itself: Tensor | None = None
    ) -> Tensor:
        """Return the contrast of projections z [V, B, P] of this rank with the keys of all ranks."""
        anchors, temperature = self.predictor(z.flatten(0, 1)), self.options.temperature
        labels = labels.repeat(len(z))
        return multi_positive(anchors, keys, labels, key_labels, temperature=temperature, itself=itself)

    def _patch_loss(self, hidden: Tensor, shown: Tensor, step: int) -> Tensor:
        """Return the loss of masked patches [M, D]: the student's tokens `hidden`, the teacher's `shown`."""
        assert self.patches is not None
        assert self.teacher_patches is not None
        with torch.no_grad():
            logits = self.teacher_patches(shown)
        assignments = sinkhorn_knopp(logits, temperature=self.teacher_temperature(step))
        return ibot(self.patches(hidden), assignments, temperature=self.options.student_temperature)

    def _mask(self, batch: Batch) -> np.ndarray:
        """Return bool [V * B, T]: this rank's rows of the mask of the global batch."""
        num_views, num_images = len(batch.views), self.context.batch_size
        height, width = vit.grid_of(self.encoder.backbone, *batch.views[0].shape[-2:])
        mask = draw_mask(
            seed=self.context.seed,
            step=batch.step,
            part=batch.part,
            num_images=num_views * num_images,
            num_patches=height * width,
            images=self.options.masked_images,
            patches=self.options.masked_patches,
        )
        share = len(batch.labels)
        first = current_rank() * share
        return mask.reshape(num_views, num_images, -1)[:, first : first + share].reshape(num_views * share, -1)

    def _notes(self) -> tuple[str, ...]:
        size = self.encoder.spec["preprocessing"]["image_size"] or vit.DEFAULT_PX
        height, width = vit.grid_of(self.encoder.backbone, size, size)
        images = num_masked(self.context.num_views * self.context.batch_size, self.options.masked_images)
        patches, prototypes = images * num_masked(height * width, self.options.masked_patches), self.options.prototypes
        if prototypes <= patches:
            return ()
        return (
            f"{prototypes} prototypes exceed the {patches} masked patches of a batch: give --set prototypes={patches}",
        )


def _embed(
    encoder: Encoder, views: tuple[Tensor, ...], mask: np.ndarray | None, *, token: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return projections [V, B, P] and the tokens of masked patches [M, D]; `token` replaces these at the input."""
    if mask is None:
        return embed(encoder, views)[1], None
    hidden = None if token is None else torch.from_numpy(mask).to(views[0].device, non_blocking=True)
    with vit.watch_patches(encoder.backbone, mask=hidden, token=token) as seen:
        _, z = embed(encoder, views)
    rows = torch.from_numpy(np.flatnonzero(mask)).to(z.device, non_blocking=True)
    return z, seen[0].flatten(0, 1).index_select(0, rows)
