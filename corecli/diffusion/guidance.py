"""From a network's output to an estimate of the clean image: classifier-free guidance and clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from corecli.base.errors import UsageError
from corecli.diffusion.levels import Level, noise_ratio
from corecli.diffusion.objectives.parts.objective import Objective
from corecli.diffusion.training import split

Network = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
Output = Callable[[torch.Tensor, Level[float]], torch.Tensor]


class Prediction(NamedTuple):
    """x0: the estimate of the clean image, [B, C, H, W]; v: the output for the learned variance, or None."""

    x0: torch.Tensor
    v: torch.Tensor | None


Predict = Callable[[torch.Tensor, Level[float]], Prediction]


class Guidance(NamedTuple):
    """Classifier-free guidance with weight `scale`; 1 means none.

    interval: (low, high]: the noise ratios sigma / alpha at which it acts; elsewhere the network runs once, under the
    condition, at half the cost (Kynkaanniemi et al. 2024, Eq. 5).
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None

    def check(self) -> None:
        """Check the interval. Errors: UsageError if it is empty, or given without guidance."""
        if self.interval is None:
            return
        low, high = self.interval
        if not 0 <= low < high:
            hint = "give two noise levels sigma / alpha, the lower one first, such as 0.19,1.61"
            raise UsageError(f"the guidance interval {low:g} to {high:g} is empty", hint=hint)
        if self.scale == 1:
            raise UsageError("a guidance interval needs guidance", hint="give a guidance other than 1")

    def at(self, level: Level[float]) -> float:
        """Return the guidance at a level."""
        if self.interval is None:
            return self.scale
        low, high = self.interval
        return self.scale if low < noise_ratio(level) <= high else 1.0


def guided(
    network: Network, condition: torch.Tensor | None, null: torch.Tensor | None, guidance: Guidance, *, channels: int
) -> Output:
    """Return the guided network as a function (x, level) -> [B, C or 2C, H, W].

    Its first `channels` are o0 + guidance (o - o0), with o under `condition` and o0 under `null` (Ho and Salimans,
    Eq. 6 with guidance = 1 + w). Since every objective's output is an affine function of x0, this guides x0. Both
    forward passes run as one batch; guidance 1 needs a single pass. A learned variance is not guided.
    """
    both = torch.cat([condition, null]) if condition is not None and null is not None else None

    def output(x: torch.Tensor, level: Level[float]) -> torch.Tensor:
        scale = guidance.at(level)
        seen, t = level.scale * x, torch.full((len(x),), level.t, device=x.device)
        if scale == 1 or condition is None:
            return network(seen, t, condition)
        assert both is not None, "guidance needs a null condition"
        one, other = network(torch.cat([seen, seen]), torch.cat([t, t]), both).to(x.dtype).chunk(2)
        mixed = other[:, :channels] + scale * (one[:, :channels] - other[:, :channels])
        return torch.cat([mixed, one[:, channels:]], dim=1)

    return output


def denoiser(output: Output, objective: Objective, *, clip: bool) -> Predict:
    """Return the function (x, level) -> estimate of the clean image, with the dtype of x.

    clip: whether to clip the estimate to [-1, 1]. Output channels beyond those of x are the learned variance.
    """

    def predict(x: torch.Tensor, level: Level[float]) -> Prediction:
        prediction, v = split(output(x, level).to(x.dtype), x.shape[1])
        x0 = objective.x0(prediction, x, level)
        return Prediction(x0.clamp(-1, 1) if clip else x0, v)

    return predict
