"""The game of a batch that is split over two processes is that of one: losses, gradients, statistics of BatchNorm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from corecli.engine.dist import World, mean_over_ranks
from corecli.generators import icgan
from corecli.generators.parts.learning import TrainOptions

BATCH, DIM, SIZE = 8, 6, 8


def learned(world: World, discriminator_steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """(losses, gradients, buffers) after a step on this rank's rows.

    The discriminator hardly moves: a first step of Adam would make much of rounding where a gradient is near 0.
    """
    torch.manual_seed(0)
    generator = icgan.build(
        icgan.Config(
            image_size=SIZE,
            condition_dim=DIM,
            channels=8,
            channel_mult=(2, 2),
            discriminator_mult=(2, 2),
            attention_px=(4,),
            z_dim=12,
            condition_width=16,
            discriminator_steps=discriminator_steps,
            discriminator_lr=1e-9,
        )
    )
    trained = icgan.learner(generator, TrainOptions(clip=0.0), world)
    g = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), generator=g, dtype=torch.uint8)
    features = torch.randn(BATCH, DIM, generator=g)
    num = BATCH // world.size
    mine = slice(world.rank * num, (world.rank + 1) * num)
    losses = trained.learn(images[mine], features[mine], generator.draw(0, 0, batch=BATCH)[mine])
    networks = {"g": generator, "d": trained.discriminator}
    gradients = {f"{k}.{n}": p.grad for k, net in networks.items() for n, p in net.named_parameters()}
    buffers = {f"{k}.{n}": b.clone() for k, net in networks.items() for n, b in net.named_buffers()}
    found = {name: mean_over_ranks(value) for name, value in losses.items()}
    return found, {n: g for n, g in gradients.items() if g is not None}, buffers


@pytest.mark.parametrize("discriminator_steps", [1, 2])
def test_two_processes_play_the_game_of_one(discriminator_steps: int, two_ranks: Any) -> None:
    one = learned(World(), discriminator_steps)
    assert all(g.norm() > 1e-3 for n, g in one[1].items() if "weight" in n and "attention" not in n)
    for found in two_ranks.run(learned, discriminator_steps):
        for ours, theirs in zip(one, found, strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in ours.items():
                difference = (theirs[name] - value).double().norm()
                assert difference <= 1e-4 * value.double().norm() + 1e-5, name  # biases before a norm have none
