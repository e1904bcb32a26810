"""A perceptron that predicts the noise of an image from all of its pixels, the time and the condition."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from corecli.generators.parts.diffusion import CHANNELS, Diffusion, DiffusionConfig
from corecli.nets.unet import TimeEmbedding

TINY = {"image_size": 16, "learn_sigma": False, "hidden": 256}


@dataclass(frozen=True, kw_only=True)
class Config(DiffusionConfig):
    """hidden: width of the hidden layers."""

    hidden: int = 512


def build(config: Config) -> Diffusion:
    network = Perceptron(CHANNELS * config.image_size**2, config.hidden, config.out_channels(CHANNELS) // CHANNELS)
    return Diffusion(config, network, width=config.hidden)


class Perceptron(nn.Module):
    """(x [B, C, S, S], t [B], optional vector [B, hidden]) -> [B, num_outputs * C, S, S]."""

    def __init__(self, num_pixels: int, hidden: int, num_outputs: int) -> None:
        super().__init__()
        self.time, self.inside = TimeEmbedding(64, hidden), nn.Linear(num_pixels, hidden)
        self.middle, self.gain = nn.Linear(hidden, hidden), nn.Linear(hidden, num_outputs)
        self.outside = nn.Linear(hidden, num_outputs * num_pixels)

    def forward(self, x: Tensor, t: Tensor, vector: Tensor | None = None) -> Tensor:
        c = self.time(t) if vector is None else self.time(t) + vector
        h = nn.functional.silu(self.inside(x.flatten(1)) + c)
        h = h + nn.functional.silu(self.middle(h))
        out = self.outside(h).view(len(x), -1, *x.shape[1:])
        return (out + self.gain(c)[:, :, None, None, None] * x[:, None]).flatten(1, 2)
