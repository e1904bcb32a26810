"""Methods on a small encoder, and batches for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from corecli.base import registry
from corecli.base.config import named_values, parse_fields
from corecli.nets.encoder import build_encoder
from corecli.ssl.parts.method import Batch, Context

NUM, DIM, PX = 6, 16, 8


def tiny(name: str) -> Mapping[str, Any]:
    """Options of `train-ssl`, as in a preset, that make a method small enough for tests."""
    return {"backbone": "resnet10-tiny", "set": (), **registry.constants("ssl", name).get("TINY", {})}


def tiny_options(name: str) -> Any:
    """The `Options` of a method small enough for tests."""
    options = registry.load("ssl", name).Options
    return options(**parse_fields(options, named_values(tiny(name)["set"]), where=name))


def make_method(
    name: str, *, backbone: str = "resnet10-tiny", image_size: int = PX, steps_per_epoch: int = 1, **options: Any
) -> Any:
    """A method in training mode, with a narrow projector of the kind it was published with."""
    module = registry.load("ssl", name)
    encoder = build_encoder(backbone, image_size=image_size, projector_dim=None)
    encoder.set_projector({**module.PROJECTOR, "hidden": 32, "dim": DIM})
    given: Any = replace(module.Options(), **options)
    context = Context(batch_size=NUM, num_classes=3, steps_per_epoch=steps_per_epoch)
    return module.build(encoder, options=given, context=context).train()


def make_batch(*, seed: int = 1, num_local: int = 0, image_size: int = PX, step: int = 0, total: int = 100) -> Batch:
    """A batch of NUM random images with two global views."""
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        views=tuple(torch.rand(2, NUM, 3, image_size, image_size, generator=generator)),
        local_views=tuple(torch.rand(num_local, NUM, 3, image_size // 2, image_size // 2, generator=generator)),
        labels=torch.arange(NUM) % 3,
        groups=torch.arange(NUM),
        step=step,
        total_steps=total,
    )


def take_step(method: Any, batch: Batch, *, lr: float = 0.1) -> torch.Tensor:
    """Take a step of plain gradient descent as a run does; return the loss."""
    method.zero_grad(set_to_none=True)
    loss = method.loss(batch)
    loss.backward()
    with torch.no_grad():
        for p in method.parameters():
            if p.grad is not None:
                p.sub_(lr * p.grad)
    method.after_step(batch.step, batch.total_steps)
    return loss.detach()
