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

    `"title"` is the first line of its docstring; `"Options"` is {field: default}, or {} without such a class.
    Errors: UsageError as `load`.
    """
    check(folder, name)
    source = (_PACKAGE / folder / f"{name.replace('-', '_')}.py").read_text()
    tree = ast.parse(source)
    found: dict[str, Any] = {"Options": {}, "title": (ast.get_docstring(tree) or "").partition("\n")[0]}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "Options":
            found["Options"] = {n.target.id: ast.literal_eval(n.value) for n in node.body if _is_field(n)}
        if isinstance(node, ast.Assign):
            found |= _literals(node)
    return found


def _is_field(node: ast.stmt) -> Any:
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None


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
