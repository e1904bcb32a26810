"""Registries: the modules of a folder are its choices, and listing them imports none of them.

The sub-folder `parts` holds code that the choices share; it is not a choice.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from corecli.base.errors import unknown_name

_PACKAGE = Path(__file__).resolve().parent.parent
_SHARED = "parts"


@cache
def choices(folder: str) -> tuple[str, ...]:
    """Return the names in a registry folder such as `ssl`; the file `barlow_twins.py` is the choice `barlow-twins`."""
    names = (module.name for module in pkgutil.iter_modules([str(_PACKAGE / folder)]))
    return tuple(sorted(name.replace("_", "-") for name in names if name != _SHARED))


def check(folder: str, name: str, kind: str | None = None) -> None:
    """Raise UsageError, with the nearest choice as its hint, if `name` is not in the folder."""
    if name not in choices(folder):
        raise unknown_name(kind or folder.rsplit("/", 1)[-1].rstrip("s"), name, choices(folder))


def load(folder: str, name: str, kind: str | None = None, *, part: str | None = None) -> ModuleType:
    """Import and return a module of a registry folder, or the module `part` of a choice that is a package.

    Errors: UsageError if `name` is not in the folder.
    """
    check(folder, name, kind)
    module = f"corecli.{folder.replace('/', '.')}.{name.replace('-', '_')}"
    return importlib.import_module(f"{module}.{part}" if part and _path(folder, name).is_dir() else module)


@cache
def constants(folder: str, name: str) -> dict[str, Any]:
    """Return the literal constants of a module, such as `VIEWS = "2g"`, by name, without importing the module.

    Two more entries are added: "title", the first line of the docstring, and "Options", {field: default} of the class
    Options or Config without inherited fields. For a package they come from its `options.py`. Errors: as `load`.
    """
    check(folder, name)
    path = _path(folder, name)
    tree = ast.parse((path / "options.py" if path.is_dir() else path).read_text())
    found: dict[str, Any] = {"Options": {}, "title": (ast.get_docstring(tree) or "").partition("\n")[0]}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in ("Options", "Config"):
            found["Options"] = _fields(node)
        if isinstance(node, ast.Assign):
            found |= _literals(node)
    return found


def _path(folder: str, name: str) -> Path:
    """Return the folder of a package, or the file of a module."""
    path = _PACKAGE / folder / name.replace("-", "_")
    return path if path.is_dir() else path.with_suffix(".py")


def _fields(node: ast.ClassDef) -> dict[str, Any]:
    """Return the fields of a dataclass that have a literal default."""
    found = {}
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and field.value is not None:
            found |= _literal(field.target, field.value)
    return found


def _literals(node: ast.Assign) -> dict[str, Any]:
    """Return the names that an assignment binds to literals; `A, B = 1, 2` binds two."""
    target, value = node.targets[0], node.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        pairs = [_literal(name, literal) for name, literal in zip(target.elts, value.elts, strict=True)]
        return {name: literal for pair in pairs for name, literal in pair.items()}
    return _literal(target, value)


def _literal(target: ast.expr, value: ast.expr) -> dict[str, Any]:
    """Return {name: value}, or {} if the value is not a literal."""
    try:
        return {target.id: ast.literal_eval(value)} if isinstance(target, ast.Name) else {}
    except ValueError:
        return {}
