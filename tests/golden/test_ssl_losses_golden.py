"""Each loss against its published formula in float64, and against lightly or published code."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.ssl.parts.losses import (
    barlow_twins,
    byol_distance,
    info_nce_queue,
    moco_v3,
    negative_cosine,
    nt_xent,
)
from corecli.ssl.parts.multi_positive import supervised_contrastive
from corecli.ssl.parts.prototypes import dino, next_center

Array = np.ndarray[Any, np.dtype[np.float64]]
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=["float32", "float64"]
)
SHAPES = pytest.mark.parametrize(("num", "dim"), [(3, 4), (17, 8), (64, 128)])


def pair(num: int, dim: int, dtype: torch.dtype = torch.float64, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two related embeddings of different lengths."""
    generator = torch.Generator().manual_seed(100 * seed + num + dim)
    z0 = torch.randn(num, dim, generator=generator, dtype=torch.float64)
    z1 = z0 + 1.5 * torch.randn(num, dim, generator=generator, dtype=torch.float64)
    return (3 * z0).to(dtype), z1.to(dtype)


def unit(x: Tensor) -> Array:
    rows = x.double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def log_share(chosen: float, others: Sequence[float]) -> float:
    """log(e^chosen / sum of e^other)."""
    return chosen - math.log(math.fsum(map(math.exp, others)))


def gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    loss(*leaves).backward()
    return torch.cat([x.grad.flatten() if x.grad is not None else torch.zeros(x.numel()) for x in leaves])


