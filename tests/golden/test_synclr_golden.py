"""Losses of StableRep and SynCLR against their published formulas in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from corecli.nets import vit
from corecli.nets.encoder import build_encoder
from corecli.ssl import stablerep, synclr
from corecli.ssl.parts.method import Batch, Context
from corecli.ssl.parts.multi_positive import multi_positive, supervised_contrastive
from corecli.ssl.parts.prototypes import draw_mask, ibot, sinkhorn_knopp

Array = np.ndarray[Any, np.dtype[np.float64]]
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)], ids=["float32", "float64"]
)
# Groups of 4, 1, 3 and 2 images, met again later in the batch.
GROUPS = [0, 0, 2, 1, 0, 2, 3, 2, 0, 3]
OTHERS = [5, 5, 4, 4, 4, 4, 6, 7, 8, 9]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit(x: Tensor) -> Array:
    rows = x.detach().double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def contrast(
    anchors: Tensor, keys: Tensor, groups: list[int], key_groups: list[int], temperature: float, excluded: list[int]
) -> float:
    """Return the mean over anchors with positives; `excluded`: the position of each anchor's own key, or empty."""
    losses = []
    for a, anchor in enumerate(unit(anchors)):
        seen = [(k, float(anchor @ key) / temperature) for k, key in enumerate(unit(keys))]
        seen = [(k, logit) for k, logit in seen if not excluded or k != excluded[a]]
        top = max(logit for _, logit in seen)
        normalizer = top + math.log(math.fsum(math.exp(logit - top) for _, logit in seen))
        positives = [logit - normalizer for k, logit in seen if key_groups[k] == groups[a]]
        if positives:
            losses.append(-math.fsum(positives) / len(positives))
    return math.fsum(losses) / len(losses) if losses else 0.0


@PRECISIONS
@pytest.mark.parametrize("groups", [GROUPS, OTHERS, [0] * 10], ids=["unequal", "some alone", "one group"])
def test_multi_positive_contrast_equals_the_sums_written_out(
    groups: list[int], dtype: torch.dtype, tolerance: float
) -> None:
    anchors, keys = draw(10, 6, seed=1, dtype=dtype), 2 * draw(10, 6, seed=2, dtype=dtype)
    labels = torch.tensor(groups)
    for temperature in (0.08, 0.5):
        for itself in (None, torch.arange(10)):
            found = multi_positive(anchors, keys, labels, labels, temperature=temperature, itself=itself)
            excluded = [] if itself is None else itself.tolist()
            expected = contrast(anchors, keys, groups, groups, temperature, excluded)
            assert found.item() == pytest.approx(expected, rel=tolerance)


def test_positives_are_computed_for_every_batch() -> None:
    """The reference keeps the positives of its first batch."""
    z = draw(2, 10, 6, seed=3)
    flat = z.transpose(0, 1).flatten(0, 1)
    for groups in (GROUPS, OTHERS, GROUPS[::-1]):
        twice = [group for group in groups for _ in range(2)]
        found = supervised_contrastive(z, torch.tensor(groups), temperature=0.1)
        assert found.item() == pytest.approx(contrast(flat, flat, twice, twice, 0.1, list(range(20))), rel=1e-12)


def test_an_image_without_a_positive_is_only_a_negative() -> None:
    z = draw(10, 6, seed=4).requires_grad_()
    labels = torch.tensor([0, 0, 1, *range(2, 9)])
    supervised_contrastive(z[None], labels, temperature=0.1).backward()
    assert z.grad is not None
    assert z.grad[2].any()  # as a negative of the pair
    z.grad = None
    loss = supervised_contrastive(z[None], torch.arange(10), temperature=0.1)
    loss.backward()
    assert loss.item() == 0
    assert not z.grad.any()


def textbook_sinkhorn(logits: Array, temperature: float, num_iterations: int = 3) -> Array:
    """Alternate scaling of exp(logits / temperature) to columns of 1 / K and rows of 1 / M, as published."""
    q = np.exp((logits - logits.max()) / temperature)
    num, k = q.shape
    q /= q.sum()
    for _ in range(num_iterations):
        q = q / q.sum(axis=0, keepdims=True) / k
        q = q / q.sum(axis=1, keepdims=True) / num
    return q * num


