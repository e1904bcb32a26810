"""Losses by which a student learns the prototypes a teacher assigns to other views of an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from corecli.engine.dist import mean_over_ranks
from corecli.ssl.parts.losses import full_precision, widened


def dino(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    *,
    center: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """The cross-entropy of the student's prototypes with the teacher's of every other view (DINO, Eq. 3).

    student: logits [B, K] of each view, those that the teacher sees first; teacher: logits [B, K] of these; center:
    [K], taken from the teacher's logits. The mean over rows and pairs; no gradient reaches teacher and center.
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
    """The center [K] moved toward the mean of the teacher's logits over views and the global batch (DINO, Eq. 4)."""
    mean = mean_over_ranks(widened(torch.cat(list(teacher))).mean(dim=0))
    return center * momentum + mean.to(center.dtype) * (1 - momentum)
