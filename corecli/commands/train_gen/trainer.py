"""What `train-gen` trains: a generator with its learner, on images and their conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from corecli.base import checkpoint, registry
from corecli.base.config import named_values, parse_fields
from corecli.base.errors import CorecliError, DataError, UsageError, about
from corecli.base.rng import derive
from corecli.commands.parts.captioned import Captioned, Reader
from corecli.commands.parts.inputs import num_workers
from corecli.commands.train_gen.fields import chosen_fields
from corecli.data.neighbors import Neighbors
from corecli.draw.sheet import write_sheet
from corecli.engine.dist import World, mean_over_ranks
from corecli.engine.power_ema import PowerEMA
from corecli.engine.precision import autocast, place
from corecli.engine.run import Tensors
from corecli.generators.parts.latent import LatentConfig, prepare
from corecli.generators.parts.learning import Learner, OneLossLearner, Recipe

if TYPE_CHECKING:
    from corecli.commands.train_gen.options import Config
    from corecli.data.features import FeatureTable
    from corecli.data.imageset import ImageSet
    from corecli.nets.autoencoder import FirstStage

_SHARED_FIELDS = (
    "objective", "learn_sigma", "min_snr", "flow_times", "schedule", "diffusion_steps", "flip",
    "condition_dropout", "feature_normalization", "feature_noise", "latent_scale", "caption_length",
)  # fmt: skip
_ENOUGH_CAPTIONS = 1024  # for the mean and std of each dimension of their embeddings
_PREVIEW_COLUMNS, _PREVIEW_ROWS, _PREVIEW_STEPS = 10, 4, 25


class GenTrainer:
    """A generator of the chosen family, learning; `learn` takes one step."""

    def __init__(
        self,
        config: Config,
        data: ImageSet,
        table: FeatureTable | None,
        stage: FirstStage | None,
        captions: Captioned | None,
        *,
        condition: str,
        world: World,
    ) -> None:
        self.config, self.data, self.world = config, data, world
        self._table, self._captions = table, captions
        self.notes: tuple[str, ...] = ()
        with about(config.features or config.data):
            self._conditions = _conditions(data, table, condition)
        reader = Reader(captions.folder, length=config.caption_length, device=world.device) if captions else None
        self.generator = place(_build(config, data, self._conditions, reader, stage, condition), world.device)
        if captions is not None and reader is not None:
            self._conditions, self.notes = reader.encode(self.generator, captions.texts), reader.cut(captions.texts)
            if config.text_encoder is not None:
                self.generator.conditioning.measure(self._conditions[:_ENOUGH_CAPTIONS])
        self.generator.check_condition(self._conditions)
        family = registry.load("generators", config.arch)
        recipe = Recipe(
            lr=config.lr,
            weight_decay=config.weight_decay,
            clip=getattr(family, "CLIP", 1.0) if config.clip is None else config.clip,
            ema=config.ema,
            ema_decay=config.ema_decay,
            precision=config.precision,
        )
        if config.ema == "power" and hasattr(family, "learner"):
            raise UsageError(f"{config.arch} keeps no power averages", hint="drop --ema")
        make_learner: Callable[..., Learner] = getattr(family, "learner", OneLossLearner)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(config.seed, "init", "learner"))
            self.learner = make_learner(self.generator, recipe, world)
        self.neighbors = self._neighbors()
        self._preview_steps = None if getattr(family, "ONE_PASS", False) else _PREVIEW_STEPS
        self.state, self.average = self.learner.state, self.learner.average
        self._bad_step = torch.full((), -1, device=world.device)  # the first whose loss is not finite

    def prepare(self, folder: Path) -> ImageSet:
        """What to learn from: the images, or the latents of a first stage, encoded once into the run folder."""
        workers = num_workers(self.config.workers)
        size, quiet = self.config.batch_size, self.config.quiet
        world, generator = self.world, self.generator
        return prepare(generator, self.data, folder, world=world, batch_size=size, workers=workers, quiet=quiet)

    def tidy(self, folder: Path) -> None:
        """Remove the latents, which a finished run needs no more."""
        for path in folder.glob("latents-*.safetensors"):
            path.unlink()

    def learn(self, step: int, images: torch.Tensor, rows: np.ndarray) -> Tensors:
        """One step on what `prepare` gave of the given rows, [b, ...], or [1, b, ...] of their neighbors.

        Returns this rank's losses.
        """
        images = images if self.neighbors is None else images[0]
        first = self.world.rank * len(rows)
        draws = self.generator.draw(self.config.seed, step, batch=self.config.batch_size)[first : first + len(rows)]
        condition = self._told(rows)
        learned = self.learner.learn(images, condition, draws)
        bad = ~torch.stack([value.isfinite() for value in learned.values()]).all()
        self._bad_step = torch.where(bad & (self._bad_step < 0), step, self._bad_step)
        return learned

    def _told(self, rows: np.ndarray) -> torch.Tensor | None:
        """The condition of some rows of the set."""
        if self._conditions is None:
            return None
        told = rows if self._captions is None else self._captions.which[rows]
        return self._conditions[told].to(self.world.device)

    def _neighbors(self) -> Neighbors | None:
        """Whose images are shown as real ones in place of the image whose features are the condition (IC-GAN)."""
        num = getattr(self.generator.config, "neighbours", 0)
        if not num or self._table is None or self._conditions is None:
            return None
        with about(self.config.data):
            return Neighbors(self._conditions.to(self.world.device), num, seed=self.config.seed)

    def figures(self, step: int, learned: Tensors) -> dict[str, float]:
        """What is logged: the losses of the step over all ranks. Errors: CorecliError when one is not finite."""
        values = {name: float(mean_over_ranks(value)) for name, value in learned.items()}
        name = next((name for name, value in values.items() if not np.isfinite(value)), None)
        if name is not None:
            first = int(self._bad_step)
            raise self._diverged(step if first < 0 else first, f"the {name} is {values[name]}")
        return values

    def restore(self, tensors: Tensors, step: int) -> None:
        """Take back what `state` gave."""
        self.learner.restore(tensors)

    def keep_averages(self, step: int, folder: Path) -> None:
        """Keep a snapshot of power averages when another is due."""
        ema, num, total = getattr(self.learner, "ema", None), self.config.ema_snapshots, self.config.steps
        if isinstance(ema, PowerEMA) and self.world.is_main and (step + 1) * num // total > step * num // total:
            ema.snapshot(folder / "averages")

    def preview(self, path: Path) -> None:
        """A grid of samples of the average, from fixed seeds; below real images where it is conditioned.

        Errors: CorecliError where a loss was not finite.
        """
        if int(self._bad_step) >= 0:
            raise self._diverged(int(self._bad_step), "the loss is not finite")
        columns = min(_PREVIEW_COLUMNS, len(self.data.rows))
        rows = np.tile(np.linspace(0, len(self.data.rows) - 1, columns).astype(int), _PREVIEW_ROWS)
        seeds = [derive(self.config.seed, "preview", i) for i in range(len(rows))]
        condition = self._told(rows)
        with autocast(self.config.precision, self.world.device):
            average: Any = self.average
            if hasattr(average, "reconstruct"):
                images = average.reconstruct(self.data.read(rows[:columns])).cpu()
            else:
                images = average.generate(seeds, condition, steps=self._preview_steps).cpu()
        if condition is not None or hasattr(average, "reconstruct"):
            images = torch.cat([self.data.read(rows[:columns]), images])
        write_sheet(path, images.numpy(), columns=columns, head_rows=int(len(images) > len(rows)))

    def save(self, path: Path, **header: Any) -> None:
        """Write the average as a generator file, with what it was conditioned on. Errors: CorecliError."""
        weights = self.average.state_dict()
        bad = next((name for name, t in weights.items() if not t.isfinite().all()), None)
        if bad is not None:
            raise self._diverged(self.config.steps - 1, f"{bad} is not finite")
        told: dict[str, Any] = {"kind": self.generator.config.condition}
        if self._table is not None:
            told |= {"encoder": self._table.header["encoder"], "layer": self._table.header["layer"]}
        if self._captions is not None:
            told |= {"text_encoder": self.config.text_encoder, "fingerprint": self._captions.inputs["text_encoder"]}
        checkpoint.save(
            path,
            weights,
            kind="generator",
            arch=self.config.arch,
            generator=asdict(self.generator.config),
            condition=told,
            class_names=list(self.data.class_names),
            **header,
        )

    def _diverged(self, step: int, sign: str) -> CorecliError:
        hint = "the last good state is kept; lower --lr and start over with --force"
        return CorecliError(f"training diverged at step {step + 1}: {sign}", where=self.config.out, hint=hint)


def _build(
    config: Config,
    data: ImageSet,
    conditions: torch.Tensor | None,
    reader: Reader | None,
    stage: FirstStage | None,
    condition: str,
) -> Any:
    """A generator of --arch for these images and conditions, its initial weights drawn from the seed."""
    family = registry.load("generators", config.arch)
    height, width = data.image_size
    if height != width:
        raise DataError(f"images of {width} x {height} are not square", where=config.data, hint="give --image-size")
    chosen = chosen_fields(config, _SHARED_FIELDS, family.Config, f"--arch {config.arch}")
    chosen |= parse_fields(family.Config, named_values(config.set), where=config.arch)
    if condition == "features" and conditions is not None:
        chosen["condition_dim"] = conditions.shape[1]
    if reader is not None:
        chosen |= {"condition_dim": reader.width, "caption_length": reader.length}
    if condition == "labels":
        chosen["num_classes"] = len(data.class_names)
    if stage is not None:
        if not issubclass(family.Config, LatentConfig):
            raise UsageError(f"{config.arch} does not work in latents", hint="drop --first-stage; ldm and dit do")
        chosen["first_stage"] = dict(stage.spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "init", "generator"))
        generator = family.build(family.Config(image_size=height, condition=condition, **chosen))
    if stage is not None:
        generator.first_stage.load_state_dict(stage.state_dict())
    return generator


def _conditions(data: ImageSet, table: FeatureTable | None, condition: str) -> torch.Tensor | None:
    """The condition of every row of the set: features [N, D], labels [N], or None."""
    if condition == "labels":
        labels = torch.from_numpy(data.rows.labels)
        if bool((labels < 0).any()):
            raise DataError(f"{int((labels < 0).sum())} images have no label", hint="--condition labels needs them all")
        return labels
    return None if table is None else table.lookup(data.rows.keys, or_groups=data.rows.groups)
