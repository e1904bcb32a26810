"""Losses over prototypes: a student predicts how a teacher assigns views (DINO) or masked patches (iBOT) to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corecli.base.rng import numpy_generator
from corecli.engine.dist import gather_with_gradient, mean_over_ranks
from corecli.nets.projector import build_projector
from corecli.ssl.parts.losses import full_precision, widened


class Prototypes(nn.Module):
    """Cosines of embeddings [..., D] of any length with K directions: [..., K], in float32 or wider.

    This is a linear layer with weight normalization. Its scales are 1, or learned with `learned_scale`.
    """

    def __init__(self, num: int, dim: int, *, learned_scale: bool = False) -> None:
        super().__init__()
        self.weight = nn.Linear(dim, num, bias=False).weight
        self.scale = nn.Parameter(torch.ones(num)) if learned_scale else None

    def forward(self, z: Tensor, *, frozen: bool = False) -> Tensor:
        weight = self.weight.detach() if frozen else self.weight
        with full_precision(z):
            directions = F.normalize(weight, dim=-1)
            if self.scale is not None:
                directions = directions * self.scale[:, None]
            return F.linear(F.normalize(widened(z), dim=-1), directions)


class PatchHead(nn.Module):
    """Logits of K prototypes for tokens [..., D]: an MLP, then prototypes with learned scales (DINO; iBOT)."""

    def __init__(self, num_features: int, *, hidden: int, dim: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = build_projector(
            num_features, {"hidden": hidden, "dim": dim, "norm": "none", "layers": 3, "activation": "gelu"}
        )
        self.prototypes = Prototypes(prototypes, dim, learned_scale=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.prototypes(self.mlp(tokens))


def dino(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    *,
    center: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Return the cross-entropy of the student's prototypes with the teacher's over pairs of views (DINO, Eq. 3).

    student: logits [B, K] of every view, global views first; teacher: logits [B, K] of the global views; center: [K],
    subtracted from the teacher's logits. A view is not paired with itself. The loss is the mean over rows and pairs. No
    gradient reaches teacher and center.
    """
    with full_precision(student[0]):
        log_p = [(widened(logits) / student_temperature).log_softmax(dim=1) for logits in student]
        total = torch.zeros((), dtype=log_p[0].dtype, device=log_p[0].device)
        for view, logits in enumerate(teacher):
            q = ((widened(logits.detach()) - center.detach()) / teacher_temperature).softmax(dim=1)
            others = torch.stack(log_p[:view] + log_p[view + 1 :]).sum(dim=0)
            total = total - (q * others).sum(dim=1).mean()
        return total / (len(teacher) * (len(student) - 1))


def next_center(center: Tensor, teacher: Sequence[Tensor], *, momentum: float) -> Tensor:
    """Return the center [K] after a step (DINO, Eq. 4).

    It moves toward the mean of the teacher's logits over its views and the global batch.
    """
    mean = mean_over_ranks(widened(torch.cat(list(teacher))).mean(dim=0))
    return center * momentum + mean.to(center.dtype) * (1 - momentum)


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, *, temperature: float, num_iterations: int = 3) -> Tensor:
    """Return the assignment of each patch to K prototypes, [M, K], rows that sum to 1 (SwAV, Eq. 4; SynCLR, 3.3).

    exp(logits / temperature) is scaled in turn so that all prototypes receive the same mass from the patches of all
    ranks, and so that each row sums to 1. The computation is in logarithms, in float32 or wider, and does not overflow;
    the constants of the usual form cancel. Ranks may hold different numbers of patches, also none.
    """
    with full_precision(logits):
        log_q = widened(logits) / temperature
        for _ in range(num_iterations):
            log_q -= gather_with_gradient(log_q.logsumexp(dim=0, keepdim=True)).logsumexp(dim=0)
            log_q -= log_q.logsumexp(dim=1, keepdim=True)
        return log_q.exp_()


def ibot(student: Tensor, assignments: Tensor, *, temperature: float) -> Tensor:
    """Return the cross-entropy of the student's prototypes with the teacher's over masked patches (iBOT, Eq. 2).

    student: logits [M, K] of the masked patches of this rank; assignments: [M, K] of the teacher for these patches,
    without gradient. All masked images have the same number of masked patches, so the mean over patches equals the mean
    over images of the mean over their patches.
    """
    with full_precision(student):
        total = F.cross_entropy(widened(student) / temperature, assignments.detach(), reduction="sum")
        return total / mean_over_ranks(torch.full_like(total, len(student)))


def num_masked(num: int, share: float) -> int:
    """Return the share of `num`, rounded, at least 1."""
    return max(1, round(share * num))


def draw_mask(
    *, seed: int, step: int, part: int, num_images: int, num_patches: int, images: float, patches: float
) -> np.ndarray:
    """Return bool [B, T]: a random share of the images, each with a random share of its patches (SynCLR, section 3.4).

    The mask is drawn for the global batch, or one of its parts, from (seed, step, part). All masked images have the
    same number of masked patches.
    """
    g = numpy_generator(seed, "mask", step, part)
    chosen = g.permutation(num_images)[: num_masked(num_images, images)]
    hidden = g.random((len(chosen), num_patches)).argsort(axis=1)[:, : num_masked(num_patches, patches)]
    mask = np.zeros((num_images, num_patches), dtype=bool)
    mask[chosen[:, None], hidden] = True
    return mask
