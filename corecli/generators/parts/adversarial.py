"""A generator that maps noise and a condition to an image in one pass, trained against a discriminator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from corecli.base.errors import UsageError, unknown_name
from corecli.base.pixels import to_pixels
from corecli.base.rng import torch_generator
from corecli.diffusion.noise import image_noise
from corecli.generators.parts.conditioning import NORMALIZATIONS, check_features, check_labels
from corecli.generators.parts.diff_augment import NUM_DRAWS
from corecli.nets.biggan import BigGanGenerator


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The options of an adversarial generator, except for its networks.

    condition: "features" of `condition_dim` dimensions, "labels" of `num_classes` classes, or "none" (one class).
    feature_normalization: "l2" (IC-GAN), "per-sample" or "none", in training and sampling.
    """

    image_size: int = 32
    flip: bool = True
    condition: str = "features"
    condition_dim: int = 0
    num_classes: int = 0
    feature_normalization: str = "l2"


@dataclass(frozen=True, kw_only=True)
class AdversarialDraws:
    """Random numbers of a step for B images; `draws[a:b]` selects some images.

    z: [B, 2, z_dim], noise for the discriminator's and the generator's update. flip: bool [B], of real images.
    augment: [B, 3, NUM_DRAWS] uniform in [0, 1), for real images, for generated images in the discriminator's update,
    and for generated images in the generator's update.
    """

    z: Tensor
    flip: Tensor
    augment: Tensor

    def __getitem__(self, rows: slice) -> AdversarialDraws:
        return AdversarialDraws(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def to(self, device: torch.device) -> AdversarialDraws:
        """Return the same draws on a device."""
        return AdversarialDraws(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


class AdversarialGenerator(nn.Module):
    """A `Generator` that makes an image in one pass of its network; `AdversarialLearner` trains it.

    Errors: UsageError if options of the config contradict each other.
    """

    def __init__(self, config: AdversarialConfig, network: BigGanGenerator) -> None:
        super().__init__()
        if config.feature_normalization not in NORMALIZATIONS:
            raise unknown_name("feature normalization", config.feature_normalization, NORMALIZATIONS)
        self.config, self.network = config, network
        self.data_shape = (3, config.image_size, config.image_size)

    def check_condition(self, condition: Tensor | None, *, guidance: float = 1.0) -> None:
        """See `Generator.check_condition`."""
        if guidance != 1:
            raise UsageError("a GAN takes no guidance", hint="guidance is for diffusion; leave it at 1")
        kind = self.config.condition
        if (condition is None) != (kind == "none"):
            if condition is not None:
                raise UsageError("the generator is unconditional", hint="give no features or labels")
            raise UsageError(f"the generator is conditioned on {kind}, and none are given", hint=f"give {kind}")
        if condition is None:
            return
        if kind == "features":
            check_features(condition, self.config.condition_dim)
        else:
            check_labels(condition, self.config.num_classes)

    def draw(self, seed: int, step: int, *, batch: int) -> AdversarialDraws:
        """See `Generator.draw`."""
        generator = torch_generator(seed, "adversarial", step)
        return AdversarialDraws(
            z=torch.randn(batch, 2, self.network.z_dim, generator=generator),
            flip=torch.rand(batch, generator=generator) < 0.5,
            augment=torch.rand(batch, 3, NUM_DRAWS, generator=generator),
        )

    def normalized(self, condition: Tensor | None, *, batch: int) -> Tensor:
        """Return conditions as both networks take them: normalized features, labels, or label 0 without a condition."""
        if condition is None:
            return torch.zeros(batch, dtype=torch.int64, device=next(self.parameters()).device)
        if self.config.condition == "labels":
            return condition
        return NORMALIZATIONS[self.config.feature_normalization](condition.float())

    @torch.no_grad()
    def generate(
        self,
        seeds: list[int],
        condition: Tensor | None = None,
        *,
        sampler: str | None = None,
        steps: int | None = None,
        guidance: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        spacing: str | None = None,
        sampler_options: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """See `Generator.generate`; z is a function of the seed.

        Errors: as `check_condition`, and UsageError for options of diffusion sampling.
        """
        self.check_condition(condition, guidance=guidance)
        if any((sampler, guidance_interval, spacing, sampler_options)) or steps not in (None, 1):
            raise UsageError("a GAN makes an image in one pass", hint="sampler, steps and spacing are for diffusion")
        device = next(self.parameters()).device
        z = image_noise(seeds, (self.network.z_dim,), device)()
        was_training = self.training
        self.eval()
        try:
            moved = None if condition is None else condition.to(device)
            return to_pixels(self.network(z, self.normalized(moved, batch=len(seeds))))
        finally:
            self.train(was_training)
