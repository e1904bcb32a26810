"""What a method is: the views it wants of a batch, and a loss of them.

One file of this folder is one method: `build(encoder, options=...)` returns it, DEFAULTS are its options with their
source. `loss` is this process's share; the mean over ranks is the loss of the global batch (`engine.dist`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from corecli.base.errors import UsageError
from corecli.nets.encoder import Encoder

Needs = Literal["nothing", "labels", "features"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """This process's rows of a step, on its device.

    views: V tensors, float [B, 3, H, W] in [0, 1]; labels: int64 [B], -1 unknown; groups: int64 [B], equal for members
    of one group; targets: float [B, D], the rows of a feature table, for methods that need features.
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    groups: Tensor
    targets: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may set (None: the method's default), then what the data and the run decide."""

    temperature: float | None = None
    num_views: int | None = None
    num_classes: int | None = None
    target_dim: int | None = None
    seed: int = 0


class Method(Protocol):
    """An `nn.Module` that holds the encoder, and whatever else it trains."""

    encoder: Encoder
    num_views: int
    needs: Needs

    def loss(self, batch: Batch) -> Tensor:
        """The share of this process in the loss of the step, a scalar with gradient."""
        ...

    def after_step(self, step: int, total_steps: int) -> None:
        """Called after the optimizer's step: moving averages, queues."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> Any: ...
    def to(self, device: torch.device) -> Any: ...
    def train(self, mode: bool = True) -> Any: ...


def resolve(options: Options, defaults: Options, *, method: str) -> Options:
    """`options` with the method's defaults filled in.

    Errors: UsageError for an option the method has no use for.
    """
    for name in ("temperature", "num_views"):
        if getattr(options, name) is not None and getattr(defaults, name) is None:
            raise UsageError(f"{method} has no {name.replace('_', ' ')} to set")
    given = {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
    return dataclasses.replace(defaults, **given)


def embed(encoder: Encoder, views: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """V views of one size, each [B, 3, H, W] -> (h [V, B, D], z [V, B, P]), in one forward pass.

    BatchNorm's statistics are therefore those of all views together, as in SimCLR's own code and lightly's; solo-learn
    takes them view by view.
    """
    h, z = encoder(torch.cat(views))
    shape = (len(views), len(views[0]))
    return h.unflatten(0, shape), z.unflatten(0, shape)
