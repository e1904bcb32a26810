"""Watching an encoder learn: an online linear probe on its detached features, and cheap figures on a fixed subset."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from corecli.engine.dist import World, average_gradients
from corecli.metrics.effective_rank import effective_rank
from corecli.metrics.knn import knn_classify
from corecli.nets.encoder import Encoder

_SUBSET = 512
_CHUNK = 128


class OnlineProbe(nn.Module):
    """A linear classifier trained beside the encoder on its detached backbone features.

    Its accuracy, on augmented training images, is what the field's CIFAR tables report (solo-learn); it only watches,
    so the encoder is the same with and without it.
    """

    def __init__(self, encoder: Encoder, num_classes: int, world: World) -> None:
        super().__init__()
        self.linear = nn.Linear(encoder.num_features, num_classes, device=world.device)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.optimizer = torch.optim.AdamW(self.linear.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
        self._world = world
        self._features: torch.Tensor | None = None
        encoder.backbone.register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, __: object, output: torch.Tensor) -> None:
        if self._features is None and output.requires_grad:
            self._features = output.detach()

    def learn(self, labels: torch.Tensor) -> torch.Tensor:
        """Take a step on the features of the batch just seen; labels int64 [B], -1 unknown; returns its accuracy."""
        assert self._features is not None, "the encoder has not seen a batch since the last call"
        features, self._features = self._features[: len(labels)].flatten(1).float(), None
        known = labels >= 0
        logits = self.linear(features[known])
        loss = F.cross_entropy(logits, labels[known], reduction="sum") / max(1, int(known.sum()))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.linear.parameters(), self._world)
        self.optimizer.step()
        return (logits.argmax(dim=1) == labels[known]).float().mean()


def subset_rows(labels: np.ndarray) -> np.ndarray:
    """Up to 512 rows spread evenly over the labelled ones, or over all where none is labelled."""
    known = np.flatnonzero(labels >= 0)
    rows = known if len(known) else np.arange(len(labels))
    return rows[np.linspace(0, len(rows) - 1, min(_SUBSET, len(rows))).astype(int)]


def figures(encoder: Encoder, images: torch.Tensor, labels: np.ndarray) -> dict[str, float]:
    """Effective rank of the backbone features of uint8 images, and k-NN accuracy of one half of them on the other."""
    features = torch.cat([encoder.encode(part, "backbone") for part in images.split(_CHUNK)])
    found = {"effective_rank": effective_rank(features)}
    known = torch.from_numpy(labels)
    bank, asked = known[::2], known[1::2]
    answerable = torch.isin(asked, bank) & (asked >= 0)
    if len(bank[bank >= 0].unique()) > 1 and answerable.any():
        result = knn_classify(features[::2], bank, features[1::2][answerable], asked[answerable])
        found["knn"] = result.top1
    return found