@PRECISIONS
@pytest.mark.parametrize(("num", "k"), [(5, 3), (40, 16), (16, 40)])
def test_sinkhorn_equals_alternate_scaling(num: int, k: int, dtype: torch.dtype, tolerance: float) -> None:
    logits = draw(num, k, dtype=dtype)
    for temperature in (0.07, 1.0):
        found = sinkhorn_knopp(logits, temperature=temperature)
        expected = torch.from_numpy(textbook_sinkhorn(logits.double().numpy(), temperature))
        torch.testing.assert_close(found.double(), expected, rtol=200 * tolerance, atol=tolerance)
        torch.testing.assert_close(found.sum(dim=1), torch.ones(num, dtype=dtype))


def test_sinkhorn_in_float32_does_not_overflow() -> None:
    """exp overflows from 3.6 on at 0.04, and a patch with logits far below the others underflows to 0 / 0."""
    logits = 40 * draw(64, 32, seed=9, dtype=torch.float32)
    logits[7] -= 400
    assert (logits / 0.04).exp().max() == float("inf")
    found = sinkhorn_knopp(logits, temperature=0.04)
    wide = sinkhorn_knopp(logits.double(), temperature=0.04)
    torch.testing.assert_close(found.double(), wide, rtol=1e-2, atol=1e-4)  # a logit has an error of 1e-3 there
    torch.testing.assert_close(found.sum(dim=1), torch.ones(64))
    assert sinkhorn_knopp(1e30 * logits, temperature=0.04).isfinite().all()


def ibot_sums(student: Array, shares: Array, images: list[int], temperature: float) -> float:
    """The mean over masked images of the mean over their patches."""
    by_image: dict[int, list[float]] = {}
    for logits, target, image in zip(student / temperature, shares, images, strict=True):
        log_p = logits - logits.max()
        log_p = log_p - math.log(math.fsum(np.exp(log_p)))
        by_image.setdefault(image, []).append(-float(target @ log_p))
    return math.fsum(math.fsum(terms) / len(terms) for terms in by_image.values()) / len(by_image)


@PRECISIONS
def test_patch_loss_equals_the_sums_written_out(dtype: torch.dtype, tolerance: float) -> None:
    student, teacher = draw(12, 8, seed=5, dtype=dtype), draw(12, 8, seed=6, dtype=dtype)
    shares = sinkhorn_knopp(teacher, temperature=0.07)
    found = ibot(student, shares, temperature=0.1)
    expected = ibot_sums(
        student.double().numpy(), shares.double().numpy(), [i for i in (2, 0, 5) for _ in range(4)], 0.1
    )
    assert found.item() == pytest.approx(expected, rel=tolerance)


def test_losses_are_float32_under_autocast() -> None:
    half = [draw(10, 6, seed=s).bfloat16() for s in (1, 2)]
    labels = torch.tensor(GROUPS)

    def computed(a: Tensor, b: Tensor) -> list[Tensor]:
        shares = sinkhorn_knopp(a, temperature=0.07)
        return [multi_positive(a, b, labels, labels, temperature=0.1), ibot(b, shares, temperature=0.1)]

    wide = computed(*(z.double() for z in half))
    with torch.autocast("cpu", torch.bfloat16):
        found = computed(*half)
    for loss, exact in zip(found, wide, strict=True):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_masks_hide_the_same_number_of_patches_of_half_the_images() -> None:
    def mask_of(step: int, part: int = 0) -> np.ndarray:
        return draw_mask(seed=3, step=step, part=part, num_images=10, num_patches=9, images=0.5, patches=0.5)

    for step in range(3):
        hidden = mask_of(step).sum(axis=1)
        assert sorted(hidden.tolist()) == [0] * 5 + [4] * 5
    assert (mask_of(1) == mask_of(1)).all()
    assert (mask_of(1) != mask_of(2)).any() and (mask_of(1) != mask_of(1, part=1)).any()
    often = np.mean([mask_of(step) for step in range(400)], axis=0)
    assert often.min() > 0.12 and often.max() < 0.33  # 5 / 10 * 4 / 9 = 0.22 everywhere


