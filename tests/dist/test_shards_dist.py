"""Two processes make the shards of one: each its own where there are enough, else one together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lines import contents

from corecli.cli.app import build_app, run_line
from corecli.cli.verbs import command_of
from corecli.engine.dist import World

NET = "--set channels=8 --set channel_mult=1,2 --set head_channels=8 --lr 0.02 --steps 8 --batch-size 32"


def sampled(world: World, argv: list[str]) -> tuple[tuple[str, ...], tuple[dict[str, Any], ...]]:
    """(lines, records) of the line on one rank of a world that has been joined already."""
    config = build_app(argv[0])(argv, prog_name="corecli", standalone_mode=False)
    outcome = command_of(argv[0]).run(config, world)
    return outcome.lines, outcome.records


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    generator = tmp_path_factory.mktemp("shards") / "g.pt"
    train = ["train-gen", "--preset", "tiny", *NET.split(), "--data", "digits:8:test", "--out", str(generator)]
    assert run_line([*train, "-q", "--device", "cpu"]) == 0
    sample = ["sample", "--ckpt", str(generator), "--num", "700", "--steps", "2", "-q", "--device", "cpu"]
    return [*sample, "--format", "packed"]


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_two_processes_make_the_same_shards(shards: int, line: list[str], two_ranks: Any, tmp_path: Path) -> None:
    words = [*line, "--shards", str(shards), "--out"]
    sampled(World(), [*words, str(tmp_path / "one" / "o")])
    found = two_ranks.run(sampled, [*words, str(tmp_path / "two" / "o")])
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    for lines, (record,) in found:
        assert lines == (str(tmp_path / "two" / "o"),)
        assert record["num"] == 700
        assert record["images_per_sec"] == pytest.approx(700 / record["seconds"], rel=1e-2)


def test_two_processes_make_what_is_missing(line: list[str], two_ranks: Any, tmp_path: Path) -> None:
    out = str(tmp_path / "o")
    sampled(World(), [*line, "--shard", "1/3", "--out", out])
    two_ranks.run(sampled, [*line, "--shard", "2/3", "--out", out])
    assert not (tmp_path / "o" / "manifest.json").exists()
    made = [record["images_per_sec"] for _, (record,) in two_ranks.run(sampled, [*line, "--shards", "3", "--out", out])]
    assert min(made) > 0
    assert json.loads((tmp_path / "o" / "manifest.json").read_text())["num"] == 700
