"""SimCLR: contrast two views of an image with all other views of the batch (Chen et al. 2020, Eq. 1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from corecli.nets.encoder import Encoder
from corecli.ssl.parts.losses import nt_xent
from corecli.ssl.parts.method import Batch, Context, Method, check_temperature, check_views, embed

VIEWS, AUGMENT = "2g", "strong"
PROJECTOR = {"hidden": 2048, "dim": 128, "norm": "none"}  # CORE, Table 9; no BatchNorm, as in solo-learn


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of simclr."""

    temperature: float = 0.2  # CORE, Table 9; solo-learn


def build(encoder: Encoder, *, options: Options, context: Context) -> SimCLR:
    """Build SimCLR; it trains the encoder's projector. Errors: UsageError unless the temperature is above 0."""
    check_views(context, method="simclr", views=(2,))
    check_temperature(options.temperature)
    return SimCLR(encoder, temperature=options.temperature)


class SimCLR(Method):
    """NT-Xent of the projections of two views."""

    def __init__(self, encoder: Encoder, *, temperature: float) -> None:
        super().__init__(encoder)
        self.temperature = temperature

    def loss(self, batch: Batch) -> Tensor:
        _, z = embed(self.encoder, batch.views)
        return nt_xent(z[0], z[1], temperature=self.temperature)
