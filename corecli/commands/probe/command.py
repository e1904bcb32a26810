"""Check and run `corecli probe`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.errors import UsageError
from corecli.base.outcome import Outcome
from corecli.commands.parts.inputs import check_encoder, check_replaceable, num_workers
from corecli.commands.parts.layer import layer_name, take_layer
from corecli.commands.probe.checks import check_options, check_task, corruptions, masks_of
from corecli.commands.probe.labels import read_class_lists
from corecli.commands.probe.options import MODES, Config, mode_options, num_seeds, trains_on_images
from corecli.commands.probe.report import report, write_confusion, write_predictions
from corecli.commands.probe.sets import NamedSet, Task, is_table, named, tasks

if TYPE_CHECKING:
    from corecli.commands.probe.reader import Reader
    from corecli.commands.probe.report import Result
    from corecli.data.masks import MaskedImages
    from corecli.engine.dist import World


def check(config: Config) -> dict[str, Any]:
    """Return what would be read and written. Errors: as `run`, as far as they can be found without torch."""
    check_options(config)
    num_workers(config.workers)
    found = tasks(config.train, config.val, config.test)
    specs = [one.spec for task in found for one in task.sets]
    if config.encoder is not None:
        if all(is_table(spec) for spec in specs):
            raise UsageError("--encoder is for image sets, and these are feature tables", hint="drop --encoder")
        check_encoder(config.encoder)
    for task in found:
        check_task(config, task)
    if config.labels is not None:
        read_class_lists(config.labels)
    written = [path for path in (config.confusion, config.predictions) if path is not None]
    for path in written:
        check_replaceable(path, ("unknown",), force=config.force)
    plan = {"reads": [f"{spec} ({'features' if is_table(spec) else 'images'})" for spec in specs]}
    return {**plan, "writes": [str(path) for path in written]} if written else plan


def run(config: Config, world: World) -> Outcome:
    """Compute features, train the classifiers and return their scores. Errors: DataError, UsageError, CorecliError."""
    reader = _open_reader(config, world)
    mode = registry.load(MODES, config.mode)
    options = mode.Options(**_typed(config, mode.Options))
    score = _score_masks if mode.NEEDS == "masks" else _score_classes
    found = tasks(config.train, config.val, config.test)
    results = [result for task in found for result in score(config, task, mode, options, reader)]
    if not world.is_main:
        return Outcome()
    places = {named(text): place for place, text in enumerate(config.test)}
    results.sort(key=lambda result: places[result.of])
    if config.confusion is not None:
        write_confusion(config.confusion, results[0])
    if config.predictions is not None:
        write_predictions(config.predictions, results[0])
    shared = {name: getattr(config, name) for name in ("encoder", "layer", "pool", "blocks", "mode")}
    return report(results, shared=shared, per_class=config.per_class)


def _open_reader(config: Config, world: World) -> Reader:
    from corecli.commands.probe.reader import Reader
    from corecli.nets.encoder import load_encoder

    encoder = None if config.encoder is None else load_encoder(config.encoder).to(world.device).eval()
    if encoder is not None:
        if config.layer == "projector" and encoder.projector is None:
            raise UsageError("this encoder has no projector", where=config.encoder, hint="use --layer backbone")
        take_layer(encoder, layer_name(config.layer, config.pool, config.blocks))
    return Reader(
        encoder=encoder,
        world=world,
        layer=config.layer,
        precision=config.precision,
        image_size=config.image_size,
        on_bad=config.on_bad,
        workers=num_workers(config.workers),
        batch_size=config.batch_size,
        shown=world.is_main and not config.quiet,
    )


def _typed(config: Config, options: type[Any]) -> dict[str, Any]:
    """Return the values of a mode's options, those of --set converted to their types. Errors: UsageError."""
    return {**mode_options(config), **cfg.parse_fields(options, cfg.named_values(config.set), where=config.mode)}


def _score_classes(config: Config, task: Task, mode: Any, options: Any, reader: Reader) -> list[Result]:
    """Train on the training set and, on the main process, return the scores of the test sets that belong to it."""
    from corecli.commands.probe.classification import Scoring, fit, prepare
    from corecli.commands.probe.problem import read_problem

    seeds = range(config.seed, config.seed + num_seeds(config))
    lists = None if config.labels is None else read_class_lists(config.labels)
    problem = read_problem(task, reader, seeds=seeds, lists=lists, shots=config.shots, fraction=config.fraction)
    context = prepare(problem, reader, on_images=trains_on_images(config))
    fits = fit(mode, options, context, seeds)
    ks, tau = getattr(options, "k", ()), getattr(options, "knn_temperature", 0.07)
    scoring = Scoring(context=context, fits=fits, subset_logits=config.subset_logits, ks=ks, tau=tau)
    results = []
    for number, test in enumerate(task.tests):
        result, corrupted = scoring.score(number), {}
        if config.corruptions and test == named(config.test[0]):
            corrupted = scoring.score_corrupted(number, corruptions(config.corruptions), config.seed)
        if result is not None:
            results.append(replace(result, corruptions=corrupted))
    return results


def _score_masks(config: Config, task: Task, mode: Any, options: Any, reader: Reader) -> list[Result]:
    from corecli.commands.probe.segmentation import score_masks

    seeds = range(config.seed, config.seed + num_seeds(config))
    opened = partial(_open_masks, config, task)
    return score_masks(mode, options, task, reader, open_masks=opened, seeds=seeds, num_classes=config.num_classes)


def _open_masks(config: Config, task: Task, one: NamedSet) -> MaskedImages:
    from corecli.data.masks import open_masked

    masks = masks_of(one, config.train_masks if one is task.train else config.test_masks)
    return open_masked(one.spec, masks, on_bad=config.on_bad, zero_is_no_class=bool(config.reduce_zero_label))
