"""A diffusion model around any network, on pixels or on the latents of a first stage."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from corecli.base import registry
from corecli.base.config import flag
from corecli.base.errors import DataError, UsageError, unknown_name
from corecli.base.pixels import to_pixels, to_unit_range
from corecli.diffusion import objectives, sampling
from corecli.diffusion.guidance import Guidance, Output, denoiser, guided
from corecli.diffusion.noise import image_noise
from corecli.diffusion.objectives.parts.objective import Objective
from corecli.diffusion.training import Draws, draw, training_loss
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


class FirstStage(Protocol):
    """A frozen module between images and the latents [B, C, h, w] on which a diffusion model works.

    data_shape: shape of an image's latents. moments_shape: shape of the moments from which they are computed.
    is_random: whether latents are sampled from a distribution, with noise.
    """

    data_shape: tuple[int, int, int]
    is_random: bool

    @property
    def moments_shape(self) -> tuple[int, int, int]: ...

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Encode uint8 images [B, 3, S, S] as float32 moments [B, *moments_shape]."""
        ...

    def latents(self, moments: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return the float32 latents [B, *data_shape] of moments, with a standard deviation of about 1."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents [B, *data_shape] to uint8 images [B, 3, S, S]."""
        ...


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The options of a diffusion model, except for its network.

    objective: what the network learns, a file in `diffusion/objectives`. "eps", "v" and "x0" use the
    variance-preserving process of `schedule` with `diffusion_steps` timesteps.
    learn_sigma: whether the network also learns the variance, with the hybrid loss; None means yes if it can ("eps").
    min_snr: gamma of min-SNR weighting for "eps", "v" and "x0"; 0 means none.
    flow_times: distribution of the times of "flow" in training, "uniform" or "logit-normal".

    condition: "none", "features" of `condition_dim` dimensions, "labels" of `num_classes` classes, or "captions" of up
    to `caption_length` bytes; if `condition_dim` is not 0, of as many tokens embedded in that many dimensions.
    condition_dropout: probability with which training hides the condition; guidance needs a value above 0.
    feature_normalization: "per-sample" (RCG), "l2" (IC-GAN) or "none", in training and sampling.
    feature_noise: standard deviation of noise added to normalized features in training, against near copies.
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
        """Whether the network outputs a variance."""
        return _can_learn_variance(self.objective) if self.learn_sigma is None else self.learn_sigma

    def out_channels(self, channels: int) -> int:
        """Return the output channels of a network on `channels` channels: twice as many with a learned variance."""
        return 2 * channels if self.learns_sigma else channels


class Diffusion(nn.Module):
    """A Generator (see `generator.py`) around network(x_t [B, C, h, w], t [B], vector [B, width] or None).

    data_shape: (C, h, w) of the data: RGB pixels, or the latents of a first stage, a frozen module that is saved with
    the generator. attends: whether the network also takes the tokens of a caption, [B, T, width].
    Errors: UsageError if options of the config contradict each other.
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
                raise UsageError("the generator is unconditional", hint="give no condition and no guidance")
            return
        if guidance != 1 and not droppable:
            hint = "train with condition dropout above 0, or use guidance 1"
            raise UsageError("guidance needs a generator trained with condition dropout", hint=hint)
        if condition is not None:
            self.conditioning.check(condition)
        elif not droppable or guidance != 1:
            raise UsageError(f"the generator is conditioned on {kind}, and none are given", hint=f"give {kind}")

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
        """Return the objective's loss; see `Generator.loss`.

        x: uint8 images, or the result of `moments` for them. Torch's global generator is seeded from the draws, so that
        dropout is a function of (seed, step) as well.
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
        guidance: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        spacing: str | None = None,
        sampler_options: Mapping[str, Any] | None = None,
    ) -> torch.Tensor:
        """See `Generator.generate`.

        sampler: the objective's by default. steps, spacing: see `sampling.levels_of`. sampler_options: values for the
        sampler's Options. guidance_interval: see `Guidance`.
        """
        self.check_condition(condition, guidance=guidance)
        guide = Guidance(guidance, guidance_interval)
        guide.check()
        sampler = sampler or objectives.default_sampler(self.config.objective)
        levels = sampling.levels_of(sampler, self.objective, steps=steps, spacing=spacing)
        draw_noise = image_noise(seeds, self.data_shape, next(self.parameters()).device)
        was_training = self.training
        self.eval()
        try:
            output = self._output(condition, len(seeds), guide)
            clip = self.objective.clips and self.first_stage is None
            predict = denoiser(output, self.objective, clip=clip)
            x0 = sampling.run(
                sampler, predict, self.objective, levels=levels, draw_noise=draw_noise, options=sampler_options
            )
            if self.first_stage is None:
                return to_pixels(x0)
            return self.first_stage.decode(x0 / self.objective.latent_scale)
        finally:
            self.train(was_training)

    def moments(self, images: torch.Tensor) -> torch.Tensor:
        """Encode uint8 images with the first stage, for reuse: float16 [B, V, *moments_shape].

        V is 2 if training mirrors images (the images and their mirror images), else 1.
        """
        assert self.first_stage is not None, "pixels need no first stage"
        views = (images, images.flip(-1)) if self.config.flip else (images,)
        return torch.stack([self.first_stage.encode(view) for view in views], dim=1).half()

    def _clean(self, x: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Return x0, float32 [B, *data_shape], with mirroring and the noise of latents taken from the draws."""
        if self.first_stage is None:
            return to_unit_range(self._pixels(x, draws))
        noise = draws.posterior_noise if self.first_stage.is_random else None
        return self.objective.latent_scale * self.first_stage.latents(self._kept(x, draws), noise)

    def _pixels(self, x: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Return uint8 images, mirrored according to the draws. Errors: DataError if their size is wrong."""
        expected = (CHANNELS, self.config.image_size, self.config.image_size)
        if tuple(x.shape[1:]) != expected or x.dtype != torch.uint8:
            raise DataError(f"{x.dtype} data of shape {tuple(x.shape[1:])}, but the generator takes pixels {expected}")
        return torch.where(_column(draws.flip), x.flip(-1), x) if self.config.flip else x

    def _kept(self, x: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Return moments [B, *moments_shape] for x, see `loss`. Errors: DataError if the shape of x is wrong."""
        assert self.first_stage is not None
        if x.dtype == torch.uint8:
            return self.first_stage.encode(self._pixels(x, draws)).half()
        expected = (1 + self.config.flip, *self.first_stage.moments_shape)
        if tuple(x.shape[1:]) != expected:
            raise DataError(f"latents of shape {tuple(x.shape[1:])}, but the generator takes {expected}")
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
    """Return [B] as [B, 1, 1, 1]."""
    return values[:, None, None, None]


def _can_learn_variance(objective: str) -> bool:
    return registry.constants(objectives.FOLDER, objective).get("LEARNS_VARIANCE", False)


def _objective(config: DiffusionConfig) -> Objective:
    """Build the config's objective. Errors: UsageError if it is unknown, or an option does not apply to it."""
    name = config.objective
    build = registry.load(objectives.FOLDER, name).build
    if config.learn_sigma and not _can_learn_variance(name):
        raise UsageError(f"the {name} objective has no learned variance", hint="use eps, or no learned variance")
    taken = _options_of(name)
    for option in dataclasses.fields(config):
        users = [other for other in registry.choices(objectives.FOLDER) if option.name in _options_of(other)]
        if users and name not in users and getattr(config, option.name) != option.default:
            reason = f"{flag(option.name)} does not apply to the {name} objective"
            raise UsageError(reason, hint=f"use {' or '.join(users)}")
    return build(**{option: getattr(config, option) for option in taken})


def _options_of(objective: str) -> Mapping[str, Any]:
    return inspect.signature(registry.load(objectives.FOLDER, objective).build).parameters


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
        options: dict[str, Any] = {"length": config.caption_length, "attends": attends, "droppable": droppable}
        if not config.condition_dim:
            return CaptionConditioning(width=width, **options)
        return EmbeddingConditioning(dim=config.condition_dim, width=width, **options)
    return None
