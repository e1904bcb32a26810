"""The scores of a test set: of the classifiers of all seeds together, of k-NN votes, and under corruptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from corecli.base.rng import derive
from corecli.commands.parts.inputs import open_images
from corecli.commands.probe.modes import corruptions, neighbors
from corecli.commands.probe.problem import Problem, read_features
from corecli.commands.probe.report import Result
from corecli.data.imageset import ImageSet
from corecli.data.rows import Rows
from corecli.engine.dist import World
from corecli.metrics.parts.average_precision import average_precision_11, mean_average_precision
from corecli.metrics.parts.scores import Scores, predict, student_interval, summarize
from corecli.views.corrupt import SEVERITIES, corrupt

if TYPE_CHECKING:
    from corecli.commands.probe.options import Config
    from corecli.commands.probe.training import Fitted
    from corecli.nets.encoder import Encoder


def score(
    config: Config,
    problem: Problem,
    number: int,
    fits: Sequence[Fitted],
    features: Tensor | None,
    found: Sequence[Tensor],
) -> Result:
    """The scores of test set `number`; found: its features [M, D] for each fit, features: those of train."""
    if problem.numbers.ndim == 2:
        return _score_lists(problem, number, fits, found)
    scores = _summary(config, problem, number, fits, found)
    values = {name: getattr(scores, name) for name in ("top1", "top5", "mean_per_class")}
    votes = {}
    if features is not None:
        labels, among = problem.answers[number], _among(config, problem, number)
        votes = neighbors(config, problem, features, found[0], labels, among)
    for k, runs in votes.items():
        of_k = summarize(runs, problem.answers[number], num_classes=scores.num_classes)
        prefix = "knn" if len(votes) == 1 else f"knn{k}"
        values |= {f"{prefix}_top1": of_k.top1, f"{prefix}_top5": of_k.top5}
    return Result(
        task=problem.task,
        of=problem.task.tests[number],
        space=problem.space,
        values=values,
        per_class={problem.space.name(c): value for c, value in scores.per_class.items()},
        intervals={"top1_interval_seeds": scores.seed_interval, "top1_interval_test": scores.test_interval},
        by_seed={"top1_by_seed": scores.top1_by_seed},
        settings=tuple(fit.setting for fit in fits if fit.setting is not None),
        num_train=len(problem.subsets[0]),
        num_test=scores.num_test,
        num_classes=scores.num_classes,
        confusion=scores.confusion.tolist(),
    )


def _score_lists(problem: Problem, number: int, fits: Sequence[Fitted], found: Sequence[Tensor]) -> Result:
    """Mean average precision, where images have several classes."""
    targets = problem.answers[number]
    logits = [fit.classifier.logits(of_test).cpu() for fit, of_test in zip(fits, found, strict=True)]
    by_seed = tuple(mean_average_precision(one, targets) for one in logits)
    each = {
        problem.space.name(c): float(np.mean([average_precision_11(one[:, c], targets[:, c]) for one in logits]))
        for c in range(targets.shape[1])
    }
    return Result(
        task=problem.task,
        of=problem.task.tests[number],
        space=problem.space,
        values={"map": float(np.mean(by_seed))},
        per_class=each,
        intervals={"map_interval_seeds": student_interval(by_seed)},
        by_seed={"map_by_seed": by_seed},
        settings=tuple(fit.setting for fit in fits if fit.setting is not None),
        num_train=len(problem.subsets[0]),
        num_test=len(targets),
        num_classes=targets.shape[1],
        confusion=None,
    )


def score_corrupted(
    config: Config,
    problem: Problem,
    number: int,
    fits: Sequence[Fitted],
    encoders: Sequence[Encoder | None],
    world: World,
) -> dict[str, list[float]]:
    """top1 under each corruption asked for, by severity; all ranks take part, the main one gets the result."""
    test = problem.tests[number]
    data = open_images(test.spec, config)
    found: dict[str, list[float]] = {}
    for name in corruptions(config):
        for severity in SEVERITIES:
            changed = Corrupted(data=data, name=name, severity=severity, seed=config.seed)
            features = [read_features(config, test, one, world, images=changed) for one in encoders]
            if world.is_main:
                features *= len(fits) // len(features)
                found.setdefault(name, []).append(_summary(config, problem, number, fits, features).top1)
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Corrupted:
    """An image set as it looks under a corruption, each image by a seed of its own; an ImageSet."""

    data: ImageSet
    name: str
    severity: int
    seed: int

    @property
    def rows(self) -> Rows:
        return self.data.rows

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.data.class_names

    @property
    def image_size(self) -> tuple[int, int]:
        return self.data.image_size

    @property
    def decodes(self) -> bool:
        """True: corrupting costs more than decoding, so worker processes pay."""
        return True

    @property
    def slots(self) -> np.ndarray:
        return self.data.slots

    @property
    def segments(self) -> tuple[int, ...]:
        return self.data.segments

    @property
    def guard(self) -> bool:
        return self.data.guard

    @property
    def bad(self) -> tuple[str, ...]:
        return self.data.bad

    @property
    def fingerprint(self) -> str:
        return self.data.fingerprint

    def read_array(self, indices: np.ndarray) -> np.ndarray:
        """Return the images of the given rows, corrupted, as an array."""
        return self.read(indices).numpy()

    def read(self, indices: np.ndarray) -> Tensor:
        """Return the images of the given rows, corrupted."""
        keys = (self.data.rows.keys[row] for row in indices.tolist())
        seeds = [derive(self.seed, "corrupt", self.name, self.severity, key) for key in keys]
        return corrupt(self.data.read(indices), self.name, self.severity, seeds=seeds)


def _summary(config: Config, problem: Problem, number: int, fits: Sequence[Fitted], found: Sequence[Tensor]) -> Scores:
    labels, among = problem.answers[number], _among(config, problem, number)
    pairs = zip(fits, found, strict=True)
    runs = [predict(fit.classifier.logits, features, labels, among=among) for fit, features in pairs]
    return summarize(runs, labels, num_classes=len(problem.space) if among is None else int(among.sum()))


def _among(config: Config, problem: Problem, number: int) -> torch.Tensor | None:
    """The classes in question, where they are not all."""
    return problem.space.shared_with(problem.tests[number]) if config.subset_logits else None
