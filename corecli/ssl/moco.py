"""MoCo v2+: contrast the key of an image with a queue of earlier keys (He et al. 2020, Chen et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corecli.base.errors import UsageError
from corecli.engine.dist import gather_with_gradient
from corecli.nets.encoder import Encoder
from corecli.nets.initial import seeded
from corecli.ssl.parts.losses import info_nce_queue
from corecli.ssl.parts.method import Batch, Context, check_temperature, check_views, embed
from corecli.ssl.parts.teacher import TaughtMethod

VIEWS, AUGMENT = "2g", "moco"
PROJECTOR = {"hidden": 2048, "dim": 256, "norm": "none"}  # solo-learn; MoCo v2: 2048, 128
TINY = {"set": ("queue_size=35",)}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of moco."""

    temperature: float = 0.2  # MoCo v2; solo-learn
    queue_size: int = 32768  # solo-learn for CIFAR; 65536 for ImageNet, as MoCo
    symmetric: bool = True  # solo-learn's v2+: both views are queries, each with its own queue; else view 0 only
    momentum_start: float = 0.99  # solo-learn, with a cosine; MoCo v2: 0.999 throughout
    momentum_end: float = 0.999


def build(encoder: Encoder, *, options: Options, context: Context) -> MoCo:
    """Build MoCo; it trains the encoder's projector. Errors: UsageError."""
    check_views(context, method="moco", views=(2,))
    check_temperature(options.temperature)
    if options.queue_size < 1:
        raise UsageError(f"queue_size must be at least 1, not {options.queue_size}")
    dim = encoder.projector_dim or encoder.num_features
    with seeded(context.seed, "moco"):
        queues = [Queue(options.queue_size, dim) for _ in range(2 if options.symmetric else 1)]
    return MoCo(encoder, queues, options=options)


class MoCo(TaughtMethod):
    """The contrast of each view with the teacher's key of the other view and the queue of such keys."""

    accumulates = False

    def __init__(self, encoder: Encoder, queues: list[Queue], *, options: Options) -> None:
        super().__init__(encoder, momentum_start=options.momentum_start, momentum_end=options.momentum_end)
        self.queues, self.temperature = nn.ModuleList(queues), options.temperature
        self._keys: tuple[Tensor, ...] = ()

    def loss(self, batch: Batch) -> Tensor:
        num_queues = len(self.queues)
        _, q = embed(self.encoder, batch.views[:num_queues])
        self._keys = tuple(self.teach(batch.views[::-1][:num_queues]))  # the key of view 0 is view 1, and the reverse
        terms = [
            info_nce_queue(query, key, queue.rows, temperature=self.temperature)
            for query, key, queue in zip(q, self._keys, self._queues(), strict=True)
        ]
        return sum(terms[1:], terms[0]) / len(terms)

    def after_step(self, step: int, total_steps: int) -> None:
        super().after_step(step, total_steps)
        for queue, keys in zip(self._queues(), self._keys, strict=bool(self._keys)):
            queue.push(keys)
        self._keys = ()

    def _queues(self) -> list[Queue]:
        return list(self.queues)  # pyright: ignore[reportReturnType]


class Queue(nn.Module):
    """The unit rows [K, D] of the last keys, at first random directions; buffers, so that checkpoints hold them.

    All ranks hold the same rows: the keys of the global batch enter in rank order. K need not be a multiple of the
    batch.
    """

    rows: Tensor
    oldest: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))  # the row that is replaced next

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Replace the oldest rows by the keys [B, D] of all ranks; keys may have any length."""
        keys = gather_with_gradient(F.normalize(keys.to(self.rows.dtype), dim=1))
        size, last = len(self.rows), len(keys)
        places = self.oldest + torch.arange(max(0, last - size), last, device=keys.device)  # of the last K keys
        self.rows.index_copy_(0, places % size, keys[-size:])
        self.oldest.copy_((self.oldest + last) % size)
