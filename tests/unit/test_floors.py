"""The layout of the package: who may import whom, and how long functions and files may get."""

from __future__ import annotations

import ast
import statistics
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "corecli"
FLOOR = {"base": 0, "data": 1, "views": 1, "draw": 1, "nets": 1, "diffusion": 1, "engine": 1, "metrics": 1}
FLOOR |= {"captions": 1, "ssl": 2, "generators": 2, "commands": 3, "cli": 4}
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"torch", "torchvision", "diffusers", "timm", "safetensors", "transformers", "scipy", "pandas"}
VERBS = sorted(path.parent for path in PACKAGE.glob("commands/*/command.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imported(node: ast.AST) -> set[str]:
    """The modules that the import statements below a node name, ours without the names taken from them."""
    found = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            found |= {alias.name for alias in inner.names}
        elif isinstance(inner, ast.ImportFrom):
            assert inner.level == 0, "imports are absolute"
            names = {f"{inner.module}.{alias.name}" for alias in inner.names}
            modules = names & MODULES.keys()
            found |= modules if len(modules) == len(names) else modules | {inner.module or ""}
    return found


@cache
def graph() -> dict[str, set[str]]:
    """Our modules, each with those it imports anywhere: at its top, in functions, and for types alone."""
    return {name: imported(ast.parse(path.read_text())) & MODULES.keys() for name, path in MODULES.items()}


def folder(module: str) -> str:
    """The folder of the package that a module is in; "" for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR else ""


def test_imports_go_down_only() -> None:
    upward = [
        (module, name)
        for module, names in graph().items()
        for name in names
        if folder(name) and folder(module) and folder(name) != folder(module)
        if FLOOR[folder(name)] >= FLOOR[folder(module)]
    ]
    assert not upward


def test_verbs_do_not_import_one_another() -> None:
    for module, names in graph().items():
        if module.startswith("corecli.commands."):
            verb = module.split(".")[2]
            others = {n.split(".")[2] for n in names if n.startswith("corecli.commands.")} - {verb, "parts"}
            assert not others, module


@pytest.mark.parametrize("verb", VERBS, ids=lambda path: path.name)
def test_imports_in_a_verb_go_from_the_command_to_the_options(verb: Path) -> None:
    """Nothing imports the command; the options import nothing of the verb but presets."""
    package = f"corecli.commands.{verb.name}"
    assert not [module for module, names in graph().items() if f"{package}.command" in names]
    own = {name for name in graph()[f"{package}.options"] if name.startswith(f"{package}.")}
    assert own <= {f"{package}.{name}" for name in ("presets",)}


@cache
def chains() -> tuple[list[str], list[list[str]]]:
    """(the longest chain of imports, every circle found)."""
    longest: dict[str, list[str]] = {}
    circles: list[list[str]] = []

    def follow(module: str, above: list[str]) -> list[str]:
        if module in above:
            circles.append([*above[above.index(module) :], module])
            return []
        if module not in longest:
            below = [follow(name, [*above, module]) for name in sorted(graph()[module])]
            longest[module] = [module, *max(below, key=len, default=[])]
        return longest[module]

    return max((follow(module, []) for module in graph()), key=len), circles


def test_no_circles_and_the_longest_chain() -> None:
    longest, circles = chains()
    print(f"\nlongest import chain, {len(longest)} modules: {' -> '.join(longest)}\ncircles: {len(circles)}")
    assert not circles


def without_torch() -> set[str]:
    """Modules that --help or --dry-run load: options, commands, formats, and what they import at their top."""
    found: set[str] = set()
    pending = ["corecli.cli.pages", *(m for m in MODULES if m.endswith((".options", ".command")))]
    pending += [m for m in MODULES if folder(m) in ("base", "cli") or m.startswith("corecli.data.formats.")]
    pending += [f"corecli.commands.{path.stem}" for path in PACKAGE.glob("commands/[!_]*.py")]
    while pending:
        module = pending.pop()
        found.add(module)
        tree = ast.parse(MODULES[module].read_text())
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        pending += sorted(set().union(*map(imported, top)) & MODULES.keys() - found)
    return found


@pytest.mark.parametrize("module", sorted(without_torch()))
def test_no_heavy_import_at_module_level(module: str) -> None:
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert not {name.split(".")[0] for name in imported(node)} & HEAVY


def length(node: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    lines = (node.end_lineno or 0) - node.lineno + 1
    return lines - (ast.get_docstring(node, clean=False) or "").count("\n") - (ast.get_docstring(node) is not None)


def test_functions_and_files_stay_short() -> None:
    lengths = {}
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lengths[f"{path.relative_to(PACKAGE)}: {node.name}"] = length(node)
    values = sorted(lengths.values())
    median, p90, most = statistics.median(values), values[len(values) * 9 // 10], max(lengths, key=lengths.__getitem__)
    print(f"\nfunctions: {len(values)}, median {median:g}, p90 {p90}, max {lengths[most]} ({most})")
    assert median <= 5
    assert p90 <= 16
    assert lengths[most] <= 56, most
