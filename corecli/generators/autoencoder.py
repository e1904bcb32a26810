"""A first stage: an autoencoder for the latents of ldm and dit (Rombach et al. 2022, section 3.1)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corecli.base.errors import DataError, UsageError, unknown_name
from corecli.base.pixels import to_unit_range
from corecli.base.rng import torch_generator
from corecli.nets.autoencoder import KL, VQ, FirstStage, Spec, encoded
from corecli.nets.encoder import load_encoder
from corecli.nets.perceptual import PerceptualDistance
from corecli.nets.unet import norm_groups_for

CONDITIONS = ("none",)
TINY = {"image_size": 16, "channels": 16, "channel_mult": (1, 2)}  # fields of a small network, for tests
KINDS = {"kl": KL, "vq": VQ}
ERRORS = {"l1": F.l1_loss, "l2": F.mse_loss}


@dataclass(frozen=True, kw_only=True)
class SharedConfig:
    """Fields that every family has. condition: always "none".

    first_stage: spec from which `nets.autoencoder` builds the network; set in the built generator's config.
    """

    image_size: int = 32
    flip: bool = True
    condition: str = "none"
    first_stage: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Config(SharedConfig):
    """The defaults are a small KL autoencoder that downsamples images by 4.

    kind: "kl" for a small KL penalty toward a standard normal, or "vq" for a codebook.
    channels, channel_mult: widths of the levels; every level except the last halves the image.
    attention: whether the middle blocks have attention. attention_levels: number of innermost levels that have it too.
    codes: number of entries of the codebook.
    error: reconstruction error, "l1" or "l2".
    kl_weight: weight of the KL (summed over latents) relative to the error (summed over pixels; LDM, Appendix G).
    commitment: weight that draws encodings to their code (VQ-VAE, Eq. 3).
    perceptual: encoder file or timm:NAME for an additional distance between features. perceptual_weight: its weight.
    """

    kind: str = "kl"
    channels: int = 64
    channel_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 1
    latent_channels: int = 4
    attention: bool = True
    attention_levels: int = 0
    codes: int = 1024
    error: str = "l1"
    kl_weight: float = 1e-6
    commitment: float = 0.25
    perceptual: str = ""
    perceptual_weight: float = 1.0


def build(config: Config) -> Autoencoder:
    """Build an autoencoder with new weights from torch's global generator. Errors: UsageError."""
    if config.kind not in KINDS:
        raise unknown_name("kind of autoencoder", config.kind, KINDS)
    if config.error not in ERRORS:
        raise unknown_name("error", config.error, ERRORS)
    if config.condition != "none":
        raise UsageError(f"an autoencoder is not conditioned on {config.condition}", hint="use --condition none")
    return Autoencoder(dataclasses.replace(config, channel_mult=tuple(config.channel_mult)))


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Random numbers of a training step for B images. noise: [B, C, h, w], of latents. flip: bool [B]."""

    noise: Tensor
    flip: Tensor

    def __getitem__(self, rows: slice) -> Draws:
        return Draws(noise=self.noise[rows], flip=self.flip[rows])

    def to(self, device: torch.device) -> Draws:
        """Return the same draws on a device."""
        return Draws(noise=self.noise.to(device), flip=self.flip.to(device))


class Autoencoder(nn.Module):
    """A `Generator` that is trained like others; it makes images only from images, by `reconstruct`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        spec = _spec(config)
        self.config = dataclasses.replace(config, first_stage=dict(spec))
        self.data_shape = (3, config.image_size, config.image_size)
        self.first_stage = FirstStage(spec, image_size=config.image_size)
        self.first_stage.autoencoder.requires_grad_(True)
        self._distance: PerceptualDistance | None = None

    def check_condition(self, condition: Tensor | None, *, guidance: float = 1.0) -> None:
        """See `Generator.check_condition`; an autoencoder takes no condition."""
        if condition is not None or guidance != 1:
            raise UsageError("an autoencoder takes no features, labels or guidance")

    def draw(self, seed: int, step: int, *, batch: int) -> Draws:
        """See `Generator.draw`."""
        generator = torch_generator(seed, "autoencoder", step)
        noise = torch.randn(batch, *self.first_stage.data_shape, generator=generator)
        return Draws(noise=noise, flip=torch.rand(batch, generator=generator) < 0.5)

    def loss(self, images: Tensor, condition: Tensor | None, draws: Draws) -> Tensor:
        """Return the reconstruction error plus perceptual distance plus KL or codebook terms, a float32 scalar."""
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != self.data_shape:
            raise DataError(f"images have shape {tuple(images.shape[1:])}, but the autoencoder takes {self.data_shape}")
        draws = draws.to(images.device)
        if self.config.flip:
            images = torch.where(draws.flip[:, None, None, None], images.flip(-1), images)
        x = to_unit_range(images)
        latents, penalty = self._latents(x, draws.noise)
        rebuilt = self._decoded(latents).float()
        loss = ERRORS[self.config.error](rebuilt, x) + penalty
        if self.config.perceptual:
            loss = loss + self.config.perceptual_weight * self._perceptual()(rebuilt, x)
        return loss

    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode uint8 images [B, 3, S, S], without noise."""
        stage = self.first_stage
        return stage.decode(stage.latents(stage.encode(images.to(stage.scale.device))))

    def generate(self, seeds: list[int], condition: Tensor | None = None, **choices: Any) -> Tensor:
        """Raise UsageError in every case, because the distribution of the latents is unknown."""
        hint = "train ldm or dit on its latents: --first-stage FILE"
        raise UsageError("an autoencoder cannot generate images", hint=hint)

    def _latents(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return (latents to decode, penalty): a normal sample and its KL, or codes and the codebook terms."""
        autoencoder: Any = self.first_stage.autoencoder
        moments = encoded(autoencoder, x).float()
        if self.config.kind == "kl":
            mean, std = moments.chunk(2, dim=1)
            kl = 0.5 * (mean.square() + std.square() - 1) - std.log()
            return mean + std * noise, self.config.kl_weight * kl.sum() / x.numel()
        codes = nearest(moments, autoencoder.quantize.embedding.weight)
        pulled = F.mse_loss(codes, moments.detach()) + self.config.commitment * F.mse_loss(moments, codes.detach())
        return moments + (codes - moments).detach(), pulled

    def _decoded(self, latents: Tensor) -> Tensor:
        autoencoder: Any = self.first_stage.autoencoder
        return autoencoder.decode_codes(latents) if self.config.kind == "vq" else autoencoder.decode(latents)

    def _perceptual(self) -> PerceptualDistance:
        if self._distance is None:
            self._distance = PerceptualDistance(load_encoder(self.config.perceptual))
        return self._distance


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """Return the nearest code to z [B, C, h, w] at every place, with a gradient to the codebook [K, C]."""
    flat = z.detach().permute(0, 2, 3, 1).flatten(0, 2)
    found = torch.cdist(flat, codebook.detach().float()).argmin(dim=1)
    return codebook[found].unflatten(0, (len(z), *z.shape[2:])).permute(0, 3, 1, 2)


def _spec(config: Config) -> Spec:
    """Return the spec of the network."""
    attend = min(config.attention_levels, len(config.channel_mult))
    levels = ["Attn"] * attend + [""] * (len(config.channel_mult) - attend)  # innermost first
    arguments: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": [config.channels * m for m in config.channel_mult],
        "down_block_types": [f"{attn}DownEncoderBlock2D" for attn in reversed(levels)],
        "up_block_types": [f"{attn}UpDecoderBlock2D" for attn in levels],
        "layers_per_block": config.num_res_blocks,
        "latent_channels": config.latent_channels,
        "norm_num_groups": norm_groups_for(config.channels, config.channel_mult),
        "sample_size": config.image_size,
        "mid_block_add_attention": config.attention,
        "scaling_factor": 1.0,
    }
    if config.kind == "vq":
        arguments["num_vq_embeddings"] = config.codes
    return {"kind": KINDS[config.kind], "config": arguments, "measured": True}
