"""Supervised contrastive learning: views of one class attract, all others repel (Khosla et al. 2020, L_out)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from corecli.nets.encoder import Encoder
from corecli.ssl.parts.method import Batch, Context, Method, Needs, check_temperature, check_views, embed
from corecli.ssl.parts.multi_positive import supervised_contrastive

VIEWS, AUGMENT = "2g", "strong"
PROJECTOR = {"hidden": 2048, "dim": 128, "norm": "none"}  # section 3.1


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of supcon."""

    temperature: float = 0.1  # the paper's training details; solo-learn: 0.2


def build(encoder: Encoder, *, options: Options, context: Context) -> SupCon:
    """Build SupCon; it trains the encoder's projector. Errors: UsageError."""
    check_views(context, method="supcon", views=(1, 2, 3, 4))
    check_temperature(options.temperature)
    return SupCon(encoder, temperature=options.temperature)


class SupCon(Method):
    """L_out of the projections of all views; every label must be known.

    With one view, an image that is alone in its class in the global batch is only a negative.
    """

    needs: Needs = "labels"

    def __init__(self, encoder: Encoder, *, temperature: float) -> None:
        super().__init__(encoder)
        self.temperature = temperature

    def loss(self, batch: Batch) -> Tensor:
        _, z = embed(self.encoder, batch.views)
        return supervised_contrastive(z, batch.labels, temperature=self.temperature)
