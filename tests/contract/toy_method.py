"""Alignment and uniformity: views of an image agree, images spread over the sphere (Wang & Isola 2020, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.engine.dist import gather_with_gradient
from corecli.nets.encoder import Encoder
from corecli.ssl.parts.losses import widened
from corecli.ssl.parts.method import Batch, Context, Method, check_views, embed

VIEWS, AUGMENT = "2g", "weak"
PROJECTOR = {"hidden": 64, "dim": 32, "norm": "batch"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of toy-method."""

    spread: float = 1.0  # weight of uniformity


def build(encoder: Encoder, *, options: Options, context: Context) -> ToyMethod:
    check_views(context, method="toy-method", views=(2,))
    return ToyMethod(encoder, spread=options.spread)


class ToyMethod(Method):
    def __init__(self, encoder: Encoder, *, spread: float) -> None:
        super().__init__(encoder)
        self.spread = spread

    def loss(self, batch: Batch) -> Tensor:
        z = F.normalize(widened(embed(self.encoder, batch.views)[1]), dim=-1)
        alignment = (z[0] - z[1]).square().sum(dim=1).mean()
        kernels = [torch.pdist(gather_with_gradient(view)).square().mul(-2).exp() for view in z]
        return alignment + self.spread * torch.stack(kernels).mean(dim=1).log().mean()
