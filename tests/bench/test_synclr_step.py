"""A step of SynCLR on a ViT-S/8 at 64 px beside the same modules in a bare loop, in CPU seconds of one thread."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from corecli.engine.dist import World, average_gradients
from corecli.engine.optim import build_optimizer, set_learning_rate, set_weight_decay
from corecli.engine.precision import autocast
from corecli.engine.schedule import learning_rate, weight_decay
from corecli.nets.encoder import build_encoder
from corecli.ssl import synclr
from corecli.ssl.parts.method import Batch, Context

NUM, PX, LOCAL_PX, LOCALS, PER_GROUP, PROTOTYPES = 16, 64, 32, 4, 4, 4096
STEPS, REPEATS = 1000, 3
Step = Callable[[int], None]


def make_method() -> Any:
    encoder = build_encoder("vit-small/8", image_size=PX, projector_dim=None, drop_path=0.1)
    encoder.set_projector({**synclr.PROJECTOR, "hidden": 2048})  # pyright: ignore[reportArgumentType]
    options = synclr.Options(prototypes=PROTOTYPES, predictor_hidden=2048)
    context = Context(num_views=1, num_local_views=LOCALS, batch_size=NUM)
    return synclr.build(encoder, options=options, context=context).train()


def our_step(views: torch.Tensor, local_views: torch.Tensor, groups: torch.Tensor, precision: str) -> Step:
    world, method = World(), make_method()
    optimizer = build_optimizer("adamw", method.parameters(), lr=1e-3, weight_decay=0.04)

    def step(index: int) -> None:
        set_learning_rate(optimizer, learning_rate(index, peak=1e-3, total_steps=STEPS, warmup_steps=10))
        set_weight_decay(optimizer, weight_decay(index, start=0.04, end=0.2, total_steps=STEPS))
        batch = Batch(views=(views,), local_views=tuple(local_views), labels=groups, groups=groups, step=index)
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision, world.device):
            loss = method.loss(batch)
        loss.backward()
        average_gradients(method.parameters(), world)
        optimizer.step()
        method.after_step(index, STEPS)

    return step


def bare_step(views: torch.Tensor, local_views: torch.Tensor, groups: torch.Tensor) -> Step:
    """The reference's arithmetic on one process: Sinkhorn of exponentials, cached positives, a loop over parameters."""
    method = make_method()
    net, projector, predictor, head = (
        *(method.encoder.backbone, method.encoder.projector),
        *(method.predictor, method.patches),
    )
    averaged = torch.nn.ModuleList([net, projector, head])
    teacher: Any = copy.deepcopy(averaged).requires_grad_(False)
    token = method.mask_token
    trained = [*averaged.parameters(), *predictor.parameters(), token]
    optimizer = torch.optim.AdamW([p for p in trained if p.requires_grad], lr=1e-3, weight_decay=0.04, fused=True)
    positive = (groups[:, None] == groups).float()
    others = 1 - torch.eye(NUM)

    def tokens(net: Any, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = net.patch_embed((x - method.encoder.mean) / method.encoder.std)
        if mask is not None:
            x = torch.where(mask.view(*x.shape[:-1], 1), token, x)
        return net.norm(net.blocks(net._pos_embed(x)))

    def contrast(q: torch.Tensor, k: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / 0.08
        logits = logits - logits.max(dim=1, keepdim=True).values.detach()
        log_p = logits - (logits.exp() * kept).sum(dim=1, keepdim=True).log()
        wanted = positive.repeat(len(q) // NUM, 1) * kept
        return -((wanted * log_p).sum(dim=1) / wanted.sum(dim=1)).mean()

    def shares(logits: torch.Tensor) -> torch.Tensor:
        q = (logits / 0.04).exp()
        for _ in range(3):
            q = q / q.sum(dim=0)
            q = q / q.sum(dim=1, keepdim=True)
        return q

    def step(index: int) -> None:
        mask = torch.zeros(NUM, (PX // 8) ** 2, dtype=torch.bool)
        mask[: NUM // 2, torch.randperm(mask.shape[1])[: mask.shape[1] // 2]] = True
        student, local = tokens(net, views, mask), tokens(net, local_views.flatten(0, 1))
        with torch.no_grad():
            seen = tokens(teacher[0], views)
            keys, targets = teacher[1](seen[:, 0]), shares(teacher[2](seen[:, 1:][mask]))
        q, q_local = (predictor(projector(x[:, 0])) for x in (student, local))
        log_p = (head(student[:, 1:][mask]) / 0.1).log_softmax(dim=1)
        loss = contrast(q, keys, others) + contrast(q_local, keys, torch.ones(len(q_local), NUM))
        loss = loss - (targets * log_p).sum(dim=1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        momentum = 1 - 0.006 * (1 + math.cos(math.pi * index / STEPS)) / 2
        with torch.no_grad():
            for ours, theirs in zip(teacher.parameters(), averaged.parameters(), strict=True):
                ours.mul_(momentum).add_(theirs, alpha=1 - momentum)

    return step


def seconds(step: Step, index: int) -> float:
    start = time.process_time()
    step(index)
    return time.process_time() - start


@pytest.mark.bench
def test_a_step_of_synclr_is_no_slower_than_a_bare_loop() -> None:
    torch.set_num_threads(1)
    views, local_views = torch.rand(NUM, 3, PX, PX), torch.rand(LOCALS, NUM, 3, LOCAL_PX, LOCAL_PX)
    groups = torch.arange(NUM) // PER_GROUP
    ours, bare = our_step(views, local_views, groups, "fp32"), bare_step(views, local_views, groups)
    half = our_step(views, local_views, groups, "bf16")
    spent = [tuple(seconds(step, i) for step in (ours, bare, half)) for i in range(REPEATS + 1)][1:]
    ratio = statistics.median(a / b for a, b, _ in spent)
    rates = [NUM / statistics.median(times) for times in zip(*spent, strict=True)]
    told = "ours {:.2f} images/s, bare {:.2f}, ours in bf16 {:.2f}".format(*rates)
    print(f"\nSynCLR step, ViT-S/8 at {PX} px, {NUM} images of 1+{LOCALS} crops: {told}; time x{ratio:.3f}")
    assert ratio <= 1.05
