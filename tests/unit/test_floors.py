"""The house: who may import whom, and how long things may get."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "corecli"
FLOOR = {"base": 0, "data": 1, "nets": 1, "diffusion": 1, "engine": 1, "metrics": 1, "captions": 1}
FLOOR |= {"ssl": 2, "generators": 2, "commands": 3}
TOP = 4
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"torch", "torchvision", "diffusers", "timm", "safetensors", "transformers"}


def _folder(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def _imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.append(node.module or "")
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    own = _folder(path)
    for name in _imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] != "corecli" or len(parts) < 2 or parts[1] == own or parts[1] not in FLOOR:
            continue
        assert FLOOR[parts[1]] < FLOOR.get(own, TOP), f"{path} imports {name}, which is not below it"


@pytest.mark.parametrize("path", sorted((PACKAGE / "commands").glob("*.py")), ids=lambda p: p.stem)
def test_verbs_do_not_import_one_another(path: Path) -> None:
    names = [n.split(".")[2] for n in _imports(_when_run(path)) if n.startswith("corecli.commands.")]
    assert not {n for n in names if not n.startswith("_")}


def _when_run(path: Path) -> ast.Module:
    """A module without what only a type checker reads."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not isinstance(node, ast.If)]
    return tree


def _torch_free() -> list[Path]:
    """Modules that --help or --dry-run load: the verbs, and of their private modules those they import at the top."""
    free = [p for p in FILES if _folder(p) in ("base", "")] + sorted((PACKAGE / "data" / "formats").glob("*.py"))
    pending = [p for p in (PACKAGE / "commands").glob("*.py") if not p.stem.startswith("_")]
    while pending:
        free.append(path := pending.pop())
        names = [n for node in ast.parse(path.read_text()).body for n in _top_imports(node)]
        own = {PACKAGE / "commands" / f"{n.split('.')[2]}.py" for n in names if n.startswith("corecli.commands._")}
        pending += [p for p in own if p not in free]
    return free


def _top_imports(node: ast.stmt) -> list[str]:
    return _imports(node) if isinstance(node, ast.Import | ast.ImportFrom) else []


@pytest.mark.parametrize("path", _torch_free(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_heavy_import_at_module_level(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        assert not {n.split(".")[0] for n in _top_imports(node)} & HEAVY


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_functions_and_files_stay_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 420
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{path.name}: {node.name} is too long"
