"""DINO's prototypes, center and schedules."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from methods import make_batch, make_method, take_step

from corecli.base.errors import UsageError
from corecli.ssl.parts.method import embed
from corecli.ssl.parts.prototypes import Prototypes, dino


def make(**options: Any) -> Any:
    return make_method("dino", **{"prototypes": 32, **options})


def test_prototypes_give_cosines_whatever_their_length() -> None:
    prototypes, z = Prototypes(5, 3), torch.randn(4, 3)
    expected = F.cosine_similarity(z[:, None], prototypes.weight[None], dim=-1)
    torch.testing.assert_close(prototypes(z), expected)
    prototypes.weight.data.mul_(3.0)
    torch.testing.assert_close(prototypes(7 * z), expected)


def test_prototypes_are_computed_in_float32_under_autocast() -> None:
    prototypes, z = Prototypes(5, 3), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prototypes(z), prototypes(z.float()))
        assert prototypes(z.bfloat16()).dtype == torch.float32
    assert torch.equal(prototypes(z), prototypes(z.float()))


@pytest.mark.parametrize("num_local", [0, 3])
def test_the_student_sees_all_views_and_the_teacher_the_global_ones(num_local: int) -> None:
    method, batch = make(), make_batch(num_local=num_local, step=20)
    method.centre.copy_(torch.linspace(-1, 1, 32))
    other = copy.deepcopy(method)
    student = list(other.prototypes(embed(other.encoder, batch.views)[1]))
    if num_local:
        student += list(other.prototypes(embed(other.encoder, batch.local_views)[1]))
    assert len(student) == 2 + num_local
    expected = dino(
        student,
        list(other.teacher_prototypes(other.teach(batch.views))),
        center=other.centre,
        student_temperature=0.1,
        teacher_temperature=0.04 + 0.03 * 20 / 30,
    )
    torch.testing.assert_close(method.loss(batch), expected)


def test_the_center_is_updated_after_the_loss_has_used_it() -> None:
    method, batch = make(), make_batch(step=20)
    logits = method.teacher_prototypes(copy.deepcopy(method).teach(batch.views))
    method.centre.fill_(0.5)
    method.loss(batch)
    assert torch.equal(method.centre, torch.full((32,), 0.5))
    method.after_step(20, 100)
    torch.testing.assert_close(method.centre, 0.45 + 0.1 * logits.mean(dim=(0, 1)))
    assert "centre" in method.state_dict()


def test_the_teachers_prototypes_follow_the_students() -> None:
    method = make(momentum_start=0.9)
    before = method.teacher_prototypes.weight.clone()
    take_step(method, make_batch(step=50), lr=5.0)
    expected = 0.95 * before + 0.05 * method.prototypes.weight
    torch.testing.assert_close(method.teacher_prototypes.weight, expected)
    assert not torch.allclose(method.teacher_prototypes.weight, before, atol=1e-4)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.04), (75, 0.055), (149, 0.0698), (150, 0.07), (9999, 0.07)])
def test_the_teachers_temperature_warms_up_by_the_step(step: int, expected: float) -> None:
    assert make(steps_per_epoch=5).teacher_temperature(step) == pytest.approx(expected)
    assert make(steps_per_epoch=5, warmup_epochs=0.0).teacher_temperature(step) == 0.07


@pytest.mark.parametrize(("step", "total", "frozen"), [(0, 1000, True), (7, 1000, True), (8, 1000, False)])
def test_prototypes_are_frozen_for_the_first_epoch(step: int, total: int, frozen: bool) -> None:
    method = make(steps_per_epoch=8)
    before = method.prototypes.weight.clone()
    take_step(method, make_batch(step=step, total=total))
    assert (method.prototypes.weight.grad is None) == frozen  # without a gradient, optimizers do not decay it either
    assert torch.equal(method.prototypes.weight, before) == frozen
    assert all(p.grad is not None for p in method.encoder.parameters())


def test_prototypes_are_frozen_for_at_most_a_tenth_of_a_stage() -> None:
    method = make(steps_per_epoch=500, freeze_epochs=2.0)
    assert [method.is_frozen(step, 200) for step in (0, 19, 20)] == [True, True, False]
    assert [method.is_frozen(step, 20_000) for step in (999, 1000)] == [True, False]
    assert not make(steps_per_epoch=500, freeze_epochs=0.0).is_frozen(0, 200)


def test_dino_publishes_the_teacher() -> None:
    assert make().publishes == "teacher"


@pytest.mark.parametrize("option", ["prototypes", "student_temperature", "teacher_temperature", "warmup_temperature"])
def test_invalid_options_are_errors(option: str) -> None:
    with pytest.raises(UsageError):
        make(**{option: 0})
