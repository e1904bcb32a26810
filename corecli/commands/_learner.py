"""What `train-ssl` trains: an encoder under the methods of its stages, with an online probe that watches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from corecli.base import registry
from corecli.base.errors import CorecliError, DataError, UsageError, about
from corecli.data import augment
from corecli.engine import optim
from corecli.engine.dist import World, average_gradients, mean_over_ranks
from corecli.engine.precision import autocast, place
from corecli.engine.run import Tensors, merge, split
from corecli.engine.schedule import Stage, check_warmup, find_stage, learning_rate, parse_duration
from corecli.nets.batchnorm import synchronise_batchnorm
from corecli.nets.encoder import Encoder
from corecli.ssl._method import Batch, Options
from corecli.ssl._online import OnlineProbe, figures, subset_rows

if TYPE_CHECKING:
    from corecli.commands.train_ssl import Config
    from corecli.data.features import FeatureTable
    from corecli.data.imageset import ImageSet


class Learner:
    """An encoder, the method and optimizer of the current stage, and the probe; `learn` takes one step."""

    def __init__(
        self,
        config: Config,
        encoder: Encoder,
        data: ImageSet,
        table: FeatureTable | None,
        *,
        stages: tuple[Stage, ...],
        world: World,
    ) -> None:
        self.config, self.data, self.stages, self.world = config, data, stages, world
        self.encoder = place(encoder, world.device)
        self._labels = torch.from_numpy(data.rows.labels)
        self._groups = torch.from_numpy(data.rows.group_ids)
        with about(config.features):
            self._targets = table.lookup(data.rows.keys, or_groups=data.rows.groups) if table else None
        self._recipes = [augment.get_recipe(name) for name in config.augment]
        self._warmup_steps = [_warmup_steps(config, data, stage) for stage in stages]
        self._subset = subset_rows(data.rows.labels)
        self._enter(0)
        num_classes = int(self._labels.max()) + 1
        self.probe = OnlineProbe(self.encoder, num_classes, world) if num_classes > 1 else None

    def learn(self, step: int, images: torch.Tensor, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """One step on uint8 images [b, 3, H, W] of the given rows; returns this rank's loss and probe accuracy."""
        index, step_of_stage = find_stage(self.stages, step)
        if index != self._index:
            self._enter(index)
        stage = self.stages[index]
        rate = learning_rate(
            step_of_stage,
            peak=self.config.lr,
            total_steps=stage.steps,
            warmup_steps=self._warmup_steps[index],
            shape=self.config.schedule,
        )
        optim.set_learning_rate(self.optimizer, rate)
        batch = self._batch(step, images, rows)
        self.method.train()
        with autocast(self.config.precision, self.world.device):
            loss = self.method.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.method.parameters(), self.world)
        self.optimizer.step()
        self.method.after_step(step_of_stage, stage.steps)
        learned = {"loss": loss.detach(), "lr": torch.tensor(rate)}
        if self.probe is not None:
            learned["probe"] = self.probe.learn(batch.labels)
        return learned

    def figures(self, learned: dict[str, torch.Tensor]) -> dict[str, float]:
        """What is logged: the values of the step over all ranks, and figures of a fixed subset of the images."""
        values = {name: float(mean_over_ranks(value)) for name, value in learned.items()}
        if not np.isfinite(values["loss"]):
            raise self._diverged(f"the loss is {values['loss']}")
        if self.world.is_main:
            images, labels = self.data.read(self._subset), self.data.rows.labels[self._subset]
            try:
                values |= figures(self.encoder, images, labels)
            except DataError as error:
                raise self._diverged(error.reason) from error
        return values

    def state(self) -> Tensors:
        """Everything that changes, by name."""
        parts = {"method": self.method.state_dict(), "optimizer": optim.optimizer_tensors(self.optimizer)}
        if self.probe is not None:
            parts["probe"] = self.probe.state_dict()
            parts["probe_optimizer"] = optim.optimizer_tensors(self.probe.optimizer)
        return merge(**parts)

    def restore(self, tensors: Tensors, step: int) -> None:
        """Take back what `state` gave after `step` steps, into the stage of the last of them."""
        self._enter(find_stage(self.stages, step - 1)[0])
        parts = split(tensors)
        self.method.load_state_dict(parts["method"])
        optim.restore_optimizer(self.optimizer, parts["optimizer"])
        if self.probe is not None:
            self.probe.load_state_dict(parts["probe"])
            optim.restore_optimizer(self.probe.optimizer, parts["probe_optimizer"])

    def _enter(self, index: int) -> None:
        """Begin a stage: its method and a fresh optimizer on the encoder as it is."""
        config, name = self.config, self.stages[index].method
        options = Options(
            temperature=config.temperature if _takes(name, "temperature", self.stages) else None,
            num_views=config.views if _takes(name, "num_views", self.stages) else None,
            num_classes=int(self._labels.max()) + 1,
            target_dim=None if self._targets is None else self._targets.shape[1],
            seed=config.seed,
        )
        with about(config.data):
            method = registry.load("ssl", name, "method").build(self.encoder, options=options)
        self._check_needs(method.needs, name)
        self.method: Any = synchronise_batchnorm(method.to(self.world.device), self.world.device)
        self.optimizer = optim.build_optimizer(
            config.optimizer,
            self.method.parameters(),
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            eta=config.lars_eta,
            clip=config.lars_clip,
        )
        self._index = index

    def _diverged(self, sign: str) -> CorecliError:
        return CorecliError(f"training diverged: {sign}", where=self.config.out, hint="lower --lr")

    def _check_needs(self, needs: str, name: str) -> None:
        if needs == "labels" and bool((self._labels < 0).any()):
            unlabelled = int((self._labels < 0).sum())
            reason = f"{unlabelled} images have no label, and {name} needs them"
            raise DataError(reason, where=self.config.data, hint="class sub-folders give labels")
        if needs == "features" and self._targets is None:
            raise UsageError(f"{name} needs --features")
        if needs != "features" and self._targets is not None and len(self.stages) == 1:
            raise UsageError(f"{name} has no use for --features", hint="psl has")

    def _batch(self, step: int, images: torch.Tensor, rows: np.ndarray) -> Batch:
        """The views of this rank's images, its slice of the parameters drawn for the global batch."""
        first = self.world.rank * len(rows)
        views = []
        for view in range(self.method.num_views):
            recipe = self._recipes[min(view, len(self._recipes) - 1)]
            parameters = augment.draw(
                recipe,
                seed=self.config.seed,
                step=step,
                view=view,
                batch=self.config.batch_size,
                image_size=(images.shape[-2], images.shape[-1]),
            )
            views.append(augment.augment(images, parameters[first : first + len(rows)], compile=self.config.compile))
        device = self.world.device
        return Batch(
            views=tuple(views),
            labels=self._labels[rows].to(device),
            groups=self._groups[rows].to(device),
            targets=None if self._targets is None else self._targets[rows].to(device),
        )


def _takes(method: str, option: str, stages: tuple[Stage, ...]) -> bool:
    """Whether an option is meant for this method: always with one stage, so that it complains, else where it fits."""
    defaults = registry.load("ssl", method, "method").DEFAULTS
    return len(stages) == 1 or getattr(defaults, option) is not None


def _warmup_steps(config: Config, data: ImageSet, stage: Stage) -> int:
    epoch = len(data.slots) // config.batch_size
    if config.warmup == "auto":
        return min(stage.steps // 10, 10 * epoch)
    steps = parse_duration(config.warmup).to_steps(steps_per_epoch=epoch, batch_size=config.batch_size)
    check_warmup((stage,), steps)
    return steps
