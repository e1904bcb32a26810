"""A folder is a registry: its public modules are the choices, listed without importing any of them."""

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


@cache
def constants(folder: str, name: str) -> dict[str, Any]:
    """What a module says in plain literals, read without importing it: `VIEWS = "2g"`; its title and its `Options`.

    `"title"` is the first line of its docstring; `"Options"` is {field: default} of its class Options or Config, less
    what that inherits. Errors: UsageError as `load`.
    """
    check(folder, name)
    source = (_PACKAGE / folder / f"{name.replace('-', '_')}.py").read_text()
    tree = ast.parse(source)
    found: dict[str, Any] = {"Options": {}, "title": (ast.get_docstring(tree) or "").partition("\n")[0]}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in ("Options", "Config"):
            found["Options"] = _fields(node)
        if isinstance(node, ast.Assign):
            found |= _literals(node)
    return found


def _fields(node: ast.ClassDef) -> dict[str, Any]:
    """The fields of a dataclass that have a literal default."""
    fields = (n for n in node.body if isinstance(n, ast.AnnAssign) and n.value is not None)
    return {n.target.id: ast.literal_eval(n.value) for n in fields if isinstance(n.target, ast.Name) and n.value}


def _literals(node: ast.Assign) -> dict[str, Any]:
    """The names an assignment gives literals to; `A, B = 1, 2` gives two."""
    target, value = node.targets[0], node.value
    pairs = [(target, value)]
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        pairs = list(zip(target.elts, value.elts, strict=True))
    found = {}
    for name, literal in pairs:
        try:
            found[name.id] = ast.literal_eval(literal)  # pyright: ignore[reportAttributeAccessIssue]
        except ValueError:
            continue
    return found
