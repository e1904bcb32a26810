"""The teachers of all methods that have one."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from methods import make_batch, make_method, take_step
from torch import nn

from corecli.base.errors import UsageError
from corecli.nets.encoder import build_encoder
from corecli.ssl.parts.method import embed
from corecli.ssl.parts.teacher import TaughtMethod

TAUGHT = pytest.mark.parametrize("name", ["moco", "mocov3", "byol", "dino"])


def norms(module: nn.Module) -> list[Any]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


@TAUGHT
def test_the_teacher_starts_as_a_copy_of_the_encoder(name: str) -> None:
    method = make_method(name)
    assert method.teacher is not method.encoder
    ours, theirs = method.teacher.state_dict(), method.encoder.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert not {t.data_ptr() for t in ours.values()} & {t.data_ptr() for t in theirs.values() if t.numel()}


@TAUGHT
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    method = make_method(name)
    method.teacher.requires_grad_(True)
    method.loss(make_batch()).backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert any(p.grad is not None and p.grad.any() for p in method.encoder.parameters())


@TAUGHT
def test_the_teacher_moves_by_the_momentum_of_the_step(name: str) -> None:
    method = make_method(name, momentum_start=0.9, momentum_end=1.0)
    for step, momentum in ((0, 0.9), (25, 1 - 0.05 * (1 + math.sqrt(0.5))), (50, 0.95), (100, 1.0)):
        before = copy.deepcopy(method.teacher)
        take_step(method, make_batch(step=step), lr=1.0)
        moved = zip(method.teacher.parameters(), before.parameters(), method.encoder.parameters(), strict=True)
        for new, old, student in moved:
            torch.testing.assert_close(new, momentum * old + (1 - momentum) * student, rtol=1e-5, atol=1e-6)


@TAUGHT
def test_the_teachers_batchnorms_keep_their_own_statistics(name: str) -> None:
    method = make_method(name, momentum_start=0.0, momentum_end=0.0)
    take_step(method, make_batch())  # the weights of the student are now the teacher's
    student, teacher = (norms(net)[-1].running_mean for net in (method.encoder, method.teacher))
    torch.testing.assert_close(teacher, student)  # both have seen the batch with the first weights
    method.loss(make_batch(seed=2))
    method.encoder.eval()
    kept = student.clone()
    method.loss(make_batch(seed=3))
    assert torch.equal(student, kept)
    assert not torch.allclose(teacher, student)


@TAUGHT
def test_the_teacher_normalizes_by_its_own_batch(name: str) -> None:
    method, batch = make_method(name), make_batch()
    for norm in norms(method.teacher):
        norm.running_mean.fill_(100.0)
    torch.testing.assert_close(method.teach(batch.views), embed(copy.deepcopy(method.encoder), batch.views)[1])
    assert not method.teach(batch.views).requires_grad


def test_the_teacher_skips_no_blocks() -> None:
    layers = pytest.importorskip("timm.layers")
    encoder: Any = build_encoder("resnet10-tiny", image_size=8)
    encoder.backbone.layer4.append(layers.DropPath(0.5))
    method: Any = TaughtMethod(encoder, momentum_start=0.9, momentum_end=1.0)
    assert method.encoder.backbone.layer4[-1].drop_prob == 0.5
    assert method.teacher.backbone.layer4[-1].drop_prob == 0.0


@TAUGHT
@pytest.mark.parametrize(("start", "end"), [(0.9, 0.8), (-0.1, 1.0), (0.9, 1.1), (math.nan, 1.0)])
def test_a_momentum_that_falls_or_leaves_0_to_1_is_an_error(name: str, start: float, end: float) -> None:
    with pytest.raises(UsageError, match="momentum"):
        make_method(name, momentum_start=start, momentum_end=end)