def queue_sums(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> float:
    total = 0.0
    for anchor, key in zip(unit(q), unit(k), strict=True):
        positive = float(anchor @ key) / temperature
        total -= log_share(positive, [positive, *(float(anchor @ row) / temperature for row in queue.double().numpy())])
    return total / len(q)


@PRECISIONS
@SHAPES
def test_queue_contrast_equals_the_sums_written_out(num: int, dim: int, dtype: torch.dtype, tolerance: float) -> None:
    q, k = pair(num, dim, dtype)
    queue = F.normalize(pair(40, dim, dtype, seed=1)[0], dim=1)
    for temperature in (0.1, 0.2):
        found = info_nce_queue(q, k, queue, temperature=temperature).item()
        assert found == pytest.approx(queue_sums(q, k, queue, temperature), rel=tolerance)


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_queue_contrast_equals_lightly_in_value_and_gradient(temperature: float) -> None:
    q, k = pair(24, 16)
    queue = F.normalize(pair(40, 16, seed=1)[0], dim=1)

    def theirs(q: Tensor) -> Tensor:
        loss = pytest.importorskip("lightly.loss").NTXentLoss(temperature=temperature, memory_bank_size=(40, 16))
        loss.memory_bank = loss.memory_bank.double()
        loss.memory_bank.bank.copy_(queue)
        return loss(q, k)

    def ours(q: Tensor) -> Tensor:
        return info_nce_queue(q, k, queue, temperature=temperature)

    assert ours(q).item() == pytest.approx(theirs(q.clone().requires_grad_()).item(), rel=1e-12)
    torch.testing.assert_close(gradients(ours, q), gradients(theirs, q), rtol=1e-9, atol=1e-12)


def mocov3_sums(q: Tensor, k: Tensor, temperature: float) -> float:
    anchors, keys, total = unit(q), unit(k), 0.0
    for i, anchor in enumerate(anchors):
        logits = [float(anchor @ key) / temperature for key in keys]
        total -= log_share(logits[i], logits)
    return 2 * temperature * total / len(q)


@PRECISIONS
@SHAPES
def test_moco_v3_equals_the_sums_written_out(num: int, dim: int, dtype: torch.dtype, tolerance: float) -> None:
    q, k = pair(num, dim, dtype)
    for temperature in (0.1, 0.2, 1.0):
        expected = mocov3_sums(q, k, temperature)
        assert moco_v3(q, k, temperature=temperature).item() == pytest.approx(expected, rel=tolerance)


def test_moco_v3_equals_the_published_lines_in_value_and_gradient() -> None:
    q, k = pair(24, 16)

    def published(q: Tensor) -> Tensor:  # MoCo v3, Algorithm 1
        logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / 0.2
        return F.cross_entropy(logits, torch.arange(24)) * 2 * 0.2

    def ours(q: Tensor) -> Tensor:
        return moco_v3(q, k, temperature=0.2)

    assert ours(q).item() == pytest.approx(published(q).item(), rel=1e-13)
    torch.testing.assert_close(gradients(ours, q), gradients(published, q), rtol=1e-10, atol=1e-14)


@PRECISIONS
@SHAPES
def test_regressions_equal_the_sums_written_out(num: int, dim: int, dtype: torch.dtype, tolerance: float) -> None:
    p, z = pair(num, dim, dtype)
    cosines = [float(a @ b) for a, b in zip(unit(p), unit(z), strict=True)]
    assert negative_cosine(p, z).item() == pytest.approx(-math.fsum(cosines) / num, rel=tolerance)
    squares = [float(((a - b) ** 2).sum()) for a, b in zip(unit(p), unit(z), strict=True)]
    assert byol_distance(p, z).item() == pytest.approx(math.fsum(squares) / num, rel=tolerance)


def test_negative_cosine_equals_lightly_in_value_and_gradient() -> None:
    p, z = pair(24, 16)
    theirs = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    assert negative_cosine(p, z).item() == pytest.approx(theirs(p, z).item(), rel=1e-12)
    ours = gradients(lambda p: negative_cosine(p, z), p)
    torch.testing.assert_close(ours, gradients(lambda p: theirs(p, z), p), rtol=1e-9, atol=1e-12)


def barlow_sums(z0: Tensor, z1: Tensor, off_diagonal: float) -> float:
    a, b = (z.double().numpy() for z in (z0, z1))
    a, b = ((x - x.mean(0)) / np.sqrt(((x - x.mean(0)) ** 2).mean(0) + 1e-5) for x in (a, b))
    terms = []
    for i in range(a.shape[1]):
        for j in range(a.shape[1]):
            c = float(a[:, i] @ b[:, j]) / len(a)
            terms.append((c - 1) ** 2 if i == j else off_diagonal * c**2)
    return math.fsum(terms)


@PRECISIONS
@SHAPES
def test_barlow_twins_equals_the_sums_written_out(num: int, dim: int, dtype: torch.dtype, tolerance: float) -> None:
    z0, z1 = pair(num, dim, dtype)
    for weight in (0.005, 0.5):
        expected = barlow_sums(z0, z1, weight)
        assert barlow_twins(z0, z1, off_diagonal=weight).item() == pytest.approx(expected, rel=tolerance)


def test_barlow_twins_equals_lightly_in_value_and_gradient() -> None:
    z0, z1 = pair(24, 16)
    theirs = pytest.importorskip("lightly.loss").BarlowTwinsLoss(lambda_param=0.0051)

    def ours(z0: Tensor, z1: Tensor) -> Tensor:
        return barlow_twins(z0, z1, off_diagonal=0.0051)

    assert ours(z0, z1).item() == pytest.approx(theirs(z0, z1).item(), rel=1e-12)
    torch.testing.assert_close(gradients(ours, z0, z1), gradients(theirs, z0, z1), rtol=1e-9, atol=1e-12)


def supcon_sums(z: Tensor, labels: Tensor, temperature: float) -> float:
    """L_out over the anchors that have positives; z [V, B, D]."""
    rows = [(unit(view)[i], int(labels[i])) for view in z for i in range(len(labels))]
    losses = []
    for a, (anchor, label) in enumerate(rows):
        others = [(float(anchor @ row) / temperature, same) for i, (row, same) in enumerate(rows) if i != a]
        logits = [logit for logit, _ in others]
        positives = [log_share(logit, logits) for logit, same in others if same == label]
        if positives:
            losses.append(-math.fsum(positives) / len(positives))
    return math.fsum(losses) / len(losses)


def labeled(num: int) -> Tensor:
    """Classes of 5, 3, ... members and of one alone."""
    return torch.tensor([0] * 5 + [1] * 3 + [2] * (num - 9) + [3])


@PRECISIONS
@pytest.mark.parametrize("num_views", [1, 2, 3])
def test_supervised_contrast_equals_the_sums_written_out(num_views: int, dtype: torch.dtype, tolerance: float) -> None:
    z = torch.stack([*pair(12, 8, dtype), pair(12, 8, dtype, seed=1)[0]])[:num_views]
    for temperature in (0.1, 0.2):
        expected = supcon_sums(z, labeled(12), temperature)
        found = supervised_contrastive(z, labeled(12), temperature=temperature)
        assert found.item() == pytest.approx(expected, rel=tolerance)


def test_supervised_contrast_equals_the_published_lines_in_value_and_gradient() -> None:
    z = torch.stack(pair(12, 8))

    def published(z: Tensor) -> Tensor:  # Khosla et al. 2020, their reference implementation
        rows, labels = F.normalize(z.flatten(0, 1), dim=1), labeled(12).repeat(2)
        others = 1 - torch.eye(24, dtype=z.dtype)
        mask = (labels[:, None] == labels[None]) * others
        logits = rows @ rows.T / 0.2
        logits = logits - logits.max(dim=1, keepdim=True).values.detach()
        log_p = logits - ((logits.exp() * others).sum(1, keepdim=True)).log()
        return -((mask * log_p).sum(1) / mask.sum(1)).mean()

    def ours(z: Tensor) -> Tensor:
        return supervised_contrastive(z, labeled(12), temperature=0.2)

    assert ours(z).item() == pytest.approx(published(z).item(), rel=1e-12)
    torch.testing.assert_close(gradients(ours, z), gradients(published, z), rtol=1e-9, atol=1e-12)


def test_supervised_contrast_of_images_alone_in_their_class_is_nt_xent() -> None:
    z0, z1 = pair(12, 8)
    found = supervised_contrastive(torch.stack((z0, z1)), torch.arange(12), temperature=0.2)
    assert found.item() == pytest.approx(nt_xent(z0, z1, temperature=0.2).item(), rel=1e-13)


def test_supervised_contrast_without_any_positive_is_zero() -> None:
    z = pair(6, 8)[0][None].requires_grad_()
    loss = supervised_contrastive(z, torch.arange(6), temperature=0.2)
    loss.backward()
    assert loss.item() == 0
    assert z.grad is not None
    assert not z.grad.any()


def crops(num: int, count: int, dim: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(num + dim)
    return list(torch.randn(count, num, dim, generator=generator, dtype=torch.float64).to(dtype))


def softened(row: Array, temperature: float) -> Array:
    e = np.exp(row / temperature - (row / temperature).max())
    return e / e.sum()


def dino_sums(student: list[Tensor], teacher: list[Tensor], center: Tensor, hot: float, cold: float) -> float:
    terms = []
    for q, targets in enumerate(teacher):
        for v, logits in enumerate(student):
            for t, s in zip(targets.double().numpy(), logits.double().numpy(), strict=True):
                p = softened(t - center.double().numpy(), cold)
                terms += [-float(p @ np.log(softened(s, hot)))] if v != q else []
    return math.fsum(terms) / len(terms)


@PRECISIONS
@pytest.mark.parametrize("num_views", [2, 10])
def test_dino_equals_the_sums_written_out(num_views: int, dtype: torch.dtype, tolerance: float) -> None:
    student, teacher = crops(7, num_views, 16, dtype), crops(6, 2, 16, dtype)
    student = [view[:6] for view in student]
    center = crops(1, 1, 16, dtype)[0][0]
    loss = dino(student, teacher, center=center, student_temperature=0.1, teacher_temperature=0.07)
    assert loss.item() == pytest.approx(dino_sums(student, teacher, center, 0.1, 0.07), rel=tolerance)


def test_dino_and_its_center_equal_lightly() -> None:
    loss = pytest.importorskip("lightly.loss").DINOLoss(
        output_dim=16, teacher_temp=0.07, student_temp=0.1, warmup_teacher_temp_epochs=1
    )
    loss = loss.double()
    center = torch.zeros(16, dtype=torch.float64)
    for step in range(3):
        student, teacher = crops(6 + step, 10, 16), crops(6 + step, 2, 16)

        def ours(*student: Tensor, teacher: list[Tensor] = teacher, center: Tensor = center) -> Tensor:
            return dino(student, teacher, center=center, student_temperature=0.1, teacher_temperature=0.07)

        before = loss.center.clone()
        expected = loss(teacher, student).item()
        assert ours(*student).item() == pytest.approx(expected, rel=1e-7)  # lightly's temperature is float32
        loss.center.copy_(before)
        theirs = gradients(lambda *student, teacher=teacher: loss(teacher, list(student)), *student)
        torch.testing.assert_close(gradients(ours, *student), theirs, rtol=1e-6, atol=1e-10)
        center = next_center(center, teacher, momentum=0.9)
        torch.testing.assert_close(center, loss.center.flatten(), rtol=1e-12, atol=1e-14)


ALIGNED: dict[str, Callable[[Tensor], Tensor]] = {
    "info_nce_queue": lambda z: info_nce_queue(z, z, -torch.eye(8), temperature=0.01),
    "moco_v3": lambda z: moco_v3(z, z, temperature=0.01),
    "nt_xent": lambda z: nt_xent(z, z, temperature=0.01),
    "supervised_contrastive": lambda z: supervised_contrastive(torch.stack((z, z)), torch.arange(8), temperature=0.01),
    "byol_distance": lambda z: byol_distance(z, z),
    "negative_cosine": lambda z: negative_cosine(z, z) + 1,
    "barlow_twins": lambda z: barlow_twins(z, z, off_diagonal=0.0),
    "dino": lambda z: dino([z, z], [z, z], center=torch.zeros(8), student_temperature=0.01, teacher_temperature=0.01),
}


@pytest.mark.parametrize("name", ALIGNED)
def test_the_loss_of_aligned_pairs_is_finite_at_temperature_0_01(name: str) -> None:
    z = torch.eye(8).requires_grad_()
    loss = ALIGNED[name](z)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("name", ALIGNED)
def test_the_loss_of_opposed_pairs_is_finite_at_temperature_0_01(name: str) -> None:
    z = (50 * pair(8, 8)[0].float()).requires_grad_()
    loss = ALIGNED[name](z)
    loss.backward()
    assert loss.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()


BF16: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "info_nce_queue": lambda a, b: info_nce_queue(a, b, F.normalize(pair(8, 16, seed=2)[0]), temperature=0.1),
    "moco_v3": lambda a, b: moco_v3(a, b, temperature=0.1),
    "supervised_contrastive": lambda a, b: supervised_contrastive(
        torch.stack((a, b)), torch.arange(8) % 3, temperature=0.1
    ),
    "byol_distance": byol_distance,
    "negative_cosine": negative_cosine,
    "barlow_twins": lambda a, b: barlow_twins(a, b, off_diagonal=0.005),
    "dino": lambda a, b: dino(
        [a, b], [b, a], center=torch.zeros(16), student_temperature=0.1, teacher_temperature=0.04
    ),
}


@pytest.mark.parametrize("name", BF16)
def test_losses_are_computed_in_float32_under_autocast(name: str) -> None:
    half = tuple(z.bfloat16() for z in pair(8, 16))
    wide = BF16[name](*(z.double() for z in half))
    with torch.autocast("cpu", torch.bfloat16):
        found = [BF16[name](*half), BF16[name](*(z.float() for z in half))]
    for loss in found:
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(wide.item(), rel=2e-6)


STOPPED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "info_nce_queue": BF16["info_nce_queue"],
    "moco_v3": BF16["moco_v3"],
    "byol_distance": byol_distance,
    "negative_cosine": negative_cosine,
    "dino": lambda a, b: dino([a, a], [b, b], center=b[0], student_temperature=0.1, teacher_temperature=0.04),
}


@pytest.mark.parametrize("name", STOPPED)
def test_no_gradient_reaches_the_keys(name: str) -> None:
    a, b = (z.requires_grad_() for z in pair(8, 16))
    STOPPED[name](a, b).backward()
    assert a.grad is not None and a.grad.any()
    assert b.grad is None
