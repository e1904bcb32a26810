"""What every file of `ssl/` promises, including ones not written yet."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from corecli.base import registry
from corecli.engine.dist import World, average_gradients, mean_over_ranks
from corecli.nets.batchnorm import synchronise_batchnorm
from corecli.nets.encoder import build_encoder
from corecli.ssl._method import Batch, Method, Options

METHODS = registry.choices("ssl")
NUM, PX, DIM, CLASSES = 8, 8, 16, 5


def make(name: str, dtype: torch.dtype) -> Method:
    encoder = build_encoder("resnet10-tiny", image_size=PX, projector_hidden=32, projector_dim=DIM)
    method = registry.load("ssl", name).build(encoder, options=Options(num_classes=CLASSES, target_dim=DIM))
    return method.to(dtype).train()


def make_batch(method: Method, dtype: torch.dtype, rows: slice = slice(None)) -> Batch:
    generator = torch.Generator().manual_seed(1)
    shape = (method.num_views, NUM, 3, PX, PX)
    return Batch(
        views=tuple(torch.rand(shape, generator=generator, dtype=dtype)[:, rows]),
        labels=(torch.arange(NUM) % CLASSES)[rows],
        groups=torch.arange(NUM)[rows],
        targets=torch.randn(NUM, DIM, generator=generator, dtype=dtype)[rows],
    )


def value_and_gradient(world: World, name: str, dtype: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of the global batch and its gradient, from this rank's rows of it."""
    method: Any = synchronise_batchnorm(make(name, dtype), world.device)
    num = NUM // world.size
    loss = method.loss(make_batch(method, dtype, slice(world.rank * num, (world.rank + 1) * num)))
    loss.backward()
    average_gradients(method.parameters(), world)
    return float(mean_over_ranks(loss)), {n: p.grad for n, p in method.named_parameters()}


@pytest.mark.parametrize("name", METHODS)
def test_loss_is_a_finite_scalar_whose_gradient_reaches_every_parameter(name: str) -> None:
    method: Any = make(name, torch.float32)
    loss = method.loss(make_batch(method, torch.float32))
    assert loss.shape == ()
    assert loss.isfinite()
    loss.backward()
    idle = [n for n, p in method.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert idle == []
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", METHODS)
def test_says_what_it_needs(name: str) -> None:
    method = make(name, torch.float32)
    assert method.needs in ("nothing", "labels", "features")
    assert method.num_views >= 1
    assert isinstance(registry.load("ssl", name).DEFAULTS, Options)
    assert method.after_step(0, 10) is None


@pytest.mark.parametrize("name", METHODS)
def test_loss_is_float32_under_autocast_and_near_the_full_precision(name: str) -> None:
    method = make(name, torch.float32)
    batch = make_batch(method, torch.float32)
    exact = method.loss(batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_lowers_the_loss(name: str) -> None:
    method = make(name, torch.float32)
    batch = make_batch(method, torch.float32)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(loss := method.loss(batch))
        loss.backward()
        optimizer.step()
    assert losses[2] < losses[0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_give_the_loss_and_gradient_of_one(
    name: str, dtype: torch.dtype, tolerance: float, two_ranks: Any
) -> None:
    value, gradient = value_and_gradient(World(), name, dtype)
    for found_value, found in two_ranks.run(value_and_gradient, name, dtype):
        assert found_value == pytest.approx(value, rel=tolerance)
        flat = torch.cat([gradient[n].flatten() for n in gradient])
        found_flat = torch.cat([found[n].flatten() for n in gradient])
        assert (found_flat - flat).norm() <= tolerance * flat.norm()
