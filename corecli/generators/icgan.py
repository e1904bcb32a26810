"""IC-GAN: a BigGAN conditioned on features of an image, with its neighbors as real images (Casanova et al. 2021)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from corecli.base.errors import UsageError, unknown_name
from corecli.engine.dist import World
from corecli.generators.parts.adversarial import AdversarialConfig, AdversarialGenerator
from corecli.generators.parts.adversarial_learner import AdversarialLearner
from corecli.generators.parts.diff_augment import KINDS
from corecli.generators.parts.learning import TrainOptions
from corecli.nets.biggan import BigGanDiscriminator, BigGanGenerator, default_mult

CONDITIONS = ("none", "features", "labels")
ONE_PASS = True  # images are made without sampler, steps or guidance
TINY = {  # fields of a small network, for tests
    "image_size": 16,
    "channels": 8,
    "neighbours": 4,
    "z_dim": 8,
    "condition_width": 16,
    "attention_px": (4,),
}
CLIP = 0.0  # default of --clip: gradients are not clipped, since their norms reach the hundreds early on


@dataclass(frozen=True, kw_only=True)
class Config(AdversarialConfig):
    """The defaults are IC-GAN's at 64 px, plus DiffAugment, and averaging starts at once.

    channel_mult: widths of the generator at 4, 8, .. px, in units of `channels`; None means the published ones.
    discriminator_mult: widths of the discriminator's blocks; None means the published ones.
    attention_px: sizes below the image size at which both networks have attention.
    z_dim: dimensions of the noise, rounded down to equal chunks. condition_width: of the embedded condition.
    neighbours: number of nearest images, by cosine similarity of features, one of which is shown as the real image;
    0 shows the image itself, as always without features.
    augment: augmentations of the discriminator's input: some of color, translation and cutout, or none.
    discriminator_steps: discriminator updates per step, each on an equal part of the batch.
    discriminator_lr: learning rate of the discriminator; None means the generator's.
    ema_start: first step whose weights are averaged (IC-GAN: 20,000).
    """

    channels: int = 64
    channel_mult: tuple[int, ...] | None = None
    discriminator_mult: tuple[int, ...] | None = None
    attention_px: tuple[int, ...] = (32,)
    z_dim: int = 120
    condition_width: int = 512
    neighbours: int = 50
    augment: tuple[str, ...] = ("color", "translation", "cutout")
    discriminator_steps: int = 1
    discriminator_lr: float | None = None
    ema_start: int = 0


def build(config: Config) -> AdversarialGenerator:
    """Build a generator with new weights from torch's global generator.

    Errors: UsageError if image size, widths, augmentation or condition do not fit together.
    """
    config = _resolved(config)
    assert config.channel_mult is not None
    network = BigGanGenerator(
        image_size=config.image_size,
        channels=config.channels,
        mult=config.channel_mult,
        attention_px=config.attention_px,
        z_dim=config.z_dim,
        condition_dim=config.condition_dim,
        num_classes=_num_classes(config),
        condition_width=config.condition_width,
    )
    return AdversarialGenerator(config, network)


def learner(generator: AdversarialGenerator, options: TrainOptions, world: World) -> AdversarialLearner:
    """Return what trains the generator, with a new discriminator from torch's global generator."""
    config = generator.config
    assert isinstance(config, Config)
    assert config.discriminator_mult is not None
    discriminator = BigGanDiscriminator(
        image_size=config.image_size,
        channels=config.channels,
        mult=config.discriminator_mult,
        attention_px=config.attention_px,
        condition_dim=config.condition_dim,
        num_classes=_num_classes(config),
    )
    return AdversarialLearner(
        generator,
        discriminator,
        options,
        world,
        discriminator_lr=options.lr if config.discriminator_lr is None else config.discriminator_lr,
        discriminator_steps=config.discriminator_steps,
        augment=config.augment,
        ema_start=config.ema_start,
    )


def _resolved(config: Config) -> Config:
    """Replace None by the published values. Errors: UsageError for values that do not fit."""
    _check_condition(config)
    augment = () if tuple(config.augment) == ("none",) else tuple(config.augment)
    for kind in augment:
        if kind not in KINDS:
            raise unknown_name("augmentation", kind, (*KINDS, "none"))
    if config.discriminator_steps < 1:
        raise UsageError(f"discriminator_steps is {config.discriminator_steps}", hint="use 1 step or more")
    if None in (config.channel_mult, config.discriminator_mult):
        published = default_mult(config.image_size)
    else:
        published = ((), ())
    return dataclasses.replace(
        config,
        channel_mult=tuple(config.channel_mult or published[0]),
        discriminator_mult=tuple(config.discriminator_mult or published[1]),
        attention_px=tuple(config.attention_px),
        augment=augment,
    )


def _num_classes(config: Config) -> int:
    """Return the number of classes of the networks; without a condition, all images are of one class."""
    return 1 if config.condition == "none" else config.num_classes


def _check_condition(config: Config) -> None:
    if config.condition not in CONDITIONS:
        raise UsageError(f"icgan is trained on {' or '.join(CONDITIONS)}, not on {config.condition}")
    if config.condition == "features" and config.condition_dim < 2:
        raise UsageError("a feature-conditioned generator needs features of 2 or more dimensions")
    if config.condition == "labels" and config.num_classes < 1:
        raise UsageError("a label-conditioned generator needs the number of classes")
