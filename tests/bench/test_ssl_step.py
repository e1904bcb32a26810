"""A SimCLR step (our encoder, loss and LARS) beside a bare loop of the same network with lightly's loss and LARS.

Measured in CPU seconds of one thread, which other load on the machine does not stretch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from corecli.engine.dist import World, any_rank, average_gradients
from corecli.engine.optim import build_optimizer, set_learning_rate
from corecli.engine.schedule import learning_rate
from corecli.nets.encoder import build_encoder
from corecli.ssl import simclr
from corecli.ssl._method import Batch, Task

NUM, PX, REPEATS = 32, 32, 5


def our_step(views: torch.Tensor) -> Callable[[int], None]:
    world = World()
    method = simclr.build(build_encoder("resnet18", image_size=PX), options=simclr.Options(), task=Task()).train()
    optimizer = build_optimizer("lars", method.parameters(), lr=0.4, weight_decay=1e-4, clip=False, eta=0.001)
    labels = torch.zeros(NUM, dtype=torch.int64)

    def step(index: int) -> None:
        set_learning_rate(optimizer, learning_rate(index, peak=0.4, total_steps=100, warmup_steps=10))
        optimizer.zero_grad()
        method.loss(Batch(views=tuple(views), labels=labels, groups=labels)).backward()
        average_gradients(method.parameters(), world)
        optimizer.step()
        any_rank(0, world)

    return step


def bare_step(views: torch.Tensor) -> Callable[[int], None]:
    loss = pytest.importorskip("lightly.loss").NTXentLoss(temperature=0.2)
    lars = pytest.importorskip("lightly.utils.lars").LARS
    backbone: Any = torchvision.models.resnet18()
    backbone.conv1, backbone.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    backbone.fc = nn.Sequential(nn.Linear(512, 2048), nn.ReLU(inplace=True), nn.Linear(2048, 128))
    optimizer = lars(backbone.parameters(), lr=0.4, momentum=0.9, weight_decay=1e-4)
    mean, std = torch.full((1, 3, 1, 1), 0.45), torch.full((1, 3, 1, 1), 0.22)

    def step(index: int) -> None:
        optimizer.zero_grad()
        z = backbone((torch.cat(tuple(views)) - mean) / std)
        loss(z[:NUM], z[NUM:]).backward()
        optimizer.step()

    return step


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.bench
@pytest.mark.usefixtures("one_thread")
def test_simclr_step_is_no_slower_than_a_bare_loop() -> None:
    views = torch.rand(2, NUM, 3, PX, PX)
    steps = {"ours": our_step(views), "bare": bare_step(views)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(REPEATS + 1):  # taken in turn, so that other load meets both; the first is a warm-up
        for name, step in steps.items():
            start = time.process_time()
            step(index)
            seconds[name].append(time.process_time() - start)
    ours, bare = (statistics.median(times[1:]) for times in seconds.values())
    print(f"\nSimCLR ResNet-18 step, {NUM} images of {PX} px: ours {ours:.3f} s, bare {bare:.3f} s, x{ours / bare:.3f}")
    assert ours <= 1.05 * bare
