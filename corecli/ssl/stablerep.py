"""StableRep: images of one caption attract, all others repel (Tian et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from corecli.base.errors import UsageError
from corecli.nets.encoder import Encoder
from corecli.ssl.parts.method import Batch, Context, Method, check_temperature, check_views, embed
from corecli.ssl.parts.multi_positive import LabelBy, check_label_by, labels_of, supervised_contrastive

VIEWS, AUGMENT = "1g", "moco"
PROJECTOR = {"hidden": 4096, "dim": 256, "norm": "batch", "layers": 3, "bias": True, "last_norm": "none"}  # the code


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of stablerep."""

    temperature: float = 0.1  # the authors' code
    label_by: LabelBy = "group"  # positives: images of a group (caption) or class, or views of an image (SimCLR)


def build(encoder: Encoder, *, options: Options, context: Context) -> StableRep:
    """Build StableRep; it trains the encoder's projector. Errors: UsageError."""
    check_views(context, method="stablerep", views=(1, 2, 3, 4))
    check_temperature(options.temperature)
    check_label_by(options.label_by)
    if options.label_by == "image" and context.num_views == 1:
        raise UsageError("label-by=image needs 2 views of an image", hint="give --views 2g, or --set label-by=group")
    return StableRep(encoder, options=options)


class StableRep(Method):
    """The multi-positive contrast among the projections of all views; images without a positive are negatives only."""

    def __init__(self, encoder: Encoder, *, options: Options) -> None:
        super().__init__(encoder)
        self.options = options
        self.needs = "labels" if options.label_by == "class" else "nothing"

    def loss(self, batch: Batch) -> Tensor:
        _, z = embed(self.encoder, batch.views)
        return supervised_contrastive(z, labels_of(batch, self.options.label_by), temperature=self.options.temperature)
