"""SimSiam: predict the other view's projection, without gradient to it (Chen & He 2021)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from corecli.nets.encoder import Encoder
from corecli.nets.initial import seeded
from corecli.nets.projector import build_projector
from corecli.ssl.parts.losses import negative_cosine
from corecli.ssl.parts.method import Batch, Context, Method, check_views, embed

VIEWS, AUGMENT = "2g", "moco"
PROJECTOR = {"hidden": 2048, "dim": 2048, "norm": "batch", "layers": 3, "last_norm": "plain"}  # section 3, and code
TINY = {"set": ("predictor_hidden=32",)}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of simsiam."""

    predictor_hidden: int = 512  # section 3
    constant_rate: bool = True  # the predictor's learning rate does not decay (section 4.2, Table 1c)


def build(encoder: Encoder, *, options: Options, context: Context) -> SimSiam:
    """Build SimSiam with a predictor; it trains the encoder's projector. Errors: UsageError."""
    check_views(context, method="simsiam", views=(2,))
    dim = encoder.projector_dim or encoder.num_features
    with seeded(context.seed, "simsiam"):
        predictor = build_projector(
            dim,
            {"hidden": options.predictor_hidden, "dim": dim, "norm": "batch", "bias": True, "last_norm": "none"},
        )
    return SimSiam(encoder, predictor, constant_rate=options.constant_rate)


class SimSiam(Method):
    """The negative cosine between each view's prediction and the other view's projection, averaged."""

    def __init__(self, encoder: Encoder, predictor: nn.Module, *, constant_rate: bool) -> None:
        super().__init__(encoder)
        self.predictor, self._constant_rate = predictor, constant_rate

    def loss(self, batch: Batch) -> Tensor:
        _, z = embed(self.encoder, batch.views)
        p0, p1 = self.predictor(z.flatten(0, 1)).chunk(2)
        return (negative_cosine(p0, z[1]) + negative_cosine(p1, z[0])) / 2

    def constant_rate(self) -> Iterable[nn.Parameter]:
        return self.predictor.parameters() if self._constant_rate else ()
