"""First stages: autoencoders between images and the latents in which a diffusion model works.

images uint8 [B, 3, S, S] --encode--> moments float32 [B, K, h, w]     what is cached: means (and stds) of latents
moments, noise --latents--> z float32 [B, C, h, w]                      a sample, of about unit scale
z --decode--> images uint8 [B, 3, S, S]

The networks are those of `nets.vae`. Configs that only diffusers can express (spatial norms, other blocks) are built
with diffusers, whose import takes seconds.
"""

from __future__ import annotations

import inspect
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from corecli.base.errors import DataError, UsageError
from corecli.base.pixels import to_pixels, to_unit_range
from corecli.nets.vae import ACTIVATIONS, DOWN_BLOCKS, UP_BLOCKS, KlAutoencoder, TinyAutoencoder, VqAutoencoder

KL, VQ, TINY = "AutoencoderKL", "VQModel", "AutoencoderTiny"  # the names of diffusers' classes
KINDS = (KL, VQ, TINY)
_SCALE_OF_STABLE_DIFFUSION = 0.18215  # which diffusers writes into the config of every VQModel, where it is wrong
_NETWORKS: dict[str, type[nn.Module]] = {KL: KlAutoencoder, VQ: VqAutoencoder, TINY: TinyAutoencoder}
_OF_PIPELINES = {  # arguments that only pipelines read, or that only diffusers' own networks can follow
    "sample_size", "scaling_factor", "shift_factor", "latents_mean", "latents_std", "latent_magnitude", "latent_shift",
    "force_upcast", "lookup_from_codebook", "norm_type",
}  # fmt: skip


class Spec(TypedDict):
    """What is needed to build a first stage again, as JSON.

    kind: class name in diffusers. config: its arguments. measured: the scale of latents is measured, not published.
    """

    kind: str
    config: dict[str, Any]
    measured: NotRequired[bool]


