"""Fit the classifiers of a task and score them on its test sets, also under corruptions and by k-NN votes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corecli.base.errors import about
from corecli.base.rng import derive
from corecli.commands.probe.context import Context, Fitted
from corecli.commands.probe.problem import Problem
from corecli.commands.probe.reader import Labeled, Reader
from corecli.commands.probe.report import Result
from corecli.data.decode import Fit
from corecli.data.imageset import ImageSet
from corecli.data.pictures import ArrayPicture, Picture
from corecli.data.rows import Places, Rows
from corecli.metrics.parts.average_precision import average_precision_11, mean_average_precision
from corecli.metrics.parts.fitting import Split, holdout
from corecli.metrics.parts.knn import knn_predict
from corecli.metrics.parts.scores import Predictions, Scores, predict, student_interval, summarize
from corecli.views.corrupt import SEVERITIES, corrupt


def prepare(problem: Problem, reader: Reader, *, on_images: bool) -> Context:
    """Return what a mode needs to fit; unless it trains on images, compute the features of the training rows."""
    if on_images:
        return Context(problem=problem, reader=reader)
    sets = (problem.train, *([problem.val] if problem.val else []))
    return Context(problem=problem, reader=reader, computed=torch.cat([reader.features(one) for one in sets]))


def fit(mode: ModuleType, options: Any, context: Context, seeds: range) -> list[Fitted]:
    """Train a classifier for each seed. On features the main process trains alone, and the others return nothing."""
    if context.computed is not None and not context.reader.world.is_main:
        return []
    with about(context.problem.task.train.spec):
        splits = _splits(context.problem, seeds, options.holdout if mode.USES_VAL else None)
    return [mode.fit(context, split, options=options, seed=seed) for split, seed in zip(splits, seeds, strict=True)]


def _splits(problem: Problem, seeds: range, share: float | None) -> list[Split]:
    """Return, for each seed, the rows to choose a setting on and to train on.

    A setting is chosen on --val, or else on a hold-out of this share of each class; None if there is nothing to choose.
    """
    num_train = len(problem.train.labels)
    if share is None:
        return [Split(fitted=rows, held=rows[:0], final=rows) for rows in problem.subsets]
    if problem.val is None:
        numbers = problem.numbers[:num_train]
        if numbers.ndim == 2:  # images have several classes: hold out any of them
            numbers = torch.zeros(num_train, dtype=torch.int64)
        return [holdout(numbers, share, seed, rows=rows) for seed, rows in zip(seeds, problem.subsets, strict=True)]
    held = torch.arange(num_train, len(problem.numbers))
    return [
        Split(fitted=rows, held=held, final=rows if problem.is_drawn else torch.cat([rows, held]))
        for rows in problem.subsets
    ]


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Fitted classifiers, and how they are scored.

    subset_logits: score a test set with names for some of the classes over their logits alone; ks, tau: of the k-NN
    vote, which is left out without ks.
    """

    context: Context
    fits: Sequence[Fitted]
    subset_logits: bool = True
    ks: tuple[int, ...] = ()
    tau: float = 0.07

    def score(self, number: int) -> Result | None:
        """Score test set `number`. All processes take part, and the main one gets the result."""
        problem = self.context.problem
        features = self._features(problem.tests[number])
        if not self.context.reader.world.is_main:
            return None
        if problem.numbers.ndim == 2:
            return _score_lists(problem, number, self.fits, features)
        return self._score_classes(number, features)

    def score_corrupted(self, number: int, names: Sequence[str], seed: int) -> dict[str, list[float]]:
        """Return top1 on test set `number` under each corruption, by severity; on the main process."""
        reader, test = self.context.reader, self.context.problem.tests[number]
        data = reader.images(test.spec)
        found: dict[str, list[float]] = {}
        for name in names:
            for severity in SEVERITIES:
                changed = Corrupted(data=data, name=name, severity=severity, seed=seed)
                features = self._features(test, changed)
                if reader.world.is_main:
                    found.setdefault(name, []).append(self._summary(number, self._runs(number, features)).top1)
        return found

    def _features(self, test: Labeled, images: ImageSet | None = None) -> list[Tensor]:
        """Return the features for each fit: by its own encoder, or by the one that all share."""
        reader = self.context.reader
        readers = [replace(reader, encoder=one.encoder) for one in self.fits if one.encoder is not None] or [reader]
        found = [one.features(test, images=images) for one in readers]
        return found * (len(self.fits) // len(found))

    def _among(self, number: int) -> Tensor | None:
        """Return bool [C], the classes of a test set, if these are not all."""
        problem = self.context.problem
        return problem.space.shared_with(problem.tests[number]) if self.subset_logits else None

    def _runs(self, number: int, features: Sequence[Tensor]) -> list[Predictions]:
        labels, among = self.context.problem.answers[number], self._among(number)
        pairs = zip(self.fits, features, strict=True)
        return [predict(one.classifier.logits, of_test, labels, among=among) for one, of_test in pairs]

    def _summary(self, number: int, runs: Sequence[Predictions]) -> Scores:
        problem, among = self.context.problem, self._among(number)
        num_classes = len(problem.space) if among is None else int(among.sum())
        return summarize(runs, problem.answers[number], num_classes=num_classes)

    def _score_classes(self, number: int, features: Sequence[Tensor]) -> Result:
        problem, runs = self.context.problem, self._runs(number, features)
        scores, predicted = self._summary(number, runs), {"probe": runs}
        values = {name: getattr(scores, name) for name in ("top1", "top5", "mean_per_class")}
        votes = self._votes(number, features[0])
        for k, votes_of_k in votes.items():
            of_k = summarize(votes_of_k, problem.answers[number], num_classes=scores.num_classes)
            prefix = "knn" if len(votes) == 1 else f"knn{k}"
            values |= {f"{prefix}_top1": of_k.top1, f"{prefix}_top5": of_k.top5}
            predicted["knn" if len(votes) == 1 else f"knn{k}_"] = list(votes_of_k)
        return Result(
            task=problem.task,
            of=problem.task.tests[number],
            space=problem.space,
            values=values,
            per_class={problem.space.name(c): value for c, value in scores.per_class.items()},
            intervals={"top1_interval_seeds": scores.seed_interval, "top1_interval_test": scores.test_interval},
            by_seed={"top1_by_seed": scores.top1_by_seed},
            settings=_settings(self.fits),
            num_train=len(problem.subsets[0]),
            num_test=scores.num_test,
            num_classes=scores.num_classes,
            confusion=scores.confusion.tolist(),
            predictions=self._named(number, predicted),
        )

    def _named(self, number: int, predicted: dict[str, list[Predictions]]) -> dict[str, list[str]]:
        """Return the columns of the file of predictions; a true class that shares the first rank is the prediction."""
        problem, labels = self.context.problem, self.context.problem.answers[number].cpu()
        classes = {
            f"{of}{place}": torch.where(run.ranks == 0, labels, run.predicted)
            for of, runs in predicted.items()
            for place, run in enumerate(runs)
        }
        names = {
            column: [problem.space.name(one) for one in found.tolist()]
            for column, found in {"class": labels, **classes}.items()
        }
        return {"key": list(problem.tests[number].keys), **names}

    def _votes(self, number: int, found: Tensor) -> dict[int, tuple[Predictions, ...]]:
        """Return the k-NN votes by k, for each subset of the training rows; for one of them if all are equal."""
        if not self.ks or self.context.computed is None:
            return {}
        problem, features = self.context.problem, self.context.features
        ks, labels, among = tuple(dict.fromkeys(self.ks)), problem.answers[number], self._among(number)
        votes = [
            knn_predict(
                features[rows.to(features.device)],
                problem.numbers[rows],
                found,
                labels,
                ks=ks,
                tau=self.tau,
                among=among,
            )
            for rows in (problem.subsets if problem.is_drawn else problem.subsets[:1])
        ]
        return dict(zip(ks, zip(*votes, strict=True), strict=True))


def _score_lists(problem: Problem, number: int, fits: Sequence[Fitted], features: Sequence[Tensor]) -> Result:
    """Return the mean average precision on images with several classes."""
    targets = problem.answers[number]
    logits = [one.classifier.logits(of_test).cpu() for one, of_test in zip(fits, features, strict=True)]
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
        settings=_settings(fits),
        num_train=len(problem.subsets[0]),
        num_test=len(targets),
        num_classes=targets.shape[1],
        confusion=None,
    )


