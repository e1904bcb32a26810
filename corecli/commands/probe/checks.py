"""Checks of the options of `probe`, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.errors import UsageError, unknown_name
from corecli.commands.parts.layer import layer_name
from corecli.commands.probe.options import MODES, mode_options, trains_on_images
from corecli.commands.probe.sets import Task, check_classes, check_spaces, is_table, named
from corecli.data.imageset import open_set
from corecli.views.corrupt import CORRUPTIONS, SEVERITIES, check_corruption

if TYPE_CHECKING:
    from corecli.commands.probe.options import Config

_NOT_FOR_MASKS = ("val", "shots", "fraction", "image_size", "corruptions", "predictions")
_NOT_FOR_LABELS = ("shots", "fraction", "k", "knn_temperature", "confusion", "corruptions", "predictions")


def check_options(config: Config) -> None:
    """Raise UsageError for an option that does not apply, or does not work with another one."""
    mode = registry.constants(MODES, config.mode)
    _check_mode_options(config, mode["Options"])
    if config.shots is not None and config.fraction is not None:
        raise UsageError("--shots and --fraction exclude each other", hint="give one")
    if config.holdout is not None and config.val:
        raise UsageError("--holdout and --val exclude each other", hint="give one")
    if config.pool is not None or config.blocks is not None:
        _check_pooling(config, mode)
    for name in corruptions(config.corruptions):
        check_corruption(name, SEVERITIES[0])
    if config.labels is not None:
        _check_labels(config, mode)
    if mode["NEEDS"] == "masks":
        _check_masks(config)
    elif config.val and not mode["USES_VAL"]:
        raise UsageError(f"--val does not apply to --mode {config.mode}", hint="this mode chooses no setting")
    _check_values(config, mode_options(config))


def corruptions(items: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names in the items of --corruptions, without repetitions; `all` stands for every corruption."""
    names = tuple(dict.fromkeys(name for item in items for name in item.split(",")))
    return CORRUPTIONS if "all" in names else names


def check_task(config: Config, task: Task) -> None:
    """Check the sets of a task. Errors: as reading them raises, as far as can be checked without torch."""
    needs = registry.constants(MODES, config.mode)["NEEDS"]
    _check_tables(config, task, needs)
    if needs == "masks":
        from corecli.data.masks import open_masked

        if config.encoder is None:
            raise UsageError(f"--mode {config.mode} needs --encoder")
        for one in task.sets:
            masks = masks_of(one, config.train_masks if one is task.train else config.test_masks)
            open_masked(one.spec, masks, on_bad=config.on_bad)
        return
    for one in task.sets:
        if not is_table(one.spec):
            data = open_set(one.spec, image_size=config.image_size, on_bad=config.on_bad)
            if config.encoder is None:
                raise UsageError("an image set needs --encoder", where=one.spec)
            if config.labels is None:
                check_classes(data.rows.labels, one.spec, least=2 if one is task.train else 1)
    if not config.force:
        layer = layer_name(config.layer, config.pool, config.blocks)
        for one in task.sets[1:]:
            check_spaces(task.train.spec, one.spec, encoder=config.encoder, layer=layer)


def masks_of(one: Any, given: tuple[str, ...]) -> str | None:
    """Return the masks with the name of a set; None if there are none, so that the set must have its own."""
    return next((masks.spec for masks in map(named, given) if masks.name == one.name), None)


def _check_mode_options(config: Config, own: dict[str, Any]) -> None:
    """Raise UsageError for an option that the mode does not have, naming the modes that have it."""
    for name in cfg.described(type(config)):
        modes = [mode for mode in registry.choices(MODES) if name in registry.constants(MODES, mode)["Options"]]
        if modes and name not in own and getattr(config, name) not in (None, ()):
            hint = f"it is an option of {', '.join(modes)}"
            raise UsageError(f"{cfg.flag(name)} does not apply to --mode {config.mode}", hint=hint)
    known = [name for name in own if not hasattr(config, name)]
    for name in cfg.named_values(config.set):
        if name in own and hasattr(config, name):
            raise UsageError(f"--set {name} is an option of the command line", hint=f"give {cfg.flag(name)}")
        if name not in known:
            raise unknown_name(f"option of {config.mode}", name, known)


def _check_pooling(config: Config, mode: dict[str, Any]) -> None:
    if config.encoder is None or config.layer != "backbone" or mode["NEEDS"] == "masks":
        name = "pool" if config.pool is not None else "blocks"
        raise UsageError(f"--{name} needs an --encoder with --layer backbone, and one label for each image")


def _check_labels(config: Config, mode: dict[str, Any]) -> None:
    if not mode.get("MULTI_LABEL"):
        modes = [name for name in registry.choices(MODES) if registry.constants(MODES, name).get("MULTI_LABEL")]
        raise UsageError(f"--labels does not apply to --mode {config.mode}", hint=f"use --mode {' or '.join(modes)}")
    for name in _NOT_FOR_LABELS:
        if getattr(config, name) not in (None, ()):
            raise UsageError(f"{cfg.flag(name)} does not apply to images with several classes", hint="drop --labels")


def _check_masks(config: Config) -> None:
    for name in _NOT_FOR_MASKS:
        if getattr(config, name) not in (None, ()):
            raise UsageError(f"{cfg.flag(name)} does not apply to --mode {config.mode}")
    if config.layer != "backbone":
        raise UsageError(f"--mode {config.mode} needs --layer backbone")


def _check_values(config: Config, options: dict[str, Any]) -> None:
    """Raise UsageError for values of the mode's options that exclude each other."""
    if config.lars_bias is not None and options["optimizer"] != "lars":
        raise UsageError("--lars-bias does not apply", hint="it is an option of --optimizer lars")
    for warmup, length in (("warmup_epochs", "epochs"), ("warmup_steps", "steps")):
        if warmup in options and options[warmup] >= options[length]:
            reason = f"a warm-up of {options[warmup]} {length} is not shorter than training, {options[length]} {length}"
            raise UsageError(reason, hint=f"lower {cfg.flag(warmup)}")


def _check_tables(config: Config, task: Task, needs: str) -> None:
    """Raise UsageError if a set is a feature table where images are needed."""
    on_images = needs in ("images", "masks")
    for one in task.sets if on_images else (task.train,) if trains_on_images(config) else ():
        if is_table(one.spec):
            if on_images:
                raise UsageError(f"--mode {config.mode} needs images, and this is a feature table", where=one.spec)
            reason = f"--augment {mode_options(config)['augment']} needs images, and this is a feature table"
            raise UsageError(reason, where=one.spec, hint="--augment none trains on features")
    first = named(config.test[0])
    if config.corruptions and first in task.tests and is_table(first.spec):
        raise UsageError("--corruptions needs images, and this is a feature table", where=first.spec)
