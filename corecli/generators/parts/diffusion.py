"""Diffusion around any network, on pixels or on the latents of a first stage: what the families of that kind share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from corecli.base import registry
from corecli.base.errors import DataError, UsageError, unknown_name
from corecli.base.pixels import to_pixels, to_unit_range
from corecli.diffusion.edm import Edm
from corecli.diffusion.flow import Flow
from corecli.diffusion.guidance import Guidance, Output, denoiser, guided
from corecli.diffusion.levels import Level
from corecli.diffusion.noise import image_noise
from corecli.diffusion.objectives import Draws, Objective, draw, training_loss
from corecli.diffusion.vp import PREDICTIONS, VariancePreserving
from corecli.generators.parts.conditioning import (
    CaptionConditioning,
    Conditioning,
    EmbeddingConditioning,
    FeatureConditioning,
    LabelConditioning,
)
from corecli.nets.text import MAX_BYTES

CHANNELS = 3
CONDITIONS = ("none", "features", "labels", "captions")
OBJECTIVES = (*PREDICTIONS, "edm", "flow")


class FirstStage(Protocol):
    """A frozen module between images and the latents [B, C, h, w] in which a diffusion model works.

    data_shape, moments_shape: of the latents of an image, and of what is kept to sample them from; is_random: whether
    they are sampled, with noise, from a distribution.
    """

    data_shape: tuple[int, int, int]
    is_random: bool

    @property
    def moments_shape(self) -> tuple[int, int, int]: ...

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Uint8 images [B, 3, S, S] as float32 moments [B, *moments_shape]."""
        ...

    def latents(self, moments: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """The float32 latents [B, *data_shape] of moments, of about unit scale."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The uint8 images [B, 3, S, S] of latents [B, *data_shape]."""
        ...


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The choices of a diffusion model apart from its network.

    objective: what the network learns: "eps", "v" or "x0" on the variance-preserving process of `schedule` with
    `diffusion_steps` timesteps, "edm", or "flow".
    learn_sigma: whether it learns the variance too, with the hybrid loss; None for yes where it can, with "eps".
    min_snr: gamma of min-SNR weighting for "eps", "v" and "x0", 0 for none.
    flow_times: how "flow" draws its times in training, "uniform" or "logit-normal".

    condition: "none", "features" of `condition_dim` dimensions, "labels" of `num_classes` classes, or "captions": up
    to `caption_length` bytes, or as many tokens embedded in `condition_dim` dimensions, where that is not 0.
    condition_dropout: how often training hides the condition, so that guidance works; 0 means it cannot.
    feature_normalization: "per-sample" (RCG), "l2" (IC-GAN) or "none", applied in training and sampling alike.
    feature_noise: std of the noise added to normalized features in training, against near copies.
    """

    image_size: int = 32
    objective: str = "eps"
    learn_sigma: bool | None = None
    min_snr: float = 0.0
    flow_times: str = "uniform"
    schedule: str = "linear"
    diffusion_steps: int = 1000
    flip: bool = True
    condition: str = "none"
    condition_dim: int = 0
    num_classes: int = 0
    caption_length: int = MAX_BYTES
    condition_dropout: float = 0.1
    feature_normalization: str = "per-sample"
    feature_noise: float = 0.0

    @property
    def learns_sigma(self) -> bool:
        """Whether the network gives a variance."""
        return self.objective == "eps" if self.learn_sigma is None else self.learn_sigma

    def out_channels(self, channels: int) -> int:
        """What a network on data of some channels gives: as many, and the learned variance where there is one."""
        return 2 * channels if self.learns_sigma else channels


class Diffusion(nn.Module):
    """A Generator (see `_generator.py`) around network(x_t [B, C, h, w], t [B], vector [B, width] or None).

    data_shape: (C, h, w) of what it models: RGB pixels, or the latents of a first stage, a frozen module that is
    saved with it. attends: the network takes tokens [B, T, width] too, and is given those of a caption.
    Errors: UsageError when the choices of the config do not fit together.
    """

    def __init__(
        self,
        config: DiffusionConfig,
        network: nn.Module,
        *,
        width: int,
        first_stage: FirstStage | None = None,
        attends: bool = False,
    ) -> None:
        super().__init__()
        self.objective = _objective(config)
        self.config = dataclasses.replace(config, learn_sigma=config.learns_sigma)
        self.data_shape = (CHANNELS, config.image_size, config.image_size)
        if first_stage is not None:
            self.data_shape = first_stage.data_shape
        self.first_stage = first_stage
        self.network = network
        self.conditioning = _conditioning(config, width, attends=attends)

    def check_condition(self, condition: torch.Tensor | None, *, guidance: float = 1.0) -> None:
        """See `Generator.check_condition`."""
        kind, droppable = self.config.condition, self.config.condition_dropout > 0
        if self.conditioning is None:
            if condition is not None or guidance != 1:
                raise UsageError("the generator is unconditional", hint="it takes no condition and no guidance")
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
            self.objective,
            seed,
            step,
            batch=batch,
            shape=self.data_shape,
            condition_dim=config.condition_dim if config.feature_noise > 0 else 0,
            draws_posterior=self.first_stage is not None and self.first_stage.is_random,
        )

    def loss(self, x: torch.Tensor, condition: torch.Tensor | None, draws: Draws) -> torch.Tensor:
        """The objective's loss; see `Generator.loss`.

        x: uint8 images, or what `moments` gave for them. Seeds torch's global generator from the draws, so that
        dropout too is a function of (seed, step).
        """
        draws = draws.to(x.device)
        torch.manual_seed(draws.seed)
        x0, vector = self._clean(x, draws), self._training_vector(condition, draws)

        def network(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.network(x_t, t, vector)

        return training_loss(self.objective, network, x0, t=draws.t, noise=draws.noise)

    @torch.no_grad()
    def generate(
        self,
        seeds: list[int],
        condition: torch.Tensor | None = None,
        *,
        sampler: str | None = None,
        steps: int | None = None,
        eta: float = 0.0,
        guidance: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        spacing: str | None = None,
    ) -> torch.Tensor:
        """See `Generator.generate`; None means the objective's sampler, its number of steps, and its or their spacing.

        guidance_interval: the noise levels sigma / alpha, above the first and up to the second, that are guided.
        """
        self.check_condition(condition, guidance=guidance)
        told = Guidance(guidance, guidance_interval)
        told.check()
        module = registry.load("diffusion/samplers", sampler or self.objective.sampler)
        levels = self._levels(module, steps, spacing)
        draw_noise = image_noise(seeds, self.data_shape, next(self.parameters()).device)
        was_training = self.training
        self.eval()
        try:
            output = self._output(condition, len(seeds), told)
            clip = self.objective.clips and self.first_stage is None
            x0 = module.sample(
                denoiser(output, self.objective, clip=clip),
                self.objective.start(draw_noise(), levels[0]),
                levels=levels,
                eta=eta,
                draw_noise=draw_noise,
            )
            if self.first_stage is None:
                return to_pixels(x0)
            return self.first_stage.decode(x0 / self.objective.latent_scale)
        finally:
            self.train(was_training)

    def _levels(self, sampler: Any, steps: int | None, spacing: str | None) -> list[Level[float]]:
        """Where a sampler stops; by default as many times as it likes, as far as there are timesteps."""
        most = self.config.diffusion_steps if self.config.objective in PREDICTIONS else sampler.DEFAULT_STEPS
        chosen = spacing or self.objective.spacing or sampler.SPACING
        return self.objective.levels(chosen, min(sampler.DEFAULT_STEPS, most) if steps is None else steps)

    def moments(self, images: torch.Tensor) -> torch.Tensor:
        """What a first stage has to know of uint8 images, to be kept: float16 [B, V, *moments_shape].

        V is 2, of the images and of their mirror images, where training mirrors them, else 1.
        """
        assert self.first_stage is not None, "pixels need no first stage"
        views = (images, images.flip(-1)) if self.config.flip else (images,)
        return torch.stack([self.first_stage.encode(view) for view in views], dim=1).half()

    def _clean(self, x: torch.Tensor, draws: Draws) -> torch.Tensor:
        """x0, [B, *data_shape] float32, mirrored as the draws say; latents are sampled with their noise."""
        if self.first_stage is None:
            return to_unit_range(self._pixels(x, draws))
        noise = draws.posterior_noise if self.first_stage.is_random else None
        return self.objective.latent_scale * self.first_stage.latents(self._kept(x, draws), noise)

    def _pixels(self, x: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Uint8 images, mirrored as the draws say. Errors: DataError for another size."""
        expected = (CHANNELS, self.config.image_size, self.config.image_size)
        if tuple(x.shape[1:]) != expected or x.dtype != torch.uint8:
            raise DataError(f"{x.dtype} data of {tuple(x.shape[1:])}, the generator takes pixels of {expected}")
        return torch.where(_column(draws.flip), x.flip(-1), x) if self.config.flip else x

    def _kept(self, x: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Moments [B, *moments_shape] of images or of what `moments` gave. Errors: DataError for another shape."""
        assert self.first_stage is not None
        if x.dtype == torch.uint8:
            return self.first_stage.encode(self._pixels(x, draws)).half()
        expected = (1 + self.config.flip, *self.first_stage.moments_shape)
        if tuple(x.shape[1:]) != expected:
            raise DataError(f"latents of {tuple(x.shape[1:])}, the generator takes {expected}")
        return x[torch.arange(len(x), device=x.device), draws.flip.long() * self.config.flip]

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

    def _output(self, condition: torch.Tensor | None, batch: int, guidance: Guidance) -> Output:
        vector = null = None
        if self.conditioning is not None:
            device = next(self.parameters()).device
            null = self.conditioning.null(batch) if condition is None or guidance.scale != 1 else None
            vector = null if condition is None else self.conditioning(condition.to(device))
        return guided(self.network, vector, null, guidance, channels=self.data_shape[0])


def _column(values: torch.Tensor) -> torch.Tensor:
    """[B] as [B, 1, 1, 1]."""
    return values[:, None, None, None]


def _objective(config: DiffusionConfig) -> Objective:
    """What the config asks the network to learn. Errors: UsageError for choices that have no meaning together."""
    name = config.objective
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES)
    if config.learn_sigma and name != "eps":
        raise UsageError(f"the {name} objective has no learned variance", hint="use eps, or no learned variance")
    if config.flow_times != "uniform" and name != "flow":
        raise UsageError(f"the {name} objective draws no flow times", hint="use flow")
    if name in PREDICTIONS:
        return VariancePreserving(
            name=name, schedule=config.schedule, num_timesteps=config.diffusion_steps, min_snr=config.min_snr
        )
    if (config.schedule, config.diffusion_steps) != (type(config).schedule, type(config).diffusion_steps):
        raise UsageError(f"the {name} objective has no schedule of timesteps", hint="leave schedule and steps alone")
    if config.min_snr:
        raise UsageError(f"the {name} objective has no min-SNR weighting", hint=f"use {' or '.join(PREDICTIONS)}")
    return Edm() if name == "edm" else Flow(times=config.flow_times)


def _conditioning(config: DiffusionConfig, width: int, *, attends: bool) -> Conditioning | None:
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
    if config.condition == "captions":
        told: dict[str, Any] = {"length": config.caption_length, "attends": attends, "droppable": droppable}
        if not config.condition_dim:
            return CaptionConditioning(width=width, **told)
        return EmbeddingConditioning(dim=config.condition_dim, width=width, **told)
    return None
