"""Diffusion in pixel space around any noise-predicting network: what the families of that kind share."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
class PixelDiffusionConfig:
    """The choices of a pixel diffusion model apart from its network.

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

    @property
    def out_channels(self) -> int:
        """What the network gives: eps, and the learned variance where there is one."""
        return 2 * CHANNELS if self.learn_sigma else CHANNELS


class PixelDiffusion(nn.Module):
    """A Generator (see `_generator.py`) around network(x_t [B, 3, S, S], t [B], vector [B, width] or None).

    Errors: UsageError when the choices of the config do not fit together.
    """

    def __init__(self, config: PixelDiffusionConfig, network: nn.Module, *, width: int) -> None:
        super().__init__()
        noise_tables(config.schedule, config.diffusion_steps)  # refuses what it cannot make
        self.config = config
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
            shape=(CHANNELS, config.image_size, config.image_size),
            num_timesteps=config.diffusion_steps,
            condition_dim=config.condition_dim if config.feature_noise > 0 else 0,
        )

    def loss(self, images: torch.Tensor, condition: torch.Tensor | None, draws: Draws) -> torch.Tensor:
        """L_simple, or L_hybrid where the variance is learned; see `Generator.loss`.

        Seeds torch's global generator from the draws, so that dropout too is a function of (seed, step).
        """
        config = self.config
        if images.shape[1:] != (CHANNELS, config.image_size, config.image_size):
            raise DataError(f"images of {tuple(images.shape[1:])}, the generator makes {config.image_size} px RGB")
        draws = draws.to(images.device)
        torch.manual_seed(draws.seed)
        tables = noise_tables(config.schedule, config.diffusion_steps, images.device)
        if config.flip:
            images = torch.where(draws.flip[:, None, None, None], images.flip(-1), images)
        x0 = to_unit_range(images)
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
        draw_noise = image_noise(seeds, (CHANNELS, config.image_size, config.image_size), device)
        was_training = self.training
        self.eval()
        try:
            x0 = module.sample(
                x0_predictor(self._output(condition, len(seeds), guidance), tables),
                draw_noise(),
                tables=tables,
                steps=min(module.DEFAULT_STEPS, len(tables)) if steps is None else steps,
                eta=eta,
                draw_noise=draw_noise,
            )
        finally:
            self.train(was_training)
        return to_pixels(x0)

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
        return guided(self.network, vector, null, guidance=guidance, channels=CHANNELS)


def to_unit_range(images: torch.Tensor) -> torch.Tensor:
    """Uint8 pixels as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_pixels(x: torch.Tensor) -> torch.Tensor:
    """[-1, 1] as uint8, rounded to the nearest, halves up: floor(127.5 x + 128) clipped to 0..255 (EDM).

    The inverse of `to_unit_range`. ADM truncates 127.5 (x + 1) instead, half a level darker; it moves an FID.
    """
    return (x.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def _conditioning(config: PixelDiffusionConfig, width: int) -> Conditioning | None:
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
