"""Training beside lightly: a step of a method on ready views against a bare loop of lightly's modules, and all of
training, from stored images on, against lightly's transform in a DataLoader.

Measured in CPU seconds of one thread, which other load on the machine does not stretch.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
import torchvision
from torch import nn

from corecli.base import registry
from corecli.commands.train_ssl import command as train_ssl
from corecli.commands.train_ssl.building import start_encoder
from corecli.commands.train_ssl.learner import Columns, Learner
from corecli.commands.train_ssl.options import Config
from corecli.data.imageset import open_set, write_set
from corecli.data.memory import keep_freed_memory
from corecli.data.rows import make_rows
from corecli.engine.dist import World, any_rank, average_gradients
from corecli.engine.optim import build_optimizer, set_learning_rate
from corecli.engine.precision import place
from corecli.engine.schedule import learning_rate
from corecli.nets.encoder import build_encoder
from corecli.ssl.parts.method import Batch, Context

NUM, PX, REPEATS, STEPS = 32, 32, 5, 100
Step = Callable[[int], None]
# Options under which ours does what the bare loop does, and the sizes of the projector.
METHODS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "simclr": ({"temperature": 0.2}, {"hidden": 2048, "dim": 128}),
    "barlow-twins": ({"scale": 1.0}, {"hidden": 2048, "dim": 2048}),
    "moco": ({"queue_size": 4096, "symmetric": False}, {"hidden": 2048, "dim": 128}),
}


def our_step(name: str, views: torch.Tensor) -> Step:
    world, module = World(), registry.load("ssl", name)
    options, sizes = METHODS[name]
    encoder = build_encoder("resnet18", image_size=PX, projector_dim=None)
    encoder.set_projector({**module.PROJECTOR, **sizes})
    method = module.build(
        encoder, options=replace(module.Options(), **options), context=Context(batch_size=NUM)
    ).train()
    optimizer = build_optimizer("lars", method.parameters(), lr=0.4, weight_decay=1e-4, clip=False, eta=0.001)
    labels = torch.zeros(NUM, dtype=torch.int64)

    def step(index: int) -> None:
        set_learning_rate(optimizer, learning_rate(index, peak=0.4, total_steps=STEPS, warmup_steps=10))
        optimizer.zero_grad()
        method.loss(Batch(views=tuple(views), labels=labels, groups=labels)).backward()
        average_gradients(method.parameters(), world)
        optimizer.step()
        method.after_step(index, STEPS)
        any_rank(0, world)

    return step


def bare_step(name: str, next_views: Callable[[], torch.Tensor]) -> Step:
    """A training loop as lightly's examples have it, on both views at once where the loss is of both."""
    optimizers = pytest.importorskip("lightly.utils.lars")
    net = bare_network(name)
    loss = bare_loss(name, net)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = optimizers.LARS(trained, lr=0.4, momentum=0.9, weight_decay=1e-4)

    def step(_: int) -> None:
        optimizer.zero_grad()
        loss(next_views()).backward()
        optimizer.step()

    return step


def bare_network(name: str) -> Any:
    modules = pytest.importorskip("lightly.models.modules")
    net: Any = torchvision.models.resnet18()
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    net.fc = {
        "simclr": lambda: nn.Sequential(nn.Linear(512, 2048), nn.ReLU(inplace=True), nn.Linear(2048, 128)),
        "barlow-twins": lambda: modules.BarlowTwinsProjectionHead(512, 2048, 2048),
        "moco": lambda: modules.MoCoProjectionHead(512, 2048, 128),
    }[name]()
    return net


