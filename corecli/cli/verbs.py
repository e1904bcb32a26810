"""The verbs: files and packages in `commands/`, listed without importing any of them.

A package has `options.py` (Config, PRESETS, EXAMPLES; help, pages and completions need no more) and `command.py`
(check, run); a verb of one file has both in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.errors import unknown_name
from corecli.cli import completion

SUMMARY = "Train image encoders and image generators and let each improve the other."
_FOLDER = "commands"
_LAST = 99  # the place of a verb that does not choose one


def _summaries() -> dict[str, str]:
    constants = {name: registry.constants(_FOLDER, name) for name in registry.choices(_FOLDER)}
    names = sorted(constants, key=lambda name: (constants[name].get("PLACE", _LAST), name))
    return {name: constants[name]["SUMMARY"] for name in names}


COMPLETION = "completion"
VERBS: Mapping[str, str] = {**_summaries(), COMPLETION: "print the completion script of a shell"}


def options_of(verb: str) -> ModuleType:
    """The module with a verb's docstring, Config, PRESETS and EXAMPLES; it does not import torch.

    Errors: UsageError naming the nearest verb.
    """
    return _load(verb, "options")


def command_of(verb: str) -> ModuleType:
    """The module with a verb's `check` and `run`; it does not import torch until `run`. Errors: as `options_of`.

    `completion` has none: `cli.app` runs it.
    """
    return _load(verb, "command")


def _load(verb: str, part: str) -> ModuleType:
    if verb == COMPLETION:
        return completion
    if verb not in VERBS:
        raise unknown_name("verb", verb, VERBS)
    return registry.load(_FOLDER, verb, "verb", part=part)


def help_text(f: Any, opt: cfg.Option) -> str:
    """An option's help with its choices and default."""
    extra = []
    if len(opt.names()) > 4:
        extra.append("one of " + ", ".join(opt.names()))
    if f.default is cfg.MISSING:
        extra.append("required")
    elif f.default not in (None, (), False):
        default = f.default if isinstance(f.default, tuple) else (f.default,)
        extra.append(f"default {','.join(map(str, default))}")
    return f"{opt.help} [{'; '.join(extra)}]" if extra else opt.help
