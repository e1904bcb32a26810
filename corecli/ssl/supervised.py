"""Supervised baseline: cross-entropy on labels, on augmented views."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from corecli.base.errors import DataError
from corecli.nets.encoder import Encoder
from corecli.nets.initial import seeded
from corecli.ssl.parts.losses import widened
from corecli.ssl.parts.method import Batch, Context, Method, Needs, check_views, embed

VIEWS, AUGMENT = "1g", "strong"
PROJECTOR = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of supervised."""

    label_smoothing: float = 0.0


def build(encoder: Encoder, *, options: Options, context: Context) -> Supervised:
    """Build a linear classifier on the backbone's features; the encoder's projector is removed, as nothing trains it.

    Errors: DataError unless there are labels of at least two classes.
    """
    check_views(context, method="supervised", views=(1, 2))
    if context.num_classes < 2:
        raise DataError("supervised needs labels of at least two classes", hint="class sub-folders give labels")
    encoder.set_projector(None)
    with seeded(context.seed, "supervised"):
        classifier = nn.Linear(encoder.num_features, context.num_classes)
    return Supervised(encoder, classifier, label_smoothing=options.label_smoothing)


class Supervised(Method):
    """Softmax cross-entropy, averaged over views; every label must be known."""

    needs: Needs = "labels"

    def __init__(self, encoder: Encoder, classifier: nn.Linear, *, label_smoothing: float) -> None:
        super().__init__(encoder)
        self.classifier, self.label_smoothing = classifier, label_smoothing

    def loss(self, batch: Batch) -> Tensor:
        h, _ = embed(self.encoder, batch.views)
        logits = widened(self.classifier(h.flatten(0, 1)))
        return F.cross_entropy(logits, batch.labels.repeat(len(h)), label_smoothing=self.label_smoothing)
