"""Masked patches are told by the prototypes that a teacher, who sees them, shares out among them (iBOT; DINOv2)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corecli.base.rng import numpy_generator
from corecli.engine.dist import gather_with_gradient, mean_over_ranks
from corecli.nets.projector import build_projector
from corecli.ssl.parts.losses import full_precision, widened
from corecli.ssl.parts.prototypes import Prototypes


class PatchHead(nn.Module):
    """Tokens [..., D] -> logits of K prototypes: an MLP, unit length, and directions of learned scale (DINO; iBOT)."""

    def __init__(self, num_features: int, *, hidden: int, dim: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = build_projector(
            num_features, {"hidden": hidden, "dim": dim, "norm": "none", "layers": 3, "activation": "gelu"}
        )
        self.prototypes = Prototypes(prototypes, dim, learned_scale=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.prototypes(self.mlp(tokens))


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, *, temperature: float, num_iterations: int = 3) -> Tensor:
    """Shares of K prototypes for each patch, [M, K], rows that sum to 1 (SwAV, Eq. 4; SynCLR, 3.3).

    exp(logits / temperature), scaled in turn so that every prototype has as much of the patches of all ranks as any
    other, and every patch is shared out whole. In logarithms, in float32 or wider: it overflows for no logits, and the
    constants of the usual form cancel. Ranks may hold different numbers of patches, or none.
    """
    with full_precision(logits):
        log_q = widened(logits) / temperature
        for _ in range(num_iterations):
            log_q -= gather_with_gradient(log_q.logsumexp(dim=0, keepdim=True)).logsumexp(dim=0)
            log_q -= log_q.logsumexp(dim=1, keepdim=True)
        return log_q.exp_()


def ibot(student: Tensor, shares: Tensor, *, temperature: float) -> Tensor:
    """The cross-entropy of the student's prototypes with the teacher's: the mean over masked patches (iBOT, Eq. 2).

    student: logits [M, K] of this rank's masked patches; shares: [M, K] of the teacher for these, without gradient.
    Masked images have as many masked patches as one another, so that this is the mean over masked images of the mean
    over their patches.
    """
    with full_precision(student):
        total = F.cross_entropy(widened(student) / temperature, shares.detach(), reduction="sum")
        return total / mean_over_ranks(torch.full_like(total, len(student)))


def num_masked(num: int, share: float) -> int:
    """How many of `num` a share is, one at least."""
    return max(1, round(share * num))


def draw_mask(
    *, seed: int, step: int, part: int, num_images: int, num_patches: int, images: float, patches: float
) -> np.ndarray:
    """bool [B, T]: a share of the images, each with a share of its patches masked, at random (SynCLR, section 3.4).

    It belongs to the global batch, or a part of it, and is a function of (seed, step, part). All masked images have
    equally many.
    """
    g = numpy_generator(seed, "mask", step, part)
    chosen = g.permutation(num_images)[: num_masked(num_images, images)]
    hidden = g.random((len(chosen), num_patches)).argsort(axis=1)[:, : num_masked(num_patches, patches)]
    mask = np.zeros((num_images, num_patches), dtype=bool)
    mask[chosen[:, None], hidden] = True
    return mask
