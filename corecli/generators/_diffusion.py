"""Diffusion around any network, on pixels or on the latents of a first stage: what the families of that kind share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from corecli.base import registry
from corecli.base.errors import DataError, UsageError, unknown_name
from corecli.diffusion.guidance import Output, guided, x0_predictor
from corecli.diffusion.noise import image_noise, noise_tables
from corecli.diffusion.objectives import Draws, draw, hybrid_loss, q_sample, simple_loss
from corecli.generators._conditioning import Conditioning, FeatureConditioning, LabelConditioning

CHANNELS = 3
CONDITIONS = ("none", "features", "labels")


class FirstStage(Protocol):
    """A frozen module between images and the latents [B, C, h, w] in which a diffusion model works."""

    data_shape: tuple[int, int, int]

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Uint8 images [B, 3, S, S] as float32 latents [B, *data_shape] of about unit scale."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The uint8 images [B, 3, S, S] of latents [B, *data_shape]."""
        ...


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The choices of a diffusion model apart from its network.

    condition: "none", "features" of `condition_dim` dimensions, or "labels" of `num_classes` classes.
    condition_dropout: how often training hides the condition, so that guidance works; 0 means it cannot.
    feature_normalization: "per-sample" (RCG), "l2" (IC-GAN) or "none", applied in training and sampling alike.
    feature_noise: std of the noise added to normalised features in training, against near copies.
    """

    image_size: int = 32
    learn_sigma: bool = True
    schedule: str = "linear"
    diffusion_steps: int = 1000
    flip: bool = True
    condition: str = "none"
    condition_dim: int = 0
    num_classes: int = 0
    condition_dropout: float = 0.1
    feature_normalization: str = "per-sample"
    feature_noise: float = 0.0

    def out_channels(self, channels: int) -> int:
        """What a network on data of some channels gives: as many, and the learned variance where there is one."""
        return 2 * channels if self.learn_sigma else channels


class Diffusion(nn.Module):
    """A Generator (see `_generator.py`) around network(x_t [B, C, h, w], t [B], vector [B, width] or None).

    data_shape: (C, h, w) of what it models: RGB pixels, or the latents of a first stage, a frozen module that is
    saved with it. Errors: UsageError when the choices of the config do not fit together.
    """

    def __init__(
        self, config: DiffusionConfig, network: nn.Module, *, width: int, first_stage: FirstStage | None = None
    ) -> None:
        super().__init__()
        noise_tables(config.schedule, config.diffusion_steps)  # refuses what it cannot make
        self.config = config
        self.data_shape = (CHANNELS, config.image_size, config.image_size)
        if first_stage is not None:
            self.data_shape = first_stage.data_shape
        self.first_stage = first_stage
        self.network = network
        self.conditioning = _conditioning(config, width)

    def check_condition(self, condition: torch.Tensor | None, *, guidance: float = 1.0) -> None:
        """See `Generator.check_condition`."""
        kind, droppable = self.config.condition, self.config.condition_dropout > 0
        if self.conditioning is None:
            if condition is not None or guidance != 1:
                raise UsageError("the generator is unconditional", hint="it takes no features, labels or guidance")
            return
        if guidance != 1 and not droppable:
            hint = "train with condition dropout above 0, or use guidance 1"
            raise UsageError("guidance needs a generator trained with condition dropout", hint=hint)
        if condition is not None:
            self.conditioning.check(condition)
        elif not droppable or guidance != 1:
            raise UsageError(f"the generator is conditioned on {kind}, and none are given", hint=f"give it {kind}")

    def draw(self, seed: int, step: int, *, batch: int) -> Draws:
        """See `Generator.draw`."""
        config = self.config
        return draw(
            seed,
            step,
            batch=batch,
            shape=self.data_shape,
            num_timesteps=config.diffusion_steps,
            condition_dim=config.condition_dim if config.feature_noise > 0 else 0,
        )

    def loss(self, x: torch.Tensor, condition: torch.Tensor | None, draws: Draws) -> torch.Tensor:
        """L_simple, or L_hybrid where the variance is learned; see `Generator.loss`.

        x: uint8 images, or float latents of the first stage. Seeds torch's global generator from the draws, so that
        dropout too is a function of (seed, step).
        """
        config = self.config
        draws = draws.to(x.device)
        torch.manual_seed(draws.seed)
        tables = noise_tables(config.schedule, config.diffusion_steps, x.device)
        x0 = self._clean(x, draws)
        x_t = q_sample(tables, x0, draws.t, draws.noise)
        output = self.network(x_t, draws.t, self._training_vector(condition, draws))
        if config.learn_sigma:
            return hybrid_loss(tables, output, x0=x0, x_t=x_t, t=draws.t, noise=draws.noise)
        return simple_loss(output, draws.noise)

    @torch.no_grad()
    def generate(
        self,
        seeds: list[int],
        condition: torch.Tensor | None = None,
        *,
        sampler: str = "ddim",
        steps: int | None = None,
        eta: float = 0.0,
        guidance: float = 1.0,
    ) -> torch.Tensor:
        """See `Generator.generate`; steps None means the sampler's default."""
        self.check_condition(condition, guidance=guidance)
        config, device = self.config, next(self.parameters()).device
        module = registry.load("diffusion/samplers", sampler)
        tables = noise_tables(config.schedule, config.diffusion_steps)
        draw_noise = image_noise(seeds, self.data_shape, device)
        was_training = self.training
        self.eval()
        try:
            x0 = module.sample(
                x0_predictor(self._output(condition, len(seeds), guidance), tables, clip=self.first_stage is None),
                draw_noise(),
                tables=tables,
                steps=min(module.DEFAULT_STEPS, len(tables)) if steps is None else steps,
                eta=eta,
                draw_noise=draw_noise,
            )
            return to_pixels(x0) if self.first_stage is None else self.first_stage.decode(x0)
        finally:
            self.train(was_training)

    def _clean(self, x: torch.Tensor, draws: Draws) -> torch.Tensor:
        """x0, [B, *data_shape] float32; images are mirrored as the draws say, latents come as they are."""
        if tuple(x.shape[1:]) != self.data_shape or x.is_floating_point() != (self.first_stage is not None):
            kind = "pixels" if self.first_stage is None else "latents"
            raise DataError(f"{x.dtype} data of {tuple(x.shape[1:])}, the generator takes {kind} of {self.data_shape}")
        if self.first_stage is not None:
            return x.float()
        return to_unit_range(torch.where(_column(draws.flip), x.flip(-1), x) if self.config.flip else x)

    def _training_vector(self, condition: torch.Tensor | None, draws: Draws) -> torch.Tensor | None:
        assert (condition is None) == (self.conditioning is None), "condition and generator do not fit"
        if self.conditioning is None or condition is None:
            return None
        noise = self.config.feature_noise
        return self.conditioning(
            condition,
            drop=draws.drop < self.config.condition_dropout,
            noise=noise * draws.condition_noise if noise > 0 else None,
        )

    def _output(self, condition: torch.Tensor | None, batch: int, guidance: float) -> Output:
        vector = null = None
        if self.conditioning is not None:
            device = next(self.parameters()).device
            null = self.conditioning.null(batch) if condition is None or guidance != 1 else None
            vector = null if condition is None else self.conditioning(condition.to(device))
        return guided(self.network, vector, null, guidance=guidance, channels=self.data_shape[0])


