"""Training of a GAN: two networks with the hinge loss, each with its own optimizer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from corecli.base.errors import DataError, UsageError
from corecli.base.pixels import to_unit_range
from corecli.engine import optim
from corecli.engine.dist import World, average_gradients
from corecli.engine.ema import EMA, Decay, warmed_up
from corecli.engine.precision import autocast, place
from corecli.engine.run import Tensors, merge, split
from corecli.generators.parts.adversarial import AdversarialDraws, AdversarialGenerator
from corecli.generators.parts.diff_augment import diff_augment
from corecli.generators.parts.learning import TrainOptions
from corecli.nets.batchnorm import synchronize_batchnorm

_BETAS, _EPS = (0.0, 0.999), 1e-6  # of Adam, in IC-GAN


class AdversarialLearner:
    """Trains a generator against a discriminator, which is saved in the run folder but not published.

    In each step, the discriminator gets `discriminator_steps` updates, each on an equal part of the batch: on its real
    images and as many generated ones. Then the generator gets one update, on the conditions of one part. Generated
    images use the conditions of the real ones and their own noise; IC-GAN draws other rows of the same table, which has
    the same expectation. BatchNorm uses the statistics of the global batch.

    ema_start: first step whose weights are averaged; before it, the average equals the generator.
    augment: kinds of `diff_augment`.
    """

    def __init__(
        self,
        generator: AdversarialGenerator,
        discriminator: nn.Module,
        options: TrainOptions,
        world: World,
        *,
        discriminator_lr: float,
        discriminator_steps: int,
        augment: tuple[str, ...],
        ema_start: int,
    ) -> None:
        self.generator, self.options, self.world = generator, options, world
        self.discriminator = place(discriminator, world.device)
        synchronize_batchnorm(generator, world.device)
        self.optimizers = {
            "generator": _optimizer(generator, options.lr, options.weight_decay),
            "discriminator": _optimizer(discriminator, discriminator_lr, options.weight_decay),
        }
        self.ema = EMA(generator, decay=_from_step(ema_start, warmed_up(options.ema_decay)))
        self._parts, self._augment = discriminator_steps, augment

    @property
    def average(self) -> nn.Module:
        return self.ema.module

    def learn(self, x: Tensor, condition: Tensor | None, draws: AdversarialDraws) -> Tensors:
        real, condition, draws = self._prepared(x, condition, draws.to(x.device))
        learned: Tensors = {}
        for part in range(self._parts):
            every = slice(part, None, self._parts)  # so that parts hold the same rows for any number of ranks
            learned |= self._discriminate(real[every], condition[every], draws[every])
        every = slice(0, None, self._parts)
        learned |= self._deceive(condition[every], draws[every])
        self.ema.update(self.generator)
        return learned

    def _prepared(
        self, x: Tensor, condition: Tensor | None, draws: AdversarialDraws
    ) -> tuple[Tensor, Tensor, AdversarialDraws]:
        """Return real images in [-1, 1], flipped as drawn, conditions for the networks, and the draws."""
        if tuple(x.shape[1:]) != self.generator.data_shape or x.is_floating_point():
            shapes = f"{tuple(x.shape[1:])}, but the generator takes pixels of {self.generator.data_shape}"
            raise DataError(f"{x.dtype} data of {shapes}")
        if len(x) % self._parts:
            reason = f"{len(x)} images per process cannot be split into {self._parts} equal parts"
            raise UsageError(reason, hint="use a batch size that discriminator_steps divides")
        if self.generator.config.flip:
            x = torch.where(draws.flip[:, None, None, None], x.flip(-1), x)
        return to_unit_range(x), self.generator.normalized(condition, batch=len(x)), draws

    def _discriminate(self, real: Tensor, condition: Tensor, draws: AdversarialDraws) -> Tensors:
        """Update the discriminator."""
        self.discriminator.requires_grad_(True)
        with autocast(self.options.precision, self.world.device):
            with torch.no_grad():
                fake = self.generator.network(draws.z[:, 0], condition)
            shown = torch.cat([self._augmented(real, draws, 0), self._augmented(fake, draws, 1)])
            of_real, of_fake = self.discriminator(shown, torch.cat([condition, condition])).chunk(2)
        loss = discriminator_loss(of_real, of_fake)
        self._step("discriminator", self.discriminator, loss)
        scores = {"real": of_real.detach().mean(), "fake": of_fake.detach().mean()}
        return {"discriminator": loss.detach(), **scores}

    def _deceive(self, condition: Tensor, draws: AdversarialDraws) -> Tensors:
        """Update the generator."""
        self.discriminator.requires_grad_(False)
        with autocast(self.options.precision, self.world.device):
            fake = self.generator.network(draws.z[:, 1], condition)
            of_fake = self.discriminator(self._augmented(fake, draws, 2), condition)
        loss = generator_loss(of_fake)
        self._step("generator", self.generator, loss)
        return {"loss": loss.detach()}

    def _augmented(self, x: Tensor, draws: AdversarialDraws, use: int) -> Tensor:
        return diff_augment(x, draws.augment[:, use], self._augment)

    def _step(self, name: str, network: nn.Module, loss: Tensor) -> None:
        self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(network.parameters(), self.world)
        if self.options.clip:
            torch.nn.utils.clip_grad_norm_(network.parameters(), self.options.clip, foreach=True)
        self.optimizers[name].step()

    def state(self) -> Tensors:
        return merge(
            generator=self.generator.state_dict(),
            discriminator=self.discriminator.state_dict(),
            **{f"{name}_optimizer": optim.optimizer_tensors(o) for name, o in self.optimizers.items()},
            ema=self.ema.state(),
        )

    def restore(self, tensors: Tensors, step: int) -> None:
        parts = split(tensors)
        self.generator.load_state_dict(parts["generator"])
        self.discriminator.load_state_dict(parts["discriminator"])
        for name, optimizer in self.optimizers.items():
            optim.restore_optimizer(optimizer, parts[f"{name}_optimizer"])
        self.ema.restore(parts["ema"])


def discriminator_loss(of_real: Tensor, of_fake: Tensor) -> Tensor:
    """Return the hinge loss of scores [B]: above 1 for real, below -1 for generated images (Geometric GAN)."""
    return F.relu(1 - of_real).mean() + F.relu(1 + of_fake).mean()


def generator_loss(of_fake: Tensor) -> Tensor:
    """Return minus the mean score of generated images."""
    return -of_fake.mean()


def _from_step(start: int, decay: Decay) -> Decay:
    """Return a decay of 0 before the step `start`, and `decay` from there."""
    return lambda n: decay(n - start) if n >= start else 0.0


def _optimizer(network: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """Return AdamW without momentum."""
    return optim.AdamW(network.parameters(), lr=lr, betas=_BETAS, eps=_EPS, weight_decay=weight_decay, fused=True)
