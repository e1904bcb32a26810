"""The verbs: the files and packages in `commands/`, listed without importing any of them.

A package has `options.py` (Config, PRESETS, EXAMPLES), which is all that help, man pages and completions read, and
`command.py` (check, run). A verb of one file has both in it. Constants of a verb:

- SUMMARY: one line for `corecli --help`.
- PLACE: its position in listings; verbs without one follow in alphabetical order.
- IS_ALONE (in the command): it runs in one process as `run(config)`; the others as `run(config, world)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.errors import unknown_name

SUMMARY = "Train image encoders and image generators and let each improve the other."
_FOLDER = "commands"
_LAST = 99  # the place of a verb without one


def _summaries() -> dict[str, str]:
    constants = {name: registry.constants(_FOLDER, name) for name in registry.choices(_FOLDER)}
    names = sorted(constants, key=lambda name: (constants[name].get("PLACE", _LAST), name))
    return {name: constants[name]["SUMMARY"] for name in names}


COMPLETION = "completion"  # the only verb outside the folder: it describes all others
VERBS: Mapping[str, str] = {**_summaries(), COMPLETION: registry.constants("cli", COMPLETION)["SUMMARY"]}


def options_of(verb: str) -> ModuleType:
    """Return the module with a verb's docstring, Config, PRESETS and EXAMPLES; importing it does not import torch.

    Errors: UsageError naming the nearest verb.
    """
    return _load(verb, "options")


def command_of(verb: str) -> ModuleType:
    """Return the module with a verb's `check` and `run`; torch is imported in `run` only. Errors: as `options_of`."""
    return _load(verb, "command")


def _load(verb: str, part: str) -> ModuleType:
    if verb not in VERBS:
        raise unknown_name("verb", verb, VERBS)
    return registry.load("cli" if verb == COMPLETION else _FOLDER, verb, "verb", part=part)


def help_text(f: Any, opt: cfg.Option) -> str:
    """Return the help of an option, followed by its choices and its default in brackets."""
    extra = []
    if len(opt.names()) > 4:
        extra.append("one of " + ", ".join(opt.names()))
    if opt.suffix is not None:
        extra.append(opt.suffix(f.name))
    elif f.default is cfg.MISSING:
        extra.append("required")
    elif f.default is not None and f.default is not False and f.default != ():
        default = "yes" if f.default is True else f.default
        default = default if isinstance(default, tuple) else (default,)
        extra.append(f"default: {','.join(map(str, default))}")
    return f"{opt.help} [{'; '.join(extra)}]" if extra else opt.help