def _settings(fits: Sequence[Fitted]) -> tuple[Any, ...]:
    return tuple(one.setting for one in fits if one.setting is not None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Corrupted:
    """An image set under a corruption, as an ImageSet; the seed of each image is a function of its key."""

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
    def is_mixed(self) -> bool:
        return self.data.is_mixed

    @property
    def decodes(self) -> bool:
        """True, because corrupting costs more than decoding, so that worker processes pay off."""
        return True

    @property
    def slots(self) -> Places:
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

    def picture(self, row: int) -> Picture:
        """Return the corrupted image of a row."""
        return ArrayPicture(array=self.read_array(np.array([row]))[0])

    def fitted(self, fit: Fit) -> Corrupted:
        """Return the set with images that are resized and cropped before they are corrupted, as in ImageNet-C."""
        return replace(self, data=self.data.fitted(fit))

    def read_array(self, indices: np.ndarray) -> np.ndarray:
        """Return the corrupted images of the given rows as an array."""
        return self.read(indices).numpy()

    def read(self, indices: np.ndarray) -> Tensor:
        """Return the corrupted images of the given rows."""
        keys = self.data.rows.keys.take(indices)
        seeds = [derive(self.seed, "corrupt", self.name, self.severity, key) for key in keys]
        return corrupt(self.data.read(indices), self.name, self.severity, seeds=seeds)
