"""From a network's output to an estimate of the clean image: classifier-free guidance and clipping."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from corecli.diffusion.noise import NoiseTables

Network = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
Output = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Prediction(NamedTuple):
    """x0: the estimate of the clean image, [B, C, H, W] float32; v: the learned variance output, or None."""

    x0: torch.Tensor
    v: torch.Tensor | None


Predict = Callable[[torch.Tensor, int], Prediction]


def guided(
    network: Network, condition: torch.Tensor | None, null: torch.Tensor | None, *, guidance: float, channels: int
) -> Output:
    """The network under a condition, as (x_t, t [B]) -> [B, C or 2C, H, W]; its first `channels` are eps.

    eps = eps0 + guidance (eps - eps0), eps0 under `null` (classifier-free guidance, Ho and Salimans, Eq. 6 with
    guidance = 1 + w). Both forwards go in one batch; guidance 1 needs one forward alone. Only eps is guided; a
    learned variance stays that of the condition.
    """
    if guidance == 1 or condition is None:
        return lambda x, t: network(x, t, condition)
    assert null is not None, "guidance needs a null condition"
    both = torch.cat([condition, null])

    def output(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        conditional, unconditional = network(torch.cat([x, x]), torch.cat([t, t]), both).float().chunk(2)
        eps0 = unconditional[:, :channels]
        eps = eps0 + guidance * (conditional[:, :channels] - eps0)
        return torch.cat([eps, conditional[:, channels:]], dim=1)

    return output


def x0_predictor(output: Output, tables: NoiseTables, *, clip: bool = True) -> Predict:
    """The clean image that the predicted eps implies, clipped to [-1, 1] unless told not to.

    Channels of `output` beyond those of x_t are the learned variance.
    """

    def predict(x: torch.Tensor, t: int) -> Prediction:
        timesteps = torch.full((len(x),), t, device=x.device)
        eps, v = split(output(x, timesteps).float(), x.shape[1])
        alpha_bar = tables.alpha_bar_at(t)
        x0 = (x - math.sqrt(1 - alpha_bar) * eps) / math.sqrt(alpha_bar)
        return Prediction(x0.clamp(-1, 1) if clip else x0, v)

    return predict


def split(output: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(eps, v) of a network's output [B, C or 2C, H, W]; v is None where no variance is learned."""
    return output[:, :channels], output[:, channels:] if output.shape[1] > channels else None
