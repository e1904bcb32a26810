"""Print the completion script of a shell, for `source <(corecli completion bash)` and the like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from corecli.base.config import Preset, option

PRESETS: dict[str, Preset] = {}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of `corecli completion`."""

    shell: Literal["bash", "zsh", "fish"] = option(help="the shell", positional=True)