def bare_loss(name: str, net: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    losses, models = pytest.importorskip("lightly.loss"), pytest.importorskip("lightly.models.utils")
    if name == "moco":
        queued = losses.NTXentLoss(temperature=0.2, memory_bank_size=(4096, 128))
        teacher = copy.deepcopy(net)
        models.deactivate_requires_grad(teacher)

        def moco(views: torch.Tensor) -> torch.Tensor:
            models.update_momentum(net, teacher, m=0.99)
            query = net(views[0])
            with torch.no_grad():
                key = teacher(views[1])
            return queued(query, key)

        return moco
    loss = losses.NTXentLoss(temperature=0.2) if name == "simclr" else losses.BarlowTwinsLoss()

    def of_both(views: torch.Tensor) -> torch.Tensor:
        z = net(views.flatten(0, 1))
        return loss(z[:NUM], z[NUM:])

    return of_both


class TimedSteps:
    """Stands for `Run`: times each step of `train-ssl`, and a step of a peer after it."""

    def __init__(self, theirs: Step) -> None:
        self.ours_sec: list[float] = []
        self.theirs_sec: list[float] = []
        self._theirs = theirs

    def steps(self) -> Iterator[int]:
        for index in range(REPEATS + 1):
            start = time.process_time()
            yield index
            middle = time.process_time()
            self._theirs(index)
            self.ours_sec.append(middle - start)
            self.theirs_sec.append(time.process_time() - middle)

    def presented(self, images: int) -> None:
        pass

    def is_log_step(self, step: int) -> bool:
        return False


def measured_training(images: torch.Tensor, folder: Path, theirs: Step) -> tuple[float, float, float]:
    """As `measured`, for the steps of `train-ssl` on a packed set."""
    path = folder / "set.safetensors"
    write_set(path, make_rows([f"{i:04d}" for i in range(len(images))]), [images], class_names=(), header={})
    config = Config(data=str(path), out=folder / "f.safetensors", batch_size=NUM, steps=str(STEPS))
    data = open_set(config.data)
    stages, columns = train_ssl._stages(config, data), Columns(data.rows, None)
    encoder = place(start_encoder(config, data, stages), World().device)
    learner = Learner(stages, partial(train_ssl._start, config, World(), encoder, columns, stages))
    batches, timed = train_ssl._batches(config, data, stages, World(), first_step=0), TimedSteps(theirs)
    monitor: Any = None  # no step is logged
    train_ssl._train(config, World(), timed, batches, columns, learner, monitor, cut=False)  # pyright: ignore
    return medians(timed.ours_sec, timed.theirs_sec)


def lightlys_training(images: torch.Tensor) -> Step:
    """SimCLR on Pillow images, decoded already, by lightly's transform in the main process."""
    transform = pytest.importorskip("lightly.transforms").SimCLRTransform(input_size=PX)
    pillow = [PIL.Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    viewed = [(image, 0) for image in pillow]
    loader = torch.utils.data.DataLoader(
        viewed,  # pyright: ignore[reportArgumentType]
        batch_size=NUM,
        shuffle=True,
        drop_last=True,
        collate_fn=lambda pairs: torch.stack([torch.stack(transform(image)) for image, _ in pairs], dim=1),
    )
    batches = (views for _ in repeat(None) for views in loader)
    return bare_step("simclr", lambda: next(batches))


def measured(ours: Step, theirs: Step) -> tuple[float, float, float]:
    """Seconds of our step and of theirs, and the ratio: medians over steps taken in turn, so that other load meets both
    alike; the first is a warm-up.
    """
    spent: tuple[list[float], list[float]] = ([], [])
    for index in range(REPEATS + 1):
        for step, times in zip((ours, theirs), spent, strict=True):
            start = time.process_time()
            step(index)
            times.append(time.process_time() - start)
    return medians(*spent)


def medians(ours_sec: list[float], theirs_sec: list[float]) -> tuple[float, float, float]:
    """Our median, theirs, and the median ratio, without the first step."""
    pairs = list(zip(ours_sec, theirs_sec, strict=True))[1:]
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    return ours, theirs, statistics.median(ours / theirs for ours, theirs in pairs)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    yield
    torch.set_num_threads(threads)


@pytest.mark.bench
@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_no_slower_than_a_bare_loop(name: str) -> None:
    views = torch.rand(2, NUM, 3, PX, PX)
    mean, std = torch.full((1, 1, 3, 1, 1), 0.45), torch.full((1, 1, 3, 1, 1), 0.22)
    ours, bare, ratio = measured(our_step(name, views), bare_step(name, lambda: (views - mean) / std))
    print(f"\n{name} step, ResNet-18, {NUM} images of {PX} px: ours {ours:.3f} s, bare {bare:.3f} s, x{ratio:.3f}")
    assert ratio <= 1.05


@pytest.mark.bench
def test_training_shows_no_fewer_images_a_second_than_lightly(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (8 * NUM, 3, PX, PX), dtype=torch.uint8)
    ours, theirs, ratio = measured_training(images, tmp_path, lightlys_training(images))
    told = f"ours {NUM / ours:.1f} images/s, lightly {NUM / theirs:.1f}, x{1 / ratio:.3f}"
    print(f"\nSimCLR training, ResNet-18, {NUM} images of {PX} px a step: {told}")
    assert ratio <= 1
