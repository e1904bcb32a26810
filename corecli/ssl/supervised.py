"""Cross-entropy on labels: the supervised yardstick, on one augmented view."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from corecli.base.errors import DataError
from corecli.nets.encoder import Encoder
from corecli.nets.initial import seeded
from corecli.ssl._losses import widened
from corecli.ssl._method import Batch, Needs, Options, embed, resolve

DEFAULTS = Options()


def build(encoder: Encoder, *, options: Options) -> Supervised:
    """A linear classifier on the backbone's features; the encoder's projector, which it would not train, is dropped.

    Errors: DataError unless the labels are of two classes or more.
    """
    options = resolve(options, DEFAULTS, method="supervised")
    if options.num_classes is None or options.num_classes < 2:
        raise DataError("supervised needs labels of at least two classes", hint="class sub-folders give labels")
    encoder.drop_projector()
    with seeded(options.seed, "supervised"):
        classifier = nn.Linear(encoder.num_features, options.num_classes)
    return Supervised(encoder, classifier)


class Supervised(nn.Module):
    """Softmax cross-entropy; every label must be known."""

    num_views = 1
    needs: Needs = "labels"

    def __init__(self, encoder: Encoder, classifier: nn.Linear) -> None:
        super().__init__()
        self.encoder, self.classifier = encoder, classifier

    def loss(self, batch: Batch) -> Tensor:
        h, _ = embed(self.encoder, batch.views)
        return F.cross_entropy(widened(self.classifier(h[0])), batch.labels)

    def after_step(self, step: int, total_steps: int) -> None: ...
