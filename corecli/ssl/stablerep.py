"""StableRep: images of one caption attract, all others repel (Tian et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from corecli.base.errors import UsageError
from corecli.nets.encoder import Encoder
from corecli.ssl.parts.method import Batch, Method, Task, check_temperature, check_views, embed
from corecli.ssl.parts.multi_positive import LabelBy, check_label_by, labels_of, supervised_contrastive

VIEWS, AUGMENT = "1g", "moco"
PROJECTOR = {"hidden": 4096, "dim": 256, "norm": "batch", "layers": 3, "bias": True, "last_norm": "none"}  # the code


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of stablerep."""

    temperature: float = 0.1  # the authors' code
    label_by: LabelBy = "group"  # what attracts: images of one group (caption), one class, or one image (SimCLR)


def build(encoder: Encoder, *, options: Options, task: Task) -> StableRep:
    """StableRep on an encoder, whose projector it trains. Errors: UsageError."""
    check_views(task, method="stablerep", views=(1, 2, 3, 4))
    check_temperature(options.temperature)
    check_label_by(options.label_by)
    if options.label_by == "image" and task.num_views == 1:
        raise UsageError("one view of an image has nothing to attract", hint="give --views 2g, or label by group")
    return StableRep(encoder, options=options)


class StableRep(Method):
    """The multi-positive contrast among the projections of all views; an image alone repels only."""

    def __init__(self, encoder: Encoder, *, options: Options) -> None:
        super().__init__(encoder)
        self.options = options
        self.needs = "labels" if options.label_by == "class" else "nothing"

    def loss(self, batch: Batch) -> Tensor:
        _, z = embed(self.encoder, batch.views)
        return supervised_contrastive(z, labels_of(batch, self.options.label_by), temperature=self.options.temperature)
