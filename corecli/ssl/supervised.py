"""Cross-entropy on labels: the supervised yardstick, on augmented views."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from corecli.base.errors import DataError
from corecli.nets.encoder import Encoder
from corecli.nets.initial import seeded
from corecli.ssl.parts.losses import widened
from corecli.ssl.parts.method import Batch, Method, Needs, Task, check_views, embed

VIEWS, AUGMENT = "1g", "strong"
PROJECTOR = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of supervised."""

    label_smoothing: float = 0.0


def build(encoder: Encoder, *, options: Options, task: Task) -> Supervised:
    """A linear classifier on the backbone's features; the encoder's projector, which it would not train, is dropped.

    Errors: DataError unless the labels are of two classes or more.
    """
    check_views(task, method="supervised", views=(1, 2))
    if task.num_classes < 2:
        raise DataError("supervised needs labels of at least two classes", hint="class sub-folders give labels")
    encoder.set_projector(None)
    with seeded(task.seed, "supervised"):
        classifier = nn.Linear(encoder.num_features, task.num_classes)
    return Supervised(encoder, classifier, label_smoothing=options.label_smoothing)


class Supervised(Method):
    """Softmax cross-entropy, the mean over views; every label must be known."""

    needs: Needs = "labels"

    def __init__(self, encoder: Encoder, classifier: nn.Linear, *, label_smoothing: float) -> None:
        super().__init__(encoder)
        self.classifier, self.label_smoothing = classifier, label_smoothing

    def loss(self, batch: Batch) -> Tensor:
        h, _ = embed(self.encoder, batch.views)
        logits = widened(self.classifier(h.flatten(0, 1)))
        return F.cross_entropy(logits, batch.labels.repeat(len(h)), label_smoothing=self.label_smoothing)
