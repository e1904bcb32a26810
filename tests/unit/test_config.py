from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from corecli.base.config import Common, identity, option, resolve, settings
from corecli.base.errors import ConfigError, MissingInputError, UsageError


@dataclass(frozen=True, kw_only=True)
class Config(Common):
    data: str = option(help="a set", role="input")
    out: Path = option(help="target", role="output")
    steps: int = option(100, help="steps", minimum=1)
    lr: float | None = option(None, help="rate")
    size: str = option("small", help="size", choices=("small", "large"))
    parts: tuple[str, ...] = option((), help="parts")


PRESETS = {"big": {"steps": 500, "size": "large", "lr": 1}}
NEEDED = {"data": "d", "out": "o"}


def make(given: dict, environment: dict | None = None) -> Config:
    return resolve(Config, {**NEEDED, **given}, presets=PRESETS, environment=environment or {})


def test_each_source_beats_the_next(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"preset": "big", "steps": 300}))
    assert make({}).steps == 100
    assert make({"preset": "big"}).steps == 500
    assert make({"config": str(file)}).steps == 300
    assert make({"config": str(file)}).size == "large"
    assert make({"config": str(file)}, {"CORECLI_STEPS": "200"}).steps == 200
    assert make({"config": str(file), "steps": "7"}, {"CORECLI_STEPS": "200"}).steps == 7


def test_toml_and_dashes(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('dry-run = true\nparts = ["a", "b"]\n')
    config = make({"config": file})
    assert config.dry_run is True
    assert config.parts == ("a", "b")


def test_values_get_their_types() -> None:
    config = make({"preset": "big", "parts": ["x"]})
    assert isinstance(config.lr, float)
    assert config.out == Path("o")
    assert config.parts == ("x",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": "0"}, "--steps: 0 is below 1"),
        ({"steps": "1.5"}, "--steps: '1.5' is not a valid int"),
        ({"size": "smal"}, "unknown size 'smal' (did you mean 'small'?)"),
        ({"preset": "bog"}, "unknown preset 'bog' (did you mean 'big'?)"),
    ],
)
def test_bad_options_are_usage_errors(given: dict, message: str) -> None:
    with pytest.raises(UsageError) as error:
        make(given)
    assert str(error.value) == message


def test_required() -> None:
    with pytest.raises(UsageError, match="--out is required"):
        resolve(Config, {"data": "d"}, presets={}, environment={})


def test_bad_file_and_environment_are_config_errors(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text('{"stps": 3}')
    with pytest.raises(ConfigError, match="stps") as error:
        make({"config": file})
    assert "did you mean 'steps'?" in str(error.value)
    file.write_text("{nonsense")
    with pytest.raises(ConfigError):
        make({"config": file})
    with pytest.raises(ConfigError, match="CORECLI_STEPS"):
        make({}, {"CORECLI_STEPS": "many"})
    with pytest.raises(MissingInputError):
        make({"config": tmp_path / "none.json"})


def test_identity_compares_inputs_by_content_and_ignores_runtime() -> None:
    one, other = make({"quiet": True, "data": "a"}), make({"data": "./a", "out": "p", "nproc": "2"})
    assert identity(one, {"data": "hash"}) == identity(other, {"data": "hash"})
    assert identity(one, {"data": "hash"}) != identity(other, {"data": "changed"})
    assert identity(one, {}) != identity(make({"steps": 3}), {})
    assert settings(one)["data"] == "a"
    assert "out" not in settings(one)
