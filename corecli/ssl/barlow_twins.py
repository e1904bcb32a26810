"""Barlow Twins: the features of two views correlate one to one, and with nothing else (Zbontar et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from corecli.base.errors import UsageError
from corecli.nets.encoder import Encoder
from corecli.ssl.parts.method import Batch, Method, Task, check_views, embed
from corecli.ssl.parts.redundancy import barlow_twins

VIEWS, AUGMENT = "2g", "byol"
# solo-learn's width for CIFAR (4096 for ImageNet, the paper 8192); without biases, as the authors' code.
PROJECTOR = {"hidden": 2048, "dim": 2048, "norm": "batch", "layers": 3, "last_norm": "none"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of barlow-twins."""

    off_diagonal: float = 0.0051  # the authors' code; section 2.2: 0.005
    scale: float = 0.1  # solo-learn for CIFAR; 0.048 for ImageNet; the authors' code 0.024


def build(encoder: Encoder, *, options: Options, task: Task) -> BarlowTwins:
    """Barlow Twins on an encoder, whose projector it trains. Errors: UsageError."""
    check_views(task, method="barlow-twins", views=(2,))
    if not (options.off_diagonal >= 0 and options.scale > 0):
        raise UsageError("barlow-twins wants scale above 0 and off_diagonal not below it")
    return BarlowTwins(encoder, options=options)


class BarlowTwins(Method):
    """The scaled loss of the projections of two views."""

    def __init__(self, encoder: Encoder, *, options: Options) -> None:
        super().__init__(encoder)
        self.off_diagonal, self.scale = options.off_diagonal, options.scale

    def loss(self, batch: Batch) -> Tensor:
        _, z = embed(self.encoder, batch.views)
        return self.scale * barlow_twins(z[0], z[1], off_diagonal=self.off_diagonal)
