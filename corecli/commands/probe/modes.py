"""The ways to train a classifier: what each one's options are, and those that fit features computed once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corecli.base import config as cfg
from corecli.base.errors import UsageError, about
from corecli.commands.probe.options import OF_MODE, of_mode
from corecli.commands.probe.sets import is_table, named
from corecli.views.corrupt import CORRUPTIONS, SEVERITIES, check_corruption

if TYPE_CHECKING:
    import torch

    from corecli.commands.probe.options import Config
    from corecli.commands.probe.problem import Problem
    from corecli.commands.probe.sets import Task
    from corecli.commands.probe.training import Fitted
    from corecli.engine.dist import World
    from corecli.metrics.parts.fitting import Split
    from corecli.metrics.parts.scores import Predictions
    from corecli.nets.encoder import Encoder


def check_mode(config: Config) -> None:
    """Errors: UsageError for an option that does not apply."""
    for name in {name for options in OF_MODE.values() for name in options} - OF_MODE[config.mode].keys():
        if getattr(config, name) not in (None, ()):
            fitting = " or ".join(mode for mode, options in OF_MODE.items() if name in options)
            raise UsageError(f"{cfg.flag(name)} does not apply to --mode {config.mode}", hint=f"it is of {fitting}")
    if config.shots is not None and config.fraction is not None:
        raise UsageError("--shots and --fraction are two ways to say how much", hint="give one")
    if config.holdout is not None and config.val:
        raise UsageError("--holdout and --val are two ways to choose a setting", hint="give one")
    if config.pool is not None or config.blocks is not None:
        _check_pooling(config)
    for name in corruptions(config):
        check_corruption(name, SEVERITIES[0])
    if config.labels is not None:
        _check_labels(config)
    if config.mode == "segment":
        _check_segment(config)
    elif "lr" in OF_MODE[config.mode]:
        _check_training(config)


def corruptions(config: Config) -> tuple[str, ...]:
    """The names that --corruptions lists, or all there are."""
    names = tuple(dict.fromkeys(name for part in config.corruptions for name in part.split(",")))
    return CORRUPTIONS if "all" in names else names


def _check_labels(config: Config) -> None:
    if config.mode != "logistic":
        raise UsageError(f"--labels does not apply to --mode {config.mode}", hint="it is of logistic")
    for name in ("shots", "fraction", "k", "knn_temperature", "confusion", "corruptions"):
        if getattr(config, name) not in (None, ()):
            raise UsageError(f"{cfg.flag(name)} does not apply to several classes an image", hint="drop --labels")


def _check_training(config: Config) -> None:
    if config.val:
        raise UsageError(f"--val does not apply to --mode {config.mode}", hint="it chooses nothing")
    if config.lars_bias is not None and of_mode(config, "optimizer") != "lars":
        raise UsageError("--lars-bias does not apply", hint="it is of --optimizer lars")
    warmup, epochs = of_mode(config, "warmup_epochs"), of_mode(config, "epochs")
    if warmup >= epochs:
        raise UsageError(f"a warm-up of {warmup} epochs leaves nothing of {epochs}", hint="lower --warmup-epochs")


def _check_pooling(config: Config) -> None:
    if config.encoder is None or config.layer != "backbone" or config.mode == "segment":
        name = "pool" if config.pool is not None else "blocks"
        raise UsageError(f"--{name} is for an --encoder's --layer backbone, as one feature of an image")


def _check_segment(config: Config) -> None:
    for name in ("val", "shots", "fraction", "image_size", "corruptions"):
        if getattr(config, name) not in (None, ()):
            raise UsageError(f"{cfg.flag(name)} does not apply to --mode segment")
    if config.layer != "backbone":
        raise UsageError("--mode segment needs --layer backbone")
    warmup, steps = of_mode(config, "warmup_steps"), of_mode(config, "steps")
    if warmup >= steps:
        raise UsageError(f"a warm-up of {warmup} steps leaves nothing of {steps}", hint="lower --warmup-steps")


def trains_on_images(config: Config) -> bool:
    """Whether every epoch sees other views of the images, or another encoder, rather than features computed once."""
    return config.mode == "finetune" or (config.mode == "sgd" and of_mode(config, "augment") != "none")


def check_images(config: Config, task: Task) -> None:
    """Errors: UsageError for a feature table where images are needed."""
    whole = config.mode in ("finetune", "segment")
    needed = task.sets if whole else (task.train,) if trains_on_images(config) else ()
    for one in needed:
        if is_table(one.spec):
            if whole:
                raise UsageError(f"--mode {config.mode} needs images, and this is a feature table", where=one.spec)
            reason = f"--augment {of_mode(config, 'augment')} needs images, and this is a feature table"
            raise UsageError(reason, where=one.spec, hint="--augment none trains on features")
    first = named(config.test[0])
    if config.corruptions and first in task.tests and is_table(first.spec):
        raise UsageError("--corruptions needs images, and this is a feature table", where=first.spec)


def num_seeds(config: Config) -> int:
    """How often to repeat: 3 times where a repetition is cheap, or draws other images to train on."""
    if config.seeds is not None:
        return config.seeds
    return 3 if config.mode == "sweep" or draws_subsets(config) else 1


def draws_subsets(config: Config) -> bool:
    """Whether every seed trains on other images."""
    return config.shots is not None or config.fraction is not None


def fit(
    config: Config, problem: Problem, encoder: Encoder | None, world: World
) -> tuple[list[Fitted], torch.Tensor | None]:
    """A classifier for each seed, and the features it was trained on where they were computed once.

    Those are [N + M, D], of the training rows and, after them, of --val's, on the main process, which then trains
    alone. Errors: DataError, CorecliError.
    """
    import torch

    from corecli.commands.probe.problem import read_features

    if trains_on_images(config):
        from corecli.commands.probe.training import train_on_images

        assert encoder is not None
        return train_on_images(config, problem, encoder, world), None
    sets = (problem.train, *([problem.val] if problem.val else []))
    features = torch.cat([read_features(config, one, encoder, world) for one in sets])
    if not world.is_main:
        return [], None
    with about(problem.task.train.spec):
        splits = _splits(config, problem)
    return [_fit(config, problem, features, split, config.seed + i) for i, split in enumerate(splits)], features


def _fit(config: Config, problem: Problem, features: torch.Tensor, split: Split, seed: int) -> Fitted:
    from corecli.commands.probe.training import Fitted

    if config.mode == "logistic":
        from corecli.metrics.parts.logistic import fit_logistic

        classifier, setting = fit_logistic(features, problem.numbers, split)
        return Fitted(classifier=classifier, setting=setting)
    if config.mode == "sgd":
        from corecli.commands.probe.training import train_on_features

        return Fitted(classifier=train_on_features(config, problem, features, split.final, seed))
    from corecli.metrics.parts.linear_probe import ProbeOptions, fit_probe

    options = ProbeOptions(num_epochs=of_mode(config, "epochs"))
    classifier, setting = fit_probe(features, problem.numbers, split, options, seed=seed)
    return Fitted(classifier=classifier, setting=setting)


def _splits(config: Config, problem: Problem) -> list[Split]:
    """What to choose and to train on, by seed: a hold-out of the training rows, or --val, or nothing to choose on."""
    import torch

    from corecli.metrics.parts.fitting import Split, holdout

    num_train = len(problem.train.labels)
    if config.mode == "sgd":
        return [Split(fitted=rows, held=rows[:0], final=rows) for rows in problem.subsets]
    if problem.val is None:
        numbers = problem.numbers[:num_train]
        if numbers.ndim == 2:  # several classes an image: any of them may be held out
            numbers = torch.zeros(num_train, dtype=torch.int64)
        share = of_mode(config, "holdout")
        return [holdout(numbers, share, config.seed + i, rows=rows) for i, rows in enumerate(problem.subsets)]
    held = torch.arange(num_train, len(problem.numbers))
    return [
        Split(fitted=rows, held=held, final=rows if draws_subsets(config) else torch.cat([rows, held]))
        for rows in problem.subsets
    ]


def neighbors(
    config: Config,
    problem: Problem,
    features: torch.Tensor,
    found: torch.Tensor,
    labels: torch.Tensor,
    among: torch.Tensor | None,
) -> dict[int, tuple[Predictions, ...]]:
    """The k-NN votes for test features, by k, of each subset of the training rows; one where they are the same."""
    if "k" not in OF_MODE[config.mode]:
        return {}
    from corecli.metrics.parts.knn import knn_predict

    different = problem.subsets if draws_subsets(config) else problem.subsets[:1]
    ks = tuple(dict.fromkeys(of_mode(config, "k")))
    votes = [
        knn_predict(
            features[rows.to(features.device)],
            problem.numbers[rows],
            found,
            labels,
            ks=ks,
            tau=of_mode(config, "knn_temperature"),
            among=among,
        )
        for rows in different
    ]
    return dict(zip(ks, zip(*votes, strict=True), strict=True))
