"""BYOL: predict the teacher's projection of the other view (Grill et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from corecli.nets.encoder import Encoder
from corecli.nets.initial import seeded
from corecli.nets.projector import build_projector
from corecli.ssl.parts.losses import byol_distance
from corecli.ssl.parts.method import Batch, Context, check_views, embed
from corecli.ssl.parts.teacher import TaughtMethod

VIEWS, AUGMENT = "2g", "byol"
PROJECTOR = {"hidden": 4096, "dim": 256, "norm": "batch", "bias": True, "last_norm": "none"}  # section 3.3; solo-learn
TINY = {"set": ("predictor_hidden=32",)}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of byol."""

    predictor_hidden: int = 4096  # section 3.3; solo-learn: 8192 for ImageNet-100
    momentum_start: float = 0.99  # solo-learn; the paper: 0.99 for 300 epochs (appendix J), 0.996 for 1000
    momentum_end: float = 1.0  # section 3.3


def build(encoder: Encoder, *, options: Options, context: Context) -> BYOL:
    """Build BYOL with a predictor; it trains the encoder's projector. Errors: UsageError."""
    check_views(context, method="byol", views=(2,))
    dim = encoder.projector_dim or encoder.num_features
    with seeded(context.seed, "byol"):
        predictor = build_projector(
            dim,
            {"hidden": options.predictor_hidden, "dim": dim, "norm": "batch", "bias": True, "last_norm": "none"},
        )
    return BYOL(encoder, predictor, options=options)


class BYOL(TaughtMethod):
    """The distances between each view's prediction and the teacher's projection of the other view, added."""

    def __init__(self, encoder: Encoder, predictor: nn.Module, *, options: Options) -> None:
        super().__init__(encoder, momentum_start=options.momentum_start, momentum_end=options.momentum_end)
        self.predictor = predictor

    def loss(self, batch: Batch) -> Tensor:
        _, z = embed(self.encoder, batch.views)
        p0, p1 = self.predictor(z.flatten(0, 1)).chunk(2)
        z0, z1 = self.teach(batch.views)
        return byol_distance(p0, z1) + byol_distance(p1, z0)
