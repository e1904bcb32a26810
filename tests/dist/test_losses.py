"""Collectives: values and gradients over two processes against one process with all rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from corecli.base.errors import UsageError
from corecli.engine.dist import (
    World,
    any_rank,
    average_gradients,
    barrier,
    gather_with_gradient,
    mean_over_ranks,
    sum_over_ranks,
)
from corecli.nets.batchnorm import synchronize_batchnorm
from corecli.ssl.parts.losses import nt_xent

SIZE, NUM = 2, 6


def rows_of(world: World, x: torch.Tensor) -> torch.Tensor:
    num = len(x) // world.size
    return x[world.rank * num : (world.rank + 1) * num]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gathered(world: World) -> tuple[torch.Tensor, torch.Tensor]:
    x = rows_of(world, draw(NUM, 3)).clone().requires_grad_()
    everything = gather_with_gradient(x)
    weights = draw(NUM, 3, seed=10 + world.rank)  # another loss on each rank
    (everything * weights).sum().backward()
    assert x.grad is not None
    return everything.detach(), x.grad


def test_gather_is_in_rank_order_and_its_gradient_is_the_sum_over_ranks(two_ranks: Any) -> None:
    expected = draw(NUM, 3, seed=10) + draw(NUM, 3, seed=11)
    for rank, (everything, gradient) in enumerate(two_ranks.run(gathered)):
        assert torch.equal(everything, draw(NUM, 3))
        torch.testing.assert_close(gradient, expected[rank * 3 : rank * 3 + 3])


def contrast(world: World, temperature: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(global loss, gradient of a shared weight) of NT-Xent on linear embeddings of this rank's rows."""
    weight = nn.Parameter(draw(5, 4, seed=3).to(dtype))
    views = [rows_of(world, draw(NUM, 5, seed=s)).to(dtype) @ weight for s in (1, 2)]
    loss = nt_xent(views[0], views[1], temperature=temperature)
    loss.backward()
    average_gradients([weight], world)
    assert weight.grad is not None
    return mean_over_ranks(loss), weight.grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_nt_xent_contrasts_the_global_batch(
    temperature: float, dtype: torch.dtype, tolerance: float, two_ranks: Any
) -> None:
    value, gradient = contrast(World(), temperature, dtype)
    for found in two_ranks.run(contrast, temperature, dtype):
        torch.testing.assert_close(found[0], value, rtol=tolerance, atol=0)
        assert (found[1] - gradient).norm() <= tolerance * gradient.norm()


def normalized(world: World, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Two training steps of a BatchNorm with a loss that is not symmetric in its rows, then an evaluation."""
    norm = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(shape[1]).double()
    nn.init.uniform_(norm.weight, 0.5, 2, generator=torch.Generator().manual_seed(4))
    net: Any = synchronize_batchnorm(nn.Sequential(norm), world.device)
    net = synchronize_batchnorm(net, world.device)  # as each stage of a run does; once more changes nothing
    found: dict[str, torch.Tensor] = {}
    for step in range(2):
        x = rows_of(world, 3 + 2 * draw(*shape, seed=step)).clone().requires_grad_()
        y = net(x)
        net.zero_grad()
        (y * rows_of(world, draw(*shape, seed=20 + step))).mean().backward()
        average_gradients(net.parameters(), world)
        assert x.grad is not None
        found |= {f"y{step}": y.detach(), f"dx{step}": x.grad / world.size}
        found |= {f"{name}{step}": p.grad.clone() for name, p in net.named_parameters()}
    found["evaluated"] = net.eval()(rows_of(world, draw(*shape, seed=9))).detach()
    return {**found, **{f"state {name}": value for name, value in net.state_dict().items()}}


@pytest.mark.parametrize("shape", [(NUM, 4), (NUM, 4, 3, 3)], ids=["1d", "2d"])
def test_synchronized_batchnorm_is_that_of_the_global_batch(shape: tuple[int, ...], two_ranks: Any) -> None:
    expected = normalized(World(), shape)
    for rank, found in enumerate(two_ranks.run(normalized, shape)):
        assert found.keys() == expected.keys()
        for name, value in found.items():
            local = name in ("y0", "y1", "dx0", "dx1", "evaluated")
            wanted = rows_of(World(rank=rank, size=SIZE), expected[name]) if local else expected[name]
            torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def collect(world: World) -> dict[str, Any]:
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4, dtype=torch.float64))]
    for p in parameters:
        p.grad = torch.full_like(p, 1.0 + world.rank)
    unused = nn.Parameter(torch.zeros(1))
    average_gradients([*parameters, unused], world)
    barrier(world)
    return {
        "flags": any_rank(1 << world.rank, world),
        "none": any_rank(0, world),
        "sum": sum_over_ranks(torch.tensor([1 + world.rank])).tolist(),
        "mean": mean_over_ranks(torch.tensor(1.0 + world.rank)).item(),
        "gradients": [p.grad.unique().tolist() for p in parameters if p.grad is not None],
        "world": (world.rank, world.size, world.is_main),
    }


def test_the_other_collectives(two_ranks: Any) -> None:
    for rank, found in enumerate(two_ranks.run(collect)):
        assert found == {
            "flags": 3,
            "none": 0,
            "sum": [3],
            "mean": 1.5,
            "gradients": [[1.5], [1.5]],
            "world": (rank, SIZE, rank == 0),
        }


def refused(world: World) -> str:
    class Special(nn.BatchNorm2d):
        pass

    try:
        synchronize_batchnorm(nn.Sequential(Special(3)), world.device)
    except UsageError as error:
        return str(error)
    return "accepted"


def test_another_kind_of_batchnorm_is_an_error(two_ranks: Any) -> None:
    assert all("Special cannot be synchronized" in found for found in two_ranks.run(refused))


def test_one_process_communicates_and_copies_nothing() -> None:
    world, x = World(), torch.ones(2, requires_grad=True)
    net = nn.Sequential(nn.BatchNorm1d(2))
    assert gather_with_gradient(x) is x
    assert any_rank(5, world) == 5
    assert synchronize_batchnorm(net, world.device) is net
    assert type(net[0]) is nn.BatchNorm1d
