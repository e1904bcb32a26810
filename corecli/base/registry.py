"""A folder is a registry: its public modules are the choices, listed without importing any of them."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType

from corecli.base.errors import unknown_name

_PACKAGE = Path(__file__).resolve().parent.parent


@cache
def choices(folder: str) -> tuple[str, ...]:
    """Names in a registry folder such as `ssl` or `data/formats`; `barlow_twins.py` is offered as `barlow-twins`."""
    modules = pkgutil.iter_modules([str(_PACKAGE / folder)])
    return tuple(sorted(m.name.replace("_", "-") for m in modules if not m.name.startswith("_")))


def check(folder: str, name: str, kind: str | None = None) -> None:
    """UsageError naming the nearest choice when `name` is not in the folder."""
    if name not in choices(folder):
        raise unknown_name(kind or folder.rsplit("/", 1)[-1].rstrip("s"), name, choices(folder))


def load(folder: str, name: str, kind: str | None = None) -> ModuleType:
    """Import one module of a registry folder.

    Errors: UsageError naming the nearest choice when `name` is not in the folder.
    """
    check(folder, name, kind)
    return importlib.import_module(f"corecli.{folder.replace('/', '.')}.{name.replace('-', '_')}")
