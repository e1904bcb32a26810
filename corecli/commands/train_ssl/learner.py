"""What `train-ssl` trains: an encoder under the methods of its stages, with an online probe that watches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.errors import CorecliError, DataError, UsageError, about
from corecli.base.rng import derive
from corecli.commands.train_ssl.plan import StagePlan, local_px
from corecli.commands.train_ssl.views import ViewMaker, Views, pair_of_views
from corecli.engine import optim, schedule
from corecli.engine.dist import World, average_gradients, mean_over_ranks
from corecli.engine.precision import autocast, place
from corecli.engine.progress import note
from corecli.engine.run import Tensors, merge, split
from corecli.nets.batchnorm import synchronize_batchnorm
from corecli.nets.depth import rate_scales
from corecli.nets.encoder import Encoder
from corecli.nets.vit import is_vit
from corecli.ssl.parts.method import Batch, Context, Method, split_batch
from corecli.ssl.parts.online import OnlineProbe, figures, has_collapsed, subset_rows

if TYPE_CHECKING:
    from corecli.commands.train_ssl.options import Config
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
        stages: tuple[StagePlan, ...],
        world: World,
    ) -> None:
        self.config, self.data, self.stages, self.world = config, data, stages, world
        self.encoder = place(encoder, world.device)
        self._labels = torch.from_numpy(data.rows.labels)
        self._groups = torch.from_numpy(data.rows.group_ids)
        with about(config.features):
            self._targets = table.lookup(data.rows.keys, or_groups=data.rows.groups) if table else None
        self._subset = subset_rows(data.rows.labels)
        self._warned, self._told = False, set[str]()
        self._enter(0)
        num_classes = int(self._labels.max()) + 1
        self.probe = OnlineProbe(self.encoder, num_classes, world) if num_classes > 1 else None

    def learn(self, step: int, images: torch.Tensor, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """One step on the given rows, uint8 images [E, b, 3, H, W] of their members; this rank's loss and accuracy."""
        index, step_of_stage = schedule.find_stage(self.stages, step)
        if index != self._index:
            self._enter(index)
        rate = self._set_rates(step_of_stage)
        batches = self._batches(step, images, rows)
        self.method.train()
        torch.manual_seed(derive(self.config.seed, "dropout", step, self.world.rank))  # of a ViT's skipped branches
        self.optimizer.zero_grad(set_to_none=True)
        losses = [self._backward(batch) for batch in batches]
        average_gradients(self.method.parameters(), self.world)
        if self.config.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.method.parameters(), self.config.clip_grad)
        self.optimizer.step()
        self.method.after_step(step_of_stage, self.stages[index].steps)
        learned = {"loss": torch.stack(losses).mean(), "lr": torch.tensor(rate)}
        if self.probe is not None:
            learned["probe"] = self.probe.learn(batches[0].labels)
        return learned

    def figures(self, learned: dict[str, torch.Tensor]) -> dict[str, float]:
        """What is logged: the values of the step over all ranks, and figures of a fixed subset of the images."""
        values = {name: float(mean_over_ranks(value)) for name, value in learned.items()}
        if not np.isfinite(values["loss"]):
            raise self._diverged(f"the loss is {values['loss']}")
        if self.world.is_main:
            images, labels = self.data.read(self._subset), self.data.rows.labels[self._subset]
            pair = pair_of_views(images, self.stages[self._index].policies[0])
            try:
                values |= figures(self.encoder, images, labels, pair)
            except DataError as error:
                raise self._diverged(error.reason) from error
            self._warn_of_collapse(values)
        return values

    def published(self) -> Encoder:
        """The encoder to write: what --export says, or the network the method's authors evaluate."""
        chosen = self.method.publishes if self.config.export == "auto" else self.config.export
        if chosen == "teacher" and self.method.teacher is not None:
            return self.method.teacher
        return self.encoder

    def state(self) -> Tensors:
        """Everything that changes, by name."""
        parts = {"method": self.method.state_dict(), "optimizer": optim.optimizer_tensors(self.optimizer)}
        if self.probe is not None:
            parts["probe"] = self.probe.state_dict()
            parts["probe_optimizer"] = optim.optimizer_tensors(self.probe.optimizer)
        return merge(**parts)

    def restore(self, tensors: Tensors, step: int) -> None:
        """Take back what `state` gave after `step` steps, into the stage of the last of them."""
        self._enter(schedule.find_stage(self.stages, step - 1)[0])
        parts = split(tensors)
        self.method.load_state_dict(parts["method"])
        optim.restore_optimizer(self.optimizer, parts["optimizer"])
        if self.probe is not None:
            self.probe.load_state_dict(parts["probe"])
            optim.restore_optimizer(self.probe.optimizer, parts["probe_optimizer"])

    def _enter(self, index: int) -> None:
        """Begin a stage: its method and a fresh optimizer on the encoder as it is."""
        config, stage = self.config, self.stages[index]
        module = registry.load("ssl", stage.method, "method")
        options = module.Options(**cfg.parse_fields(module.Options, stage.options, where=stage.method))
        with about(config.data):
            method: Method = module.build(self.encoder, options=options, context=self._context(stage))
        self._check(method, stage.method)
        self.method: Method = synchronize_batchnorm(method.to(self.world.device), self.world.device)  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer = optim.build_optimizer(
            config.optimizer,
            self.method.parameters(),
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            betas=(0.9, config.adam_beta2),
            eta=config.lars_eta,
            clip=config.lars_clip,
            constant_rate=self.method.constant_rate(),
            rate_scales=self._rate_scales(),
        )
        self._views = ViewMaker(
            stage,
            local_px=local_px(config, self.data.image_size[0]),
            batch_size=config.batch_size,
            parts=config.accumulate,
            seed=config.seed,
            compile=config.compile,
            world=self.world,
        )
        self._index = index
        if self.world.is_main and not config.quiet:
            for warning in set(self.method.notes) - self._told:
                note(f"train-ssl: warning: {warning}")
        self._told |= set(self.method.notes)

    def _rate_scales(self) -> dict[torch.nn.Parameter, float]:
        """The factors of --layer-decay. Errors: UsageError for other networks than ViTs."""
        decay, backbone = self.config.layer_decay, self.encoder.backbone
        if decay == 1:
            return {}
        if not is_vit(backbone):
            raise UsageError("--layer-decay is for vision transformers", hint="leave it out")
        return rate_scales(backbone, decay)

    def _context(self, stage: StagePlan) -> Context:
        return Context(
            num_views=stage.num_views,
            num_local_views=stage.num_local_views,
            batch_size=self.config.batch_size // self.config.accumulate,
            num_classes=int(self._labels.max()) + 1,
            target_dim=None if self._targets is None else self._targets.shape[1],
            steps_per_epoch=stage.epoch_images // self.config.batch_size,
            seed=self.config.seed,
        )

    def _check(self, method: Method, name: str) -> None:
        """Refuse a method that cannot have what it needs, or options that it has no use for."""
        if method.needs == "labels" and bool((self._labels < 0).any()):
            unlabeled = int((self._labels < 0).sum())
            reason = f"{unlabeled} images have no label, and {name} needs them"
            raise DataError(reason, where=self.config.data, hint="class sub-folders give labels")
        if method.needs == "features" and self._targets is None:
            raise UsageError(f"{name} needs --features")
        if method.needs != "features" and self._targets is not None and len(self.stages) == 1:
            raise UsageError(f"{name} has no use for --features", hint="psl has")
        if self.config.accumulate > 1 and not method.accumulates:
            raise UsageError(f"{name} keeps something of every batch, of which --accumulate would lose parts")
        if self.config.export == "teacher" and method.teacher is None and self.stages[-1].method == name:
            raise UsageError(f"{name} has no teacher to export", hint="drop --export")

    def _set_rates(self, step: int) -> float:
        """Learning rate and weight decay of a step of the current stage; returns the rate."""
        config, stage = self.config, self.stages[self._index]
        rate = schedule.learning_rate(
            step,
            peak=config.lr,
            total_steps=stage.steps,
            warmup_steps=stage.warmup_steps,
            shape=config.schedule,
        )
        optim.set_learning_rate(self.optimizer, rate)
        if config.weight_decay_end is not None:
            start, end = config.weight_decay, config.weight_decay_end
            decay = schedule.weight_decay(step, start=start, end=end, total_steps=stage.steps)
            optim.set_weight_decay(self.optimizer, decay)
        return rate

    def _backward(self, batch: Batch) -> torch.Tensor:
        """Add the gradient of one of the parts of a step; the loss of the part."""
        with autocast(self.config.precision, self.world.device):
            loss = self.method.loss(batch)
        (loss / self.config.accumulate).backward()
        return loss.detach()

    def _batches(self, step: int, images: torch.Tensor, rows: np.ndarray) -> list[Batch]:
        """The parts of a step."""
        views, local_views = self._views.make(step, images)
        whole, num_parts = self._batch(step, views, local_views, rows), self.config.accumulate
        return [whole] if num_parts == 1 else split_batch(whole, num_parts)

    def _batch(self, step: int, views: Views, local_views: Views, rows: np.ndarray) -> Batch:
        index, step_of_stage = schedule.find_stage(self.stages, step)
        device = self.world.device
        return Batch(
            views=views,
            local_views=local_views,
            labels=self._labels[rows].to(device),
            groups=self._groups[rows].to(device),
            targets=None if self._targets is None else self._targets[rows].to(device),
            step=step_of_stage,
            total_steps=self.stages[index].steps,
        )

    def _warn_of_collapse(self, values: dict[str, float]) -> None:
        if has_collapsed(values) and not self._warned and not self.config.quiet:
            told = f"spread {values['spread']:.3g}, effective rank {values['effective_rank']:.3g}"
            note(f"train-ssl: warning: the features have all but collapsed: {told}")
            self._warned = True

    def _diverged(self, sign: str) -> CorecliError:
        return CorecliError(f"training diverged: {sign}", where=self.config.out, hint="lower --lr")
