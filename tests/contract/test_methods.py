"""Promises that every method of `corecli/ssl/` keeps, also those added later."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from methods import tiny, tiny_options

from corecli.base import registry
from corecli.base.errors import UsageError
from corecli.data.members import parse_views
from corecli.engine.dist import World, average_gradients, mean_over_ranks
from corecli.nets.batchnorm import synchronize_batchnorm
from corecli.nets.encoder import build_encoder
from corecli.ssl.parts.method import Batch, Context, Method
from corecli.views.policies import AUGMENTATIONS

METHODS = registry.choices("ssl")
NUM, PX, DIM, CLASSES = 8, 8, 16, 5


def make(name: str, dtype: torch.dtype = torch.float32) -> Method:
    module = registry.load("ssl", name)
    encoder = build_encoder(tiny(name)["backbone"], image_size=PX, projector_dim=None)
    if module.PROJECTOR is not None:
        encoder.set_projector({**module.PROJECTOR, "hidden": 32, "dim": DIM})
    views, local_views = counts(name)
    context = Context(
        num_views=views, num_local_views=local_views, batch_size=NUM, num_classes=CLASSES, target_dim=DIM, seed=1
    )
    return module.build(encoder, options=tiny_options(name), context=context).to(dtype).train()


def counts(name: str) -> tuple[int, int]:
    """The numbers of global and of local views that the method takes by default."""
    entries = parse_views(registry.load("ssl", name).VIEWS)
    return sum(e.num_global for e in entries), sum(e.num_local for e in entries)


def make_batch(name: str, dtype: torch.dtype = torch.float32, rows: slice = slice(None)) -> Batch:
    generator = torch.Generator().manual_seed(1)
    views, local_views = (
        torch.rand(num, NUM, 3, PX, PX, generator=generator, dtype=dtype)[:, rows] for num in counts(name)
    )
    return Batch(
        views=tuple(views),
        local_views=tuple(local_views),
        labels=(torch.arange(NUM) % CLASSES)[rows],
        groups=(torch.arange(NUM) // 2)[rows],
        targets=torch.randn(NUM, DIM, generator=generator, dtype=dtype)[rows],
        step=50,
        total_steps=100,
    )


def value_and_gradient(
    world: World, name: str, dtype: torch.dtype
) -> tuple[list[float], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The losses of two steps on the global batch, the gradient of the second, and the state after both."""
    method: Any = synchronize_batchnorm(make(name, dtype), world.device)
    num = NUM // world.size
    values = []
    for step in range(2):
        method.zero_grad()
        loss = method.loss(make_batch(name, dtype, slice(world.rank * num, (world.rank + 1) * num)))
        loss.backward()
        average_gradients(method.parameters(), world)
        values.append(float(mean_over_ranks(loss)))
        method.after_step(step, 10)
    gradients = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    return values, gradients, {n: t.clone() for n, t in method.state_dict().items()}


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_a_finite_scalar_whose_gradient_reaches_every_parameter(name: str) -> None:
    method: Any = make(name)
    loss = method.loss(make_batch(name))
    assert loss.shape == ()
    assert loss.isfinite()
    loss.backward()
    idle = [n for n, p in method.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert idle == []
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", METHODS)
def test_its_constants_are_read_without_an_import(name: str) -> None:
    module, found = registry.load("ssl", name), registry.constants("ssl", name)
    assert found["Options"] == asdict(module.Options())
    assert found["VIEWS"] == module.VIEWS
    assert found["AUGMENT"] in AUGMENTATIONS
    assert found["PROJECTOR"] == module.PROJECTOR
    assert module.__doc__


@pytest.mark.parametrize("name", METHODS)
def test_its_attributes_are_valid(name: str) -> None:
    method: Any = make(name)
    assert method.needs in ("nothing", "labels", "features")
    assert method.publishes == "student" or method.teacher is not None
    assert {id(p) for p in method.constant_rate()} <= {id(p) for p in method.parameters()}
    assert method.after_step(0, 10) is None
    if method.teacher is not None:
        assert not any(p.requires_grad for p in method.teacher.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_too_many_global_views_are_an_error(name: str) -> None:
    module = registry.load("ssl", name)
    encoder = build_encoder("resnet10-tiny", image_size=PX, projector_dim=DIM, projector_hidden=32)
    with pytest.raises(UsageError, match="views"):
        module.build(
            encoder, options=module.Options(), context=Context(num_views=9, num_classes=CLASSES, target_dim=DIM)
        )


@pytest.mark.parametrize("name", METHODS)
def test_the_teacher_follows_the_student(name: str) -> None:
    method: Any = make(name)
    if method.teacher is None:
        return
    before = [p.clone() for p in method.teacher.parameters()]
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(1.0)
    method.after_step(0, 10)
    for old, teacher, student in zip(before, method.teacher.parameters(), method.encoder.parameters(), strict=True):
        moved, way = teacher - old, student - old
        share = (moved / way).detach()
        assert share.min() > 0
        assert share.max() < 0.1


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_float32_under_autocast_and_near_full_precision(name: str) -> None:
    method = make(name)
    batch = make_batch(name)
    exact = method.loss(batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss = make(name).loss(batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.05, abs=0.01)


@pytest.mark.parametrize("name", METHODS)
def test_steps_lower_the_loss(name: str) -> None:
    method = make(name)
    batch = make_batch(name)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(loss := method.loss(batch))
        loss.backward()
        optimizer.step()
    assert losses[2] < losses[0]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [pytest.param(torch.float32, 1e-5, marks=pytest.mark.slow), (torch.float64, 1e-11)],  # tests/dist have both
    ids=str,
)
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_give_the_loss_gradient_and_state_of_one(
    name: str, dtype: torch.dtype, tolerance: float, two_ranks: Any
) -> None:
    values, gradient, state = value_and_gradient(World(), name, dtype)
    for found_values, found, found_state in two_ranks.run(value_and_gradient, name, dtype):
        assert found_values == pytest.approx(values, rel=tolerance)
        flat = torch.cat([gradient[n].flatten() for n in gradient])
        found_flat = torch.cat([found[n].flatten() for n in gradient])
        assert (found_flat - flat).norm() <= tolerance * flat.norm()
        assert found_state.keys() == state.keys()
        for key, value in state.items():
            torch.testing.assert_close(found_state[key], value, rtol=10 * tolerance, atol=10 * tolerance)