def method_of(num_views: int, **options: Any) -> Any:
    encoder = build_encoder("vit-micro/4", image_size=8, projector_dim=None)
    encoder.set_projector({"hidden": 16, "dim": 12, "norm": "layer", "layers": 3, "last_norm": "plain"})
    sizes = {"predictor_hidden": 16, "patch_hidden": 16, "patch_dim": 8, "prototypes": 6, "warmup_steps": 10}
    context = Context(num_views=num_views, num_local_views=2, batch_size=10, seed=1)
    method: Any = synclr.build(encoder, options=synclr.Options(**sizes, **options), context=context).double().train()
    with torch.no_grad():  # a teacher that differs from the student
        for p in [*method.teacher.parameters(), *method.teacher_patches.parameters()]:
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype))
    return method


@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("label_by", ["group", "class", "image"])
def test_synclr_is_the_sum_of_its_terms_written_out(num_views: int, label_by: str) -> None:
    """Eq. 4: masked globals and unmasked locals by the student against unmasked globals by the teacher."""
    method, groups = method_of(num_views, label_by=label_by, ibot=0.7), GROUPS
    views = tuple(draw(num_views, 10, 3, 8, 8, seed=7).sigmoid())
    local_views = tuple(draw(2, 10, 3, 4, 4, seed=8).sigmoid())
    batch = Batch(
        views=views,
        local_views=local_views,
        labels=torch.tensor(OTHERS),
        groups=torch.tensor(groups),
        step=5,
        total_steps=100,
    )
    mask = draw_mask(seed=1, step=5, part=0, num_images=10 * num_views, num_patches=4, images=0.5, patches=0.5)
    crops = torch.cat(views)
    with vit.watch_patches(method.encoder.backbone, mask=torch.from_numpy(mask), token=method.mask_token) as student:
        q = method.predictor(method.encoder(crops)[1])
    with vit.watch_patches(method.teacher.backbone) as teacher:
        keys = method.teacher(crops)[1]
    q_local = method.predictor(method.encoder(torch.cat(local_views))[1])
    names = {"group": groups, "class": OTHERS, "image": list(range(10))}[label_by]
    expected = contrast(q, keys, names * num_views, names * num_views, 0.08, list(range(10 * num_views)))
    expected += contrast(q_local, keys, names * 2, names * num_views, 0.08, [])
    images, patches = mask.nonzero()
    hidden, shown = (tokens[0][images, patches] for tokens in (student, teacher))
    shares = textbook_sinkhorn(method.teacher_patches(shown).detach().numpy(), 0.04 + 0.03 * 5 / 10)
    expected += 0.7 * ibot_sums(method.patches(hidden).detach().numpy(), shares, images.tolist(), 0.1)
    assert method.loss(batch).item() == pytest.approx(expected, rel=1e-9)


def test_without_teacher_patches_and_locals_synclr_is_stablerep() -> None:
    views = tuple(draw(1, 10, 3, 8, 8, seed=7).sigmoid())
    batch = Batch(views=views, labels=torch.tensor(OTHERS), groups=torch.tensor(GROUPS))
    losses = []
    for module, options in (
        (stablerep, stablerep.Options(temperature=0.08)),
        (synclr, synclr.Options(ema=False, ibot=0.0)),
    ):
        encoder = build_encoder("vit-micro/4", image_size=8, projector_dim=12, projector_hidden=16).double()
        context = Context(num_views=1, batch_size=10)
        method: Any = module.build(encoder, options=options, context=context).train()
        loss = method.loss(batch)
        loss.backward()
        losses.append((loss, encoder.backbone.patch_embed.proj.weight.grad))
        assert method.teacher is None
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=1e-14)