def to_unit_range(images: torch.Tensor) -> torch.Tensor:
    """Uint8 pixels as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_pixels(x: torch.Tensor) -> torch.Tensor:
    """[-1, 1] as uint8, rounded to the nearest, halves up: floor(127.5 x + 128) clipped to 0..255 (EDM).

    The inverse of `to_unit_range`. ADM truncates 127.5 (x + 1) instead, half a level darker; it moves an FID.
    """
    return (x.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def _column(values: torch.Tensor) -> torch.Tensor:
    """[B] as [B, 1, 1, 1]."""
    return values[:, None, None, None]


def _conditioning(config: DiffusionConfig, width: int) -> Conditioning | None:
    if config.condition not in CONDITIONS:
        raise unknown_name("condition", config.condition, CONDITIONS)
    if not 0 <= config.condition_dropout < 1:
        raise UsageError(f"condition dropout {config.condition_dropout:g} is outside 0 to 1")
    if config.feature_noise and config.condition != "features":
        raise UsageError("feature noise needs a generator conditioned on features")
    droppable = config.condition_dropout > 0
    if config.condition == "features":
        return FeatureConditioning(
            dim=config.condition_dim, width=width, normalize=config.feature_normalization, droppable=droppable
        )
    if config.condition == "labels":
        return LabelConditioning(num_classes=config.num_classes, width=width, droppable=droppable)
    return None
