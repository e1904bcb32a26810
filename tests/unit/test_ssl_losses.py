"""Losses and options of methods; values of NT-Xent are tested in tests/golden."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from corecli.base import registry
from corecli.base.errors import DataError, UsageError
from corecli.nets.encoder import Encoder, build_encoder
from corecli.ssl.parts.losses import cosine_distance, nt_xent
from corecli.ssl.parts.method import Batch, Context, embed
from corecli.ssl.parts.teacher import cosine_momentum, follow, teacher_of


@pytest.fixture
def encoder() -> Encoder:
    return build_encoder("resnet10-tiny", image_size=8, projector_hidden=16, projector_dim=6)


def views(count: int, num: int = 4) -> tuple[torch.Tensor, ...]:
    return tuple(torch.rand(count, num, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def batch(count: int) -> Batch:
    targets = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    return Batch(views=views(count), labels=torch.arange(4), groups=torch.arange(4), targets=targets)


def test_cosine_distance_is_equation_7() -> None:
    z, targets = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[6.0, 8.0], [0.0, -2.0]])
    assert cosine_distance(z, targets).item() == pytest.approx((0 + 1) / 2)
    assert cosine_distance(-z, 5 * z).item() == pytest.approx(2)


def test_nt_xent_ignores_lengths_order_and_which_view_is_first() -> None:
    z0, z1 = torch.randn(2, 9, 5, dtype=torch.float64)
    loss = nt_xent(z0, z1, temperature=0.3)
    order = torch.randperm(9)
    torch.testing.assert_close(nt_xent(z1, 7 * z0, temperature=0.3), loss)
    torch.testing.assert_close(nt_xent(z0[order], z1[order], temperature=0.3), loss)


def test_nt_xent_of_indistinguishable_views_is_the_log_of_their_number() -> None:
    z = torch.ones(8, 3)
    assert nt_xent(z, z, temperature=0.5).item() == pytest.approx(math.log(15))


def test_views_pass_together_and_share_batch_statistics(encoder: Encoder) -> None:
    h, z = embed(encoder.train(), views(2))
    assert h.shape == (2, 4, 256)
    assert z.shape == (2, 4, 6)
    joint_h, _ = encoder(torch.cat(views(2)))
    torch.testing.assert_close(h.flatten(0, 1), joint_h)
    assert not torch.allclose(h[0], encoder(views(2)[0])[0])


def build(name: str, encoder: Encoder, context: Context, **options: float) -> Any:
    module = registry.load("ssl", name)
    return module.build(encoder, options=module.Options(**options), context=context)


@pytest.mark.parametrize("num_views", [1, 2])
def test_psl_is_the_mean_over_its_views(encoder: Encoder, num_views: int) -> None:
    method = build("psl", encoder, Context(num_views=num_views, target_dim=6)).eval()
    data = batch(num_views)
    assert data.targets is not None
    each = [cosine_distance(encoder(view)[1], data.targets) for view in data.views]
    torch.testing.assert_close(method.loss(data), sum(each) / num_views)


def test_supervised_trains_no_projector_and_saves_none(encoder: Encoder) -> None:
    method = build("supervised", encoder, Context(num_views=1, num_classes=4))
    assert encoder.projector_dim is None
    assert encoder.spec["projector"] is None
    assert not [n for n in method.state_dict() if "projector" in n]


def test_supervised_smooths_labels(encoder: Encoder) -> None:
    data = batch(1)
    method = build("supervised", encoder, Context(num_views=1, num_classes=4), label_smoothing=0.2).eval()
    log_p = method.classifier(encoder(data.views[0])[0]).log_softmax(1)
    target = 0.8 * torch.eye(4) + 0.05
    torch.testing.assert_close(method.loss(data), -(target * log_p).sum(1).mean())


def test_classifier_is_a_function_of_the_seed(encoder: Encoder) -> None:
    def weight(seed: int) -> torch.Tensor:
        return build("supervised", encoder, Context(num_views=1, num_classes=4, seed=seed)).classifier.weight

    assert torch.equal(weight(1), weight(1))
    assert not torch.equal(weight(1), weight(2))


def test_a_teacher_starts_as_the_student_without_hooks(encoder: Encoder) -> None:
    heard: list[int] = []
    encoder.backbone.register_forward_hook(lambda *_: heard.append(1))
    teacher = teacher_of(encoder)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), encoder.parameters(), strict=True))
    assert not any(p.requires_grad for p in teacher.parameters())
    teacher(views(1)[0])
    assert not heard
    encoder(views(1)[0])
    assert heard


def test_momentum_is_half_a_cosine() -> None:
    found = [cosine_momentum(0.9, 1.0, step, 4) for step in range(5)]
    assert found == pytest.approx(
        [0.9, 1 - 0.1 * (math.sqrt(0.5) + 1) / 2, 0.95, 1 - 0.1 * (1 - math.sqrt(0.5)) / 2, 1]
    )


def test_follow_changes_parameters_but_not_statistics(encoder: Encoder) -> None:
    teacher = teacher_of(encoder)
    encoder.train()(views(2)[0])
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(1.0)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    follow(teacher, encoder, 0.75)
    moved = {name for name, value in teacher.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in teacher.named_parameters()}
    torch.testing.assert_close(teacher.backbone.conv1.weight, before["backbone.conv1.weight"] + 0.25)


@pytest.mark.parametrize(
    ("name", "context", "options", "message"),
    [
        ("psl", Context(target_dim=7), {}, "7 dimensions, the encoder's output 6"),
        ("psl", Context(), {}, "needs a feature table"),
        ("psl", Context(target_dim=6, num_views=3), {}, "1 or 2 global views"),
        ("simclr", Context(), {"temperature": 0.0}, "above 0"),
        ("simclr", Context(num_views=1), {}, "simclr takes 2 global views"),
        ("simclr", Context(num_local_views=1), {}, "no local views"),
        ("supervised", Context(num_views=1), {}, "at least two classes"),
        ("supervised", Context(num_views=1, num_classes=1), {}, "at least two classes"),
    ],
)
def test_invalid_options_are_errors(
    encoder: Encoder, name: str, context: Context, options: dict[str, float], message: str
) -> None:
    with pytest.raises((UsageError, DataError), match=message):
        build(name, encoder, context, **options)
