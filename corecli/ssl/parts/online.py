"""Figures logged during training: the accuracy of an online linear probe, and measures on a fixed subset."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from corecli.engine.dist import World, average_gradients
from corecli.engine.optim import AdamW
from corecli.metrics.parts.alignment_uniformity import alignment, uniformity
from corecli.metrics.parts.effective_rank import effective_rank
from corecli.metrics.parts.knn import knn_classify
from corecli.nets.encoder import Encoder

_SUBSET = 512
_CHUNK = 128
_COLLAPSED_SPREAD, _COLLAPSED_RANK = 0.1, 1.5


class OnlineProbe(nn.Module):
    """A linear classifier trained beside the encoder on its detached backbone features.

    Its accuracy on augmented training images is what CIFAR tables of self-supervised learning report (solo-learn). It
    does not change the encoder.
    """

    def __init__(self, encoder: Encoder, num_classes: int, world: World) -> None:
        super().__init__()
        self.linear = nn.Linear(encoder.num_features, num_classes, device=world.device)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.optimizer = AdamW(self.linear.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
        self._world = world
        self._features: torch.Tensor | None = None
        encoder.backbone.register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, __: object, output: torch.Tensor) -> None:
        if self._features is None and output.requires_grad:
            self._features = output.detach()

    def learn(self, labels: torch.Tensor) -> torch.Tensor:
        """Take a step on the features of the last batch, or of its first part; return the accuracy, a scalar.

        labels: int64 [B], -1 where unknown.
        """
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
    """Return up to 512 rows spread evenly over the labeled rows, or over all rows when none has a label."""
    is_known = labels >= 0
    num = int(is_known.sum()) or len(labels)
    places = np.linspace(0, num - 1, min(_SUBSET, num)).astype(int)
    return places if num == len(labels) else np.flatnonzero(is_known)[places]


def figures(
    encoder: Encoder, images: torch.Tensor, labels: np.ndarray, pair: tuple[torch.Tensor, torch.Tensor]
) -> dict[str, float]:
    """Return measures of uint8 images [N, 3, H, W] with labels [N], -1 where unknown, and of two views of each.

    effective_rank: of the backbone's features; knn: accuracy of one half of the images with the other half as the bank;
    alignment, uniformity and spread: of the views at the projector's output, or the backbone's without a projector.
    spread is sqrt(D) times the mean standard deviation of an entry of the unit rows: about 1 when the rows fill the
    sphere, 0 when all are equal (SimSiam, section 4.1).
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
    bank, queries = known[::2], known[1::2]
    answerable = torch.isin(queries, bank) & (queries >= 0)
    if len(bank[bank >= 0].unique()) > 1 and answerable.any():
        result = knn_classify(features[::2], bank, features[1::2][answerable], queries[answerable])
        found["knn"] = result.top1
    return found


def has_collapsed(found: dict[str, float]) -> bool:
    """Whether `figures` show that nearly all images have the same feature."""
    return found["spread"] < _COLLAPSED_SPREAD or found["effective_rank"] < _COLLAPSED_RANK
