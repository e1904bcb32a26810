"""DiT: diffusion with a transformer, on pixels or on the latents of a first stage (Peebles and Xie 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from corecli.generators.parts.diffusion import Diffusion
from corecli.generators.parts.latent import LatentConfig, data_shape_of, first_stage_of
from corecli.nets.dit import DiT, size_of

FIRST_STAGE = "optional"
TINY = {"image_size": 16, "learn_sigma": False, "size": "tiny", "patch": 4}  # fields of a small network, for tests


@dataclass(frozen=True, kw_only=True)
class Config(LatentConfig):
    """The defaults are DiT-B/2.

    size: "s", "b", "l", "xl" (DiT, Table 1) or "tiny". patch: side of a patch, in pixels or latents.
    """

    size: str = "b"
    patch: int = 2


def build(config: Config) -> Diffusion:
    """Build a generator with new weights from torch's global generator.

    Errors: UsageError if image size, patch or condition do not fit together.
    """
    stage = first_stage_of(config)
    channels, side, _ = data_shape_of(config, stage)
    network = DiT(
        image_size=side,
        in_channels=channels,
        out_channels=config.out_channels(channels),
        patch=config.patch,
        size=size_of(config.size),
    )
    return Diffusion(config, network, width=network.width, first_stage=stage)
