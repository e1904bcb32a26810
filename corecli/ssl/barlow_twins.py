"""Barlow Twins: make the cross-correlation of the features of two views the identity (Zbontar et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from corecli.base.errors import UsageError
from corecli.nets.encoder import Encoder
from corecli.ssl.parts.losses import barlow_twins
from corecli.ssl.parts.method import Batch, Context, Method, check_views, embed

VIEWS, AUGMENT = "2g", "byol"
# solo-learn's width for CIFAR (ImageNet: 4096; the paper: 8192); no biases, as in the authors' code.
PROJECTOR = {"hidden": 2048, "dim": 2048, "norm": "batch", "layers": 3, "last_norm": "none"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of barlow-twins."""

    off_diagonal: float = 0.0051  # the authors' code; section 2.2: 0.005
    scale: float = 0.1  # solo-learn for CIFAR; 0.048 for ImageNet; the authors' code 0.024


def build(encoder: Encoder, *, options: Options, context: Context) -> BarlowTwins:
    """Build Barlow Twins; it trains the encoder's projector. Errors: UsageError."""
    check_views(context, method="barlow-twins", views=(2,))
    if not (options.off_diagonal >= 0 and options.scale > 0):
        raise UsageError("barlow-twins needs scale above 0 and off_diagonal at least 0")
    return BarlowTwins(encoder, options=options)


class BarlowTwins(Method):
    """The loss of the projections of two views, times `scale`."""

    def __init__(self, encoder: Encoder, *, options: Options) -> None:
        super().__init__(encoder)
        self.off_diagonal, self.scale = options.off_diagonal, options.scale

    def loss(self, batch: Batch) -> Tensor:
        _, z = embed(self.encoder, batch.views)
        return self.scale * barlow_twins(z[0], z[1], off_diagonal=self.off_diagonal)
