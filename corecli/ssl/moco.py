"""MoCo v2+: an image's key is told from a queue of keys of earlier batches (He et al. 2020, Chen et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from corecli.base.errors import UsageError
from corecli.nets.encoder import Encoder
from corecli.nets.initial import seeded
from corecli.ssl.parts.losses import info_nce_queue
from corecli.ssl.parts.method import Batch, Task, check_temperature, check_views, embed
from corecli.ssl.parts.queue import Queue
from corecli.ssl.parts.taught import TaughtMethod

VIEWS, AUGMENT = "2g", "moco"
PROJECTOR = {"hidden": 2048, "dim": 256, "norm": "none"}  # solo-learn; MoCo v2: 2048, 128


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of moco."""

    temperature: float = 0.2  # MoCo v2; solo-learn
    queue_size: int = 32768  # solo-learn for CIFAR; 65536 for ImageNet, as MoCo
    symmetric: bool = True  # solo-learn's v2+: both views ask, each of a queue of its own; else view 0 alone
    momentum_start: float = 0.99  # solo-learn, with a cosine; MoCo v2: 0.999 throughout
    momentum_end: float = 0.999


def build(encoder: Encoder, *, options: Options, task: Task) -> MoCo:
    """MoCo on an encoder, whose projector it trains. Errors: UsageError."""
    check_views(task, method="moco", views=(2,))
    check_temperature(options.temperature)
    if options.queue_size < 1:
        raise UsageError(f"the queue holds 1 key or more, not {options.queue_size}")
    dim = encoder.projector_dim or encoder.num_features
    with seeded(task.seed, "moco"):
        queues = [Queue(options.queue_size, dim) for _ in range(2 if options.symmetric else 1)]
    return MoCo(encoder, queues, options=options)


class MoCo(TaughtMethod):
    """The contrast of each view with the teacher's key of the other; a queue holds the keys of one view."""

    accumulates = False

    def __init__(self, encoder: Encoder, queues: list[Queue], *, options: Options) -> None:
        super().__init__(encoder, momentum_start=options.momentum_start, momentum_end=options.momentum_end)
        self.queues, self.temperature = nn.ModuleList(queues), options.temperature
        self._keys: tuple[Tensor, ...] = ()

    def loss(self, batch: Batch) -> Tensor:
        num_queues = len(self.queues)
        _, q = embed(self.encoder, batch.views[:num_queues])
        self._keys = tuple(self.teach(batch.views[::-1][:num_queues]))  # for view 0 that of view 1, and the reverse
        terms = [
            info_nce_queue(asked, key, queue.rows, temperature=self.temperature)
            for asked, key, queue in zip(q, self._keys, self._queues(), strict=True)
        ]
        return sum(terms[1:], terms[0]) / len(terms)

    def after_step(self, step: int, total_steps: int) -> None:
        super().after_step(step, total_steps)
        for queue, keys in zip(self._queues(), self._keys, strict=bool(self._keys)):
            queue.push(keys)
        self._keys = ()

    def _queues(self) -> list[Queue]:
        return list(self.queues)  # pyright: ignore[reportReturnType]
