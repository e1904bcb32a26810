"""MoCo v3: contrast predictions with the keys of the whole batch (Chen, Xie & He 2021, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from corecli.nets.encoder import Encoder
from corecli.nets.initial import seeded
from corecli.nets.projector import build_projector
from corecli.ssl.parts.losses import moco_v3
from corecli.ssl.parts.method import Batch, Context, check_temperature, check_views, embed
from corecli.ssl.parts.teacher import TaughtMethod

VIEWS, AUGMENT = "2g", "mocov3"
PROJECTOR = {"hidden": 4096, "dim": 256, "norm": "batch", "last_norm": "plain"}  # the authors' code, for ResNets
PROJECTOR_VIT = {"hidden": 4096, "dim": 256, "norm": "batch", "last_norm": "plain", "layers": 3}  # and for ViTs
TINY = {"set": ("predictor_hidden=32",)}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of mocov3."""

    temperature: float = 0.2  # the authors' code for ViTs; solo-learn; for ResNets the code has 1.0
    predictor_hidden: int = 4096  # section 5
    momentum_start: float = 0.99  # the authors' code, with a cosine; 0.996 for 1000 epochs
    momentum_end: float = 1.0
    freeze_patches: bool = True  # section 4.2: a ViT's patch embedding stays random, for stability


def build(encoder: Encoder, *, options: Options, context: Context) -> MoCoV3:
    """Build MoCo v3 with a predictor; it trains the encoder's projector. Errors: UsageError."""
    check_views(context, method="mocov3", views=(2,))
    check_temperature(options.temperature)
    dim = encoder.projector_dim or encoder.num_features
    is_vit = hasattr(encoder.backbone, "patch_embed")
    with seeded(context.seed, "mocov3"):
        predictor = build_projector(
            dim,
            {
                "hidden": options.predictor_hidden,
                "dim": dim,
                "norm": "batch",
                "last_norm": "plain" if is_vit else "none",  # the authors' code
            },
        )
    return MoCoV3(encoder, predictor, options=options)


class MoCoV3(TaughtMethod):
    """The contrasts of each view's prediction with the teacher's projections of the other view, added."""

    def __init__(self, encoder: Encoder, predictor: nn.Module, *, options: Options) -> None:
        super().__init__(encoder, momentum_start=options.momentum_start, momentum_end=options.momentum_end)
        self.predictor, self.temperature, self.freeze_patches = predictor, options.temperature, options.freeze_patches

    def loss(self, batch: Batch) -> Tensor:
        patches = getattr(self.encoder.backbone, "patch_embed", None) if self.freeze_patches else None
        with _frozen(patches):
            _, z = embed(self.encoder, batch.views)
        q0, q1 = self.predictor(z.flatten(0, 1)).chunk(2)
        k0, k1 = self.teach(batch.views)
        return moco_v3(q0, k1, temperature=self.temperature) + moco_v3(q1, k0, temperature=self.temperature)


@contextmanager
def _frozen(module: nn.Module | None) -> Iterator[None]:
    """Do not train `module` in the passes inside; a later stage may."""
    parameters = [p for p in module.parameters() if p.requires_grad] if module is not None else []
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
