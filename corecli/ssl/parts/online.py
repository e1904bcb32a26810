"""Watching an encoder learn: an online linear probe on its detached features, and cheap figures on a fixed subset."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from corecli.engine.dist import World, average_gradients
from corecli.metrics.alignment_uniformity import alignment, uniformity
from corecli.metrics.effective_rank import effective_rank
from corecli.metrics.parts.knn import knn_classify
from corecli.nets.encoder import Encoder

_SUBSET = 512
_CHUNK = 128
_COLLAPSED_SPREAD, _COLLAPSED_RANK = 0.1, 1.5


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
    """Up to 512 rows spread evenly over the labeled ones, or over all where none is labeled."""
    known = np.flatnonzero(labels >= 0)
    rows = known if len(known) else np.arange(len(labels))
    return rows[np.linspace(0, len(rows) - 1, min(_SUBSET, len(rows))).astype(int)]


def figures(
    encoder: Encoder, images: torch.Tensor, labels: np.ndarray, pair: tuple[torch.Tensor, torch.Tensor]
) -> dict[str, float]:
    """Figures of uint8 images [N, 3, H, W] with labels [N], -1 unknown, and of two augmented views of them.

    effective_rank: of the backbone's features; knn: the accuracy of one half of them on the other; alignment and
    uniformity of the views, and spread, of the encoder's output, the projector's where it has one. spread: sqrt(D)
    times the mean deviation of an entry of the unit rows; about 1 when they fill the sphere, 0 when all are alike
    (SimSiam, section 4.1).
    """
    features = encoder.encode(images, "backbone", batch_size=_CHUNK)
    layer = "backbone" if encoder.projector is None else "projector"
    views = [encoder.encode(view, layer, batch_size=_CHUNK) for view in pair]
    found = {
        "effective_rank": effective_rank(features),
        "alignment": alignment(*views),
        "uniformity": uniformity(views[0]),
        "spread": float(F.normalize(views[0], dim=1).std(dim=0).mean()) * views[0].shape[1] ** 0.5,
    }
    known = torch.from_numpy(labels).to(features.device)
    bank, asked = known[::2], known[1::2]
    answerable = torch.isin(asked, bank) & (asked >= 0)
    if len(bank[bank >= 0].unique()) > 1 and answerable.any():
        result = knn_classify(features[::2], bank, features[1::2][answerable], asked[answerable])
        found["knn"] = result.top1
    return found


def has_collapsed(found: dict[str, float]) -> bool:
    """Whether `figures` tell that nearly all images have one feature."""
    return found["spread"] < _COLLAPSED_SPREAD or found["effective_rank"] < _COLLAPSED_RANK
