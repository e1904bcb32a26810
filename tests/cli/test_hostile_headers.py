"""Names in the headers of encoders and generators, and names of backbones, that lead nowhere or elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from ran import Run, refused

from corecli.base import checkpoint

EXTRACT = ("extract", "--data", "digits:8:test", "--out", "o", "--encoder")
TRAIN = ("train-ssl", "--data", "digits:8:test", "--preset", "tiny", "--steps", "1", "--out", "o", "--backbone")


def resave(original: Path, path: str, *, kind: str, **changes: Any) -> None:
    """Write a file with changed fields of its header, whose hashes match."""
    tensors, header = checkpoint.load(original, kind=kind)
    rest = {name: value for name, value in header.items() if name not in ("kind", "format", "fingerprint")}
    checkpoint.save(Path(path), tensors, kind=kind, **{**rest, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": "resnet19"}, "unknown backbone 'resnet19' (did you mean 'resnet18'?)"),
        ({"backbone": "vit-micro/3"}, "the encoder cannot be built: "),
        ({"backbone": "vit-micro/4"}, "the encoder cannot be built: vit-micro/4 has a stem of its own"),
        ({"backbone": "../../os"}, "unknown backbone '../../os'"),
        ({"stem": "wide"}, "unknown stem 'wide'"),
        ({"drop_path": 0.5}, "the encoder cannot be built: resnet10-tiny has no drop path"),
    ],
    ids=str,
)
def test_an_encoder_with_a_wrong_setting_is_damaged_data(
    run: Run, tiny: Path, changes: dict[str, Any], words: str
) -> None:
    _, header = checkpoint.load(tiny / "f.safetensors", kind="encoder")
    resave(tiny / "f.safetensors", "x.safetensors", kind="encoder", spec={**header["spec"], **changes})
    refused(run(*EXTRACT, "x.safetensors"), "extract", 65, "error: x.safetensors: ", words)


@pytest.mark.parametrize("arch", ["adn", "../../os", "parts", "os"])
def test_a_generator_of_an_unknown_family_is_damaged_data(run: Run, tiny: Path, arch: str) -> None:
    resave(tiny / "unconditional.pt", "x.pt", kind="generator", arch=arch)
    line = ("sample", "--ckpt", "x.pt", "--num", "1", "--steps", "1", "--out", "o")
    for words in (line, (*line, "--dry-run")):
        refused(run(*words), "sample", 65, f"error: x.pt: the generator cannot be built: unknown generator {arch!r}")


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "hf_hub:someone/model", "local-dir:here", "os"])
@pytest.mark.parametrize("line", [EXTRACT, TRAIN], ids=["extract", "train-ssl"])
def test_backbones_are_those_of_timm_itself(run: Run, line: tuple[str, ...], name: str) -> None:
    """No model of a hub or a folder is looked for, whose configuration names functions to call."""
    pytest.importorskip("timm")
    Path("here").mkdir()
    Path("here/config.json").write_text('{"architecture": "resnet18", "num_classes": 10}')
    started = time.monotonic()
    refused(run(*line, f"timm:{name}"), line[0], 2, f"timm has no model '{name.partition(':')[0]}")
    assert time.monotonic() - started < 10


def test_a_backbone_in_a_header_is_one_of_timm_itself(run: Run, tiny: Path) -> None:
    pytest.importorskip("timm")
    _, header = checkpoint.load(tiny / "f.safetensors", kind="encoder")
    spec = {**header["spec"], "backbone": "timm:hf-hub:someone/model", "stem": None}
    resave(tiny / "f.safetensors", "x.safetensors", kind="encoder", spec=spec)
    words = "error: x.safetensors: the encoder cannot be built: timm has no model 'hf-hub:someone/model'"
    refused(run(*EXTRACT, "x.safetensors"), "extract", 65, words)
