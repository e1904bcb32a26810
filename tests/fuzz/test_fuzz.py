"""Files of every kind are damaged and forged: each line ends in a result or in one line of error.

FUZZ_SEED chooses other cases. A case that fails is repeated by `python tests/fuzz/fuzzing.py --case KIND:SEED`.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import corecli
from corecli.base import registry
from corecli.base.schemas import HEADERS

pytest.importorskip("transformers")
PROGRAM = Path(__file__).with_name("fuzzing.py")
READERS = {
    "read_json", "read_bytes", "read_text", "read_rows", "loads", "loads_toml", "open_zip", "load_tensors",
    "read_header", "require_header", "find_header", "read_safetensors_index", "load_file", "safe_open", "memmap",
    "from_pretrained",
}  # fmt: skip
ELSEWHERE = {
    "captions/server.py:_decoded",  # answers of a server
    "commands/captions/backgrounds.py:complete",  # after answers of a server
    "commands/sample/pipeline.py:_literal",  # the value of an option
    "engine/launch.py:_children",  # /proc
    "engine/shards.py:Shards.read_column",  # of files that the same process has checked
}


def fuzz(folder: Path, num: int) -> dict[str, Any]:
    """Run cases; fail with the output of the program if one of them does."""
    seed = os.environ.get("FUZZ_SEED", "0")
    words = [sys.executable, PROGRAM, "--cases", num, "--seed", seed, "--json", folder / "found.json"]
    ran = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of 2,000 cases."""
    return fuzz(tmp_path_factory.mktemp("fuzz"), 2000)


def test_no_mutation_is_a_traceback_a_hang_or_a_partial_target(found: dict[str, Any]) -> None:
    assert found["cases"] >= 1900
    assert found["problems"] == {}
    refused = sum(num for code, num in found["codes"].items() if code != "0")
    assert refused > found["cases"] / 3, "most mutations change nothing"


@pytest.mark.slow
def test_many_mutations(tmp_path: Path) -> None:
    assert fuzz(tmp_path, 20_000)["problems"] == {}


def test_every_choice_of_a_registry_is_mutated(found: dict[str, Any]) -> None:
    """A new format, family or kind of header needs a kind of its own in `kinds.py`."""
    without_files = {"digits"}  # a part of scikit-learn
    for folder, prefix in (("data/formats", "format-"), ("generators", "generator-")):
        names = set(registry.choices(folder)) - without_files
        assert {f"{prefix}{name}" for name in names} <= found["kinds"].keys()
    assert HEADERS.keys() | {"images", "shard"} <= set(found["headers"])


def test_every_reader_opens_a_file_that_is_mutated(found: dict[str, Any]) -> None:
    """A function that reads JSON, tensors, an archive or a model is called by the line of a kind."""
    called = {name for names in found["opened"].values() for name in names}
    missed = sorted(set(reading_functions()) - called - ELSEWHERE)
    assert not missed, f"add a kind whose line calls them: {missed}"


def reading_functions() -> Iterator[str]:
    """Yield the functions of corecli that call a reader, as `data/masks.py:MaskedImages.read_mask`."""
    root = Path(corecli.__file__).parent
    for path in sorted(root.rglob("*.py")):
        yield from _readers_in(ast.parse(path.read_text()), str(path.relative_to(root)), "")


def _readers_in(node: ast.AST, path: str, above: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _readers_in(child, path, f"{above}{child.name}.")
        elif isinstance(child, ast.FunctionDef):
            calls = (call.func for call in ast.walk(child) if isinstance(call, ast.Call))
            names = {getattr(func, "attr", getattr(func, "id", "")) for func in calls}
            if names & READERS:
                yield f"{path}:{above}{child.name}"
