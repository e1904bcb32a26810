"""Check and run `corecli probe`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from corecli.base.errors import UsageError
from corecli.base.outcome import Outcome
from corecli.commands.parts.inputs import check_encoder, check_replaceable
from corecli.commands.parts.layer import layer_name, take_layer
from corecli.commands.probe.labels import read_class_lists
from corecli.commands.probe.modes import check_images, check_mode, num_seeds
from corecli.commands.probe.modes import fit as modes_fit
from corecli.commands.probe.report import report
from corecli.commands.probe.sets import check_task, is_table, named
from corecli.commands.probe.sets import tasks as sets_tasks

if TYPE_CHECKING:
    from corecli.commands.probe.report import Result
    from corecli.commands.probe.sets import Task
    from corecli.engine.dist import World
    from corecli.nets.encoder import Encoder

from corecli.commands.probe.options import Config


def check(config: Config) -> dict[str, Any]:
    """What would be scored. Errors: as `run`, as far as they show without torch."""
    check_mode(config)
    tasks = sets_tasks(config.train, config.val, config.test)
    specs = [one.spec for task in tasks for one in task.sets]
    if config.encoder is not None:
        if all(is_table(spec) for spec in specs):
            raise UsageError("--encoder is for image sets, and these are feature tables", hint="drop --encoder")
        check_encoder(config.encoder)
    for task in tasks:
        check_images(config, task)
        check_task(config, task)
    if config.labels is not None:
        read_class_lists(config.labels)
    check_replaceable(config.confusion, ("unknown",), force=config.force)
    plan = {"reads": [f"{spec} ({'features' if is_table(spec) else 'images'})" for spec in specs]}
    return plan if config.confusion is None else {**plan, "writes": [str(config.confusion)]}


def run(config: Config, world: World) -> Outcome:
    """Compute features, train the classifiers, print scores. Errors: DataError, UsageError, CorecliError."""
    from corecli.nets.encoder import load_encoder

    encoder = None if config.encoder is None else load_encoder(config.encoder).to(world.device).eval()
    if encoder is not None and config.layer == "projector" and encoder.projector is None:
        raise UsageError("this encoder has no projector", where=config.encoder, hint="use --layer backbone")
    if encoder is not None:
        take_layer(encoder, layer_name(config.layer, config.pool, config.blocks))
    tasks = sets_tasks(config.train, config.val, config.test)
    results = [result for task in tasks for result in _run_task(config, task, encoder, world)]
    return report(config, results) if world.is_main else Outcome()


def _run_task(config: Config, task: Task, encoder: Encoder | None, world: World) -> list[Result]:
    """Train on one training set and score, on the main process, all test sets that belong to it."""
    if config.mode == "segment":
        from corecli.commands.probe.segment import segment

        assert encoder is not None
        return segment(config, task, encoder, world)
    from corecli.commands.probe.problem import read_features, read_problem
    from corecli.commands.probe.scoring import score, score_corrupted

    problem = read_problem(config, task, encoder, num_seeds(config))
    fits, features = modes_fit(config, problem, encoder, world)
    encoders = [fit.encoder for fit in fits if fit.encoder is not None] or [encoder]  # its own, or one for all seeds
    results = []
    for number, test in enumerate(problem.tests):
        found = [read_features(config, test, one, world) for one in encoders]
        corrupted = {}
        if config.corruptions and task.tests[number] == named(config.test[0]):
            corrupted = score_corrupted(config, problem, number, fits, encoders, world)
        if world.is_main:
            found *= len(fits) // len(found)
            result = score(config, problem, number, fits, features, found)
            results.append(replace(result, corruptions=corrupted))
    return results
