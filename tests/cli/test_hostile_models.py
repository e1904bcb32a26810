"""Model folders that try to run code, or to send a library elsewhere, end in one line; nothing of them runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import language_models
import pipelines
import pytest
import text_encoders
import torch
from lines import Line
from ran import Run, refused

from corecli.data.imageset import open_set

pytest.importorskip("transformers")

LINES = {
    "language": "captions --backend transformers --model language --num 1 --device cpu --max-tokens 4",
    "encoder": "train-gen --preset tiny --data digits:8:test --captions all.jsonl --text-encoder encoder --steps 1 "
    "--batch-size 8 --quiet --out g.pt",
    "pipeline": "sample --ckpt diffusers:pipeline --captions all.jsonl --rows :1 --steps 1 --quiet --out o",
}
INPUTS = {*LINES, "all.jsonl"}
ESCAPE = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
PIPELINE_CONFIGS = "pipeline/unet/config.json"


class Code:
    """An object whose pickle creates a file when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch marker",)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    language_models.write_llama(root / "language")
    text_encoders.write_bert(root / "encoder")
    pipelines.save_text_to_image(root / "pipeline")
    lines = (json.dumps({"id": key, "caption": "a digit"}) for key in open_set("digits:8:test").rows.keys)
    (root / "all.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture
def folder(models: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a language model, a text encoder, a pipeline and captions."""
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path


def change(path: str, **values: Any) -> None:
    old = json.loads(Path(path).read_text()) if Path(path).exists() else {}
    Path(path).write_text(json.dumps({**old, **values}))


def nothing_ran() -> None:
    left = {path.name for path in Path().iterdir()}
    assert left <= {*INPUTS, "g.pt.d", "o.d", "outside"}, left


def pickled(name: str, *, layout: str) -> Callable[[], None]:
    """Return a function that replaces safetensors by a file that is a bare pickle, or a torch file with one."""

    def write() -> None:
        path = Path(name)
        for weights in path.parent.glob("*.safetensors"):
            weights.unlink()
        if layout == "pickle":
            path.write_bytes(pickle.dumps({"weight": Code()}))
        else:
            torch.save({"weight": Code()}, path)

    return write


def header(name: str, text: bytes, *, size: int | None = None) -> Callable[[], None]:
    """Return a function that writes a safetensors file of nothing but a header, which claims to have `size` bytes."""
    size = len(text) if size is None else size
    return lambda: _ignore(Path(name).write_bytes(size.to_bytes(8, "little") + text))


def configured(name: str, **values: Any) -> Callable[[], None]:
    return lambda: change(name, **values)


def written(name: str, text: str) -> Callable[[], None]:
    return lambda: _ignore(Path(name).write_text(text))


def _ignore(_: int) -> None:
    """Drop the number of characters that were written."""


def pipe(name: str) -> Callable[[], None]:
    def replace() -> None:
        Path(name).unlink()
        os.mkfifo(name)

    return replace


CODE = "cannot be loaded: the weights contain code or objects"
HUGE = json.dumps({"w": {"dtype": "F32", "shape": [1 << 61], "data_offsets": [0, 1 << 63]}}).encode()
BASE = {"peft_type": "LORA", "base_model_name_or_path": "elsewhere"}
ADAPTER = {**BASE, "auto_mapping": {"base_model_class": "C", "parent_library": "code"}}
CASES: dict[str, tuple[Callable[[], None], str]] = {
    "language: adapter": (configured("language/adapter_config.json", **ADAPTER), "language/adapter_config.json: "),
    "encoder: adapter": (configured("encoder/adapter_config.json", **ADAPTER), "encoder/adapter_config.json: "),
    "pipeline: adapter": (configured("pipeline/unet/adapter_config.json", **ADAPTER), "unet/adapter_config.json: "),
    "encoder: pickle": (pickled("encoder/pytorch_model.bin", layout="pickle"), f"encoder: the text encoder {CODE}"),
    "encoder: torch": (pickled("encoder/pytorch_model.bin", layout="torch"), f"encoder: the text encoder {CODE}"),
    "pipeline: pickle": (
        pickled("pipeline/unet/diffusion_pytorch_model.bin", layout="pickle"),
        f"pipeline: the pipeline {CODE}",
    ),
    "pipeline: torch": (
        pickled("pipeline/vae/diffusion_pytorch_model.bin", layout="torch"),
        f"pipeline: the pipeline {CODE}",
    ),
    "language: kernel": (
        configured("language/config.json", attn_implementation="someone/kernel"),
        "language/config.json: the key 'attn_implementation' names code to run",
    ),
    "encoder: kernels": (
        configured("encoder/config.json", experts_implementation={"": "someone/kernel"}),
        "encoder/config.json: the key 'experts_implementation' names code to run",
    ),
    "pipeline: function": (
        configured("pipeline/model_index.json", scheduler=["transformers", "pipeline"]),
        "pipeline/model_index.json: the key 'scheduler' names no class of transformers: 'pipeline'",
    ),
    "pipeline: module": (
        configured("pipeline/model_index.json", vae=["diffusers.utils", "os"]),
        "pipeline/model_index.json: the key 'vae' names a module outside",
    ),
    "pipeline: attribute": (
        configured("pipeline/model_index.json", vae=["diffusers", "utils.os"]),
        "pipeline/model_index.json: the key 'vae' names no class of diffusers: 'utils.os'",
    ),
    "pipeline: class of the pipeline": (
        configured("pipeline/model_index.json", _class_name="utils"),
        "pipeline: the pipeline cannot be loaded: ",
    ),
    "pipeline: folder outside": (
        configured("pipeline/model_index.json", **{"../outside": ["diffusers", "DDIMScheduler"]}),
        "pipeline/model_index.json: the key '../outside' names no part",
    ),
    "language: damaged": (written("language/config.json", '{"a": '), "language/config.json: not a readable JSON file"),
    "encoder: damaged": (
        written("encoder/tokenizer_config.json", "[" * 100_000),
        "encoder/tokenizer_config.json: not a readable JSON file: nested more",
    ),
    "pipeline: damaged": (written(PIPELINE_CONFIGS, "\0"), f"{PIPELINE_CONFIGS}: not a readable JSON file"),
    "language: pipe": (pipe("language/config.json"), "language/config.json: not a regular file"),
    "pipeline: pipe": (pipe("pipeline/model_index.json"), "pipeline/model_index.json: not a regular file"),
    "language: weights outside": (
        configured("language/model.safetensors.index.json", weight_map={"w": "../outside.safetensors"}),
        "language/model.safetensors.index.json: weight_map.w: expected the name of a file in the same folder",
    ),
    "pipeline: weights outside": (
        configured("pipeline/unet/diffusion_pytorch_model.safetensors.index.json", weight_map={"w": "/etc/passwd"}),
        "unet/diffusion_pytorch_model.safetensors.index.json: weight_map.w: expected the name of a file in the same",
    ),
    "encoder: header": (header("encoder/model.safetensors", b"{}", size=1 << 62), "encoder: the text encoder cannot"),
    "pipeline: header": (
        header("pipeline/unet/diffusion_pytorch_model.safetensors", HUGE),
        "pipeline: the pipeline cannot be loaded: ",
    ),
    "language: header": (header("language/model.safetensors", HUGE), "language: cannot be loaded: "),
}


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_model_is_refused(run: Run, folder: Path, case: str) -> None:
    spoil, words = CASES[case]
    spoil()
    line = LINES[case.partition(":")[0]].split()
    refused(run(*line), line[0], 65, words)
    nothing_ran()


@pytest.mark.parametrize(
    "template", [ESCAPE, "{{ cycler.__init__.__globals__.os.system('touch marker') }}", "{% if %}"]
)
def test_a_chat_template_runs_no_code(run: Run, folder: Path, template: str) -> None:
    (folder / "language/chat_template.jinja").write_text(template)
    ran = run(*LINES["language"].split(), "--api", "chat")
    refused(ran, "captions", 65, "language: the chat template cannot be used: ")
    nothing_ran()


def test_a_class_of_tokenizers_is_not_imported(run: Run, folder: Path) -> None:
    for name in ("code.py", "T.py"):
        (folder / "encoder" / name).write_text("open('marker', 'w').close()\nclass T: pass\n")
    change("encoder/tokenizer_config.json", tokenizer_class="code.T")
    assert run(*LINES["encoder"].split()).code in (0, 65)
    assert not (folder / "marker").exists()


def test_a_pickle_in_another_process_is_one_line(folder: Path) -> None:
    """Warnings of the libraries, which pytest would keep, do not reach stderr either."""
    pickled("encoder/pytorch_model.bin", layout="pickle")()
    ended = Line(LINES["encoder"].split(), folder=folder, environment={"CORECLI_DEVICE": "cpu"}).end()
    assert (ended.code, ended.err.count("\n")) == (65, 1), ended.err
    assert not Path("marker").exists()


def test_a_set_whose_cache_is_a_pickle_is_refused(run: Run) -> None:
    ran = run("show", "torchvision:LSUN:val", "--out", "t.png")
    refused(ran, "show", 65, "torchvision:LSUN: torchvision reads a pickle in its folder without checking it")
