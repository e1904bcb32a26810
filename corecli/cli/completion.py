"""Print the completion script of a shell; load it with `source <(corecli completion bash)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from corecli.base.config import Preset, option
from corecli.base.outcome import Outcome

SUMMARY = "print the completion script of a shell"
IS_ALONE = True
PRESETS: dict[str, Preset] = {}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of `corecli completion`."""

    shell: Literal["bash", "zsh", "fish"] = option(help="shell to complete in", positional=True)


def check(config: Config) -> dict[str, Any]:
    """Return nothing: the verb reads and writes no files."""
    return {}


def run(config: Config) -> Outcome:
    """Return the completion script as the outcome."""
    from corecli.cli.pages import completion

    return Outcome(lines=tuple(completion(config.shell).split("\n")))