class FirstStage(nn.Module):
    """A frozen autoencoder with the scale of its latents, for images of one size; float32 throughout.

    z = (latent - shift) * scale, per channel. The published scale is the config's `scaling_factor` for an AutoencoderKL
    (0.18215 for Stable Diffusion) or AutoencoderTiny (1), and 1 for a VQModel (LDM).
    Errors: DataError for an invalid config; UsageError for a size that the downsampling factor does not divide.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, spec: Spec, *, image_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.autoencoder = build_autoencoder(spec).requires_grad_(False)
        factor = downsampling(spec)
        if image_size % factor or image_size < factor:
            hint = f"use a multiple of {factor} px"
            raise UsageError(f"the first stage cannot downsample images of {image_size} px by {factor}", hint=hint)
        channels = latent_channels(spec)
        self.data_shape = (channels, image_size // factor, image_size // factor)
        self.is_random = spec["kind"] == KL
        shift, scale = published_scale(spec)
        self.register_buffer("shift", torch.tensor(shift).expand(channels).reshape(-1, 1, 1).clone())
        self.register_buffer("scale", torch.tensor(scale).expand(channels).reshape(-1, 1, 1).clone())
        self.eval()

    @property
    def moments_shape(self) -> tuple[int, int, int]:
        """Shape of what `encode` returns per image: latents, or for a KL autoencoder their means, then their stds."""
        channels, height, width = self.data_shape
        return (2 * channels if self.is_random else channels), height, width

    def train(self, mode: bool = True) -> FirstStage:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode uint8 images [B, 3, S, S] as moments, float32 [B, *moments_shape], before shift and scale."""
        with torch.autocast(images.device.type, enabled=False):
            return encoded(self.autoencoder, to_unit_range(images))

    def latents(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the latents of moments, float32 [B, *data_shape]: their means, or with `noise` a sample."""
        mean, std = _split(moments.float(), self.data_shape[0])
        latents = mean if noise is None or std is None else mean + std * noise
        return (latents - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, *data_shape] to uint8 images [B, 3, S, S]; a VQModel quantizes them first."""
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float() / self.scale + self.shift
            return to_pixels(decoded(self.autoencoder, latents))

    def measure(self, moments: Tensor) -> None:
        """Set shift and scale so that the latents of moments [N, *moments_shape] have mean 0 and std 1 per channel.

        Errors: DataError if the latents are constant or not finite.
        """
        mean, std = _split(moments.double(), self.data_shape[0])
        shift = mean.mean(dim=(0, 2, 3), keepdim=True)
        variance = (mean - shift).square().mean(dim=(0, 2, 3))
        if std is not None:
            variance = variance + std.square().mean(dim=(0, 2, 3))
        if not bool((variance > 0).all()) or not bool(variance.isfinite().all()):
            raise DataError("latents of the first stage are constant or not finite", hint="train it longer or again")
        self.shift.copy_(shift[0])
        self.scale.copy_(variance.rsqrt()[:, None, None])


def build_autoencoder(spec: Spec) -> nn.Module:
    """Build the network of a spec, with random weights. Errors: DataError for an unknown kind or argument."""
    kind, config = spec["kind"], spec["config"]
    if kind not in KINDS:
        raise DataError(f"{kind!r} is not a kind of first stage", hint=f"the kinds are {', '.join(KINDS)}")
    try:
        if not _is_expressible(kind, config):
            return diffusers_class(kind)(**config)
        skipped = _OF_PIPELINES if kind == TINY else {*_OF_PIPELINES, "act_fn"}
        return _NETWORKS[kind](**{name: value for name, value in config.items() if name not in skipped})
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise DataError(f"not the config of an {kind}: {error}") from error


def diffusers_class(kind: str) -> Any:
    """Return the class of diffusers for a kind."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from diffusers.models.autoencoders.vq_model import VQModel

    return {KL: AutoencoderKL, VQ: VQModel, TINY: AutoencoderTiny}[kind]


def _is_expressible(kind: str, config: dict[str, Any]) -> bool:
    """Whether the networks of `nets.vae` can be built from a config."""
    if kind == TINY:
        return config.get("act_fn", "relu") in ACTIVATIONS
    blocks = [*config.get("down_block_types", ()), *config.get("up_block_types", ())]
    is_usual = config.get("norm_type", "group") == "group" and config.get("act_fn", "silu") in ("silu", "swish")
    return is_usual and set(blocks) <= {*DOWN_BLOCKS, *UP_BLOCKS}


def spec_of(autoencoder: Any) -> Spec:
    """Return the spec of an autoencoder of diffusers."""
    known = inspect.signature(type(autoencoder).__init__).parameters
    config = {name: value for name, value in dict(autoencoder.config).items() if name in known}
    return {"kind": type(autoencoder).__name__, "config": config}


def encoded(autoencoder: Any, x: Tensor) -> Tensor:
    """Return the latents of images in [-1, 1], for an AutoencoderKL their means and stds, [B, K, h, w]."""
    if isinstance(autoencoder, KlAutoencoder | VqAutoencoder | TinyAutoencoder):
        return autoencoder.encode(x)
    found = autoencoder.encode(x, return_dict=False)[0]
    return torch.cat((found.mean, found.std), dim=1) if type(autoencoder).__name__ == KL else found


def decoded(autoencoder: Any, z: Tensor) -> Tensor:
    """Return the images in [-1, 1] of latents [B, C, h, w]; a VQModel quantizes them first."""
    if isinstance(autoencoder, KlAutoencoder | VqAutoencoder | TinyAutoencoder):
        return autoencoder.decode(z)
    return autoencoder.decode(z, return_dict=False)[0]


def downsampling(spec: Spec) -> int:
    """Return the downsampling factor: the side in pixels that one latent covers."""
    name = "encoder_block_out_channels" if spec["kind"] == TINY else "block_out_channels"
    default = (64, 64, 64, 64) if spec["kind"] == TINY else (64,)
    return 2 ** (len(spec["config"].get(name, default)) - 1)


def latent_channels(spec: Spec) -> int:
    """Return the number of channels of the latents."""
    config, default = spec["config"], 3 if spec["kind"] == VQ else 4
    channels = config.get("latent_channels", default)
    return (config.get("vq_embed_dim") or channels) if spec["kind"] == VQ else channels


def published_scale(spec: Spec) -> tuple[list[float], list[float]]:
    """Return (shift, scale) of a config, 1 or C numbers each; 0 and 1 if the scale is measured."""
    config = spec["config"]
    if spec.get("measured"):
        return [0.0], [1.0]
    if config.get("latents_mean") and config.get("latents_std"):
        factor = config.get("scaling_factor", _SCALE_OF_STABLE_DIFFUSION)
        return list(config["latents_mean"]), [factor / std for std in config["latents_std"]]
    scale = config.get("scaling_factor", 1.0 if spec["kind"] == TINY else _SCALE_OF_STABLE_DIFFUSION)
    if spec["kind"] == VQ and scale == _SCALE_OF_STABLE_DIFFUSION:
        scale = 1.0
    return [config.get("shift_factor") or 0.0], [scale]


def _split(moments: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Split moments [B, K, h, w] into means, and stds or None."""
    return moments[:, :channels], moments[:, channels:] if moments.shape[1] > channels else None
