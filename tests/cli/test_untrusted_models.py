"""Model folders that ask a library to run their code are refused, even where `yes` answers every question."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pipelines
import pytest
import text_encoders
import torch

import corecli
from corecli.base.errors import DataError
from corecli.base.silence import silence
from corecli.base.untrusted import refuse_code
from corecli.data.imageset import open_set
from corecli.nets.weights.text_encoders import TextEncoder

pytest.importorskip("transformers")

CODE = """
import os
open(os.environ["MARKER"], "w").close()
from transformers import BertConfig, BertModel, BertTokenizerFast
class C(BertConfig): model_type = "hostile"
class M(BertModel): config_class = C
class T(BertTokenizerFast): pass
class StableDiffusionPipeline: pass
"""
AUTO_MAP = {"AutoConfig": "code.C", "AutoModel": "code.M", "AutoModelForCausalLM": "code.M"}
LINES = {
    "captions": "--backend transformers --model encoder --num 1",
    "train-gen": "--preset tiny --data digits:8:test --captions all.jsonl --text-encoder encoder --steps 1 --out g.pt",
    "sample": "--ckpt diffusers:pipeline --captions all.jsonl --steps 1 --out o",
}


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder and a pipeline that ask for nothing."""
    root = tmp_path_factory.mktemp("models")
    text_encoders.write_bert(root / "encoder")
    pipelines.save_text_to_image(root / "pipeline")
    return root


@pytest.fixture
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the models, beside captions; MARKER names a file that hostile code creates."""
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    lines = (json.dumps({"id": key, "caption": "a digit"}) for key in open_set("digits:8:test").rows.keys)
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path


def make_hostile(encoder: Path) -> None:
    (encoder / "code.py").write_text(CODE)
    change(encoder / "config.json", model_type="hostile", auto_map=AUTO_MAP)


def run_with_yes(folder: Path, verb: str, *more: str) -> tuple[int, str]:
    """(exit code, stderr) of a line whose standard input says `yes` without end."""
    words = [sys.executable, "-m", "corecli", verb, *LINES[verb].split(), *more]
    environment = {**os.environ, "CORECLI_DEVICE": "cpu"}
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as yes:
        ran = subprocess.run(words, stdin=yes.stdout, cwd=folder, env=environment, capture_output=True, text=True)
        yes.kill()
    assert ran.stdout == ""
    return ran.returncode, ran.stderr


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["run", "dry-run"])
@pytest.mark.parametrize("verb", LINES)
def test_a_configuration_that_names_code_is_refused(folder: Path, verb: str, more: tuple[str, ...]) -> None:
    """Before anything is imported, in one line that names the file and the key."""
    encoder = folder / ("pipeline/text_encoder" if verb == "sample" else "encoder")
    make_hostile(encoder)
    change(folder / "pipeline/model_index.json", text_encoder=["transformers", "AutoModel"])
    code, message = run_with_yes(folder, verb, *more)
    assert code == 65, message
    where = f"{encoder.relative_to(folder)}/config.json"
    assert message.startswith(f"corecli {verb}: error: {where}: the key 'auto_map' names code to run (")
    assert message.count("\n") == 1
    assert not (folder / "marker").exists()


def test_libraries_do_not_run_code_even_if_the_check_finds_nothing(folder: Path) -> None:
    make_hostile(folder / "encoder")
    with pytest.raises(DataError, match="the text encoder cannot be loaded"):
        TextEncoder(folder / "encoder", device=torch.device("cpu"))
    assert not (folder / "marker").exists()


def test_every_call_of_from_pretrained_distrusts_the_model() -> None:
    found = 0
    for path in Path(corecli.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained":
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                safe = isinstance(trust := given.get("trust_remote_code"), ast.Constant) and trust.value is False
                assert safe, f"{path}:{node.lineno}"
                found += 1
    assert found >= 6


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "tokenizer/tokenizer_config.json",
            {"model_max_length": 10**30, "auto_map": {"AutoTokenizer": ["code.T", None]}},
            "'auto_map'",
        ),
        ("text_encoder/config.json", {"text_config": {"auto_map": {"AutoModel": "code.M"}}}, "'auto_map'"),
        ("text_encoder/config.json", {"custom_pipelines": {"text": {"impl": "code.M"}}}, "'custom_pipelines'"),
        ("model_index.json", {"custom_pipeline": "code"}, "'custom_pipeline'"),
        ("model_index.json", {"_class_name": ["code", "StableDiffusionPipeline"]}, "'_class_name' names a class"),
        ("model_index.json", {"scheduler": ["antigravity", "DDIMScheduler"]}, "'scheduler' names a module outside"),
    ],
)
def test_every_way_to_name_code_is_refused(folder: Path, file: str, values: dict[str, Any], message: str) -> None:
    pipeline = folder / "pipeline"
    refuse_code(pipeline)
    change(pipeline / file, **values)
    with pytest.raises(DataError, match=f"the key {message}") as caught:
        refuse_code(pipeline)
    assert caught.value.where == pipeline / file


@pytest.mark.parametrize("name", ["pipeline.py", "None.py", "unet/diffusers.py"])
def test_a_pipeline_with_python_files_is_refused(folder: Path, name: str) -> None:
    (folder / "pipeline" / name).write_text(CODE)
    with pytest.raises(DataError, match="a pipeline with code of its own") as caught:
        refuse_code(folder / "pipeline")
    assert caught.value.where == folder / "pipeline" / name


def test_a_pipeline_within_a_pipeline_is_checked(folder: Path) -> None:
    shutil.copytree(folder / "pipeline", folder / "pipeline/prior")
    change(folder / "pipeline/prior/text_encoder/config.json", auto_map=AUTO_MAP)
    with pytest.raises(DataError, match="'auto_map'"):
        refuse_code(folder / "pipeline")


def test_libraries_read_an_empty_standard_input(tmp_path: Path) -> None:
    """And the caller's is as before afterwards; one that the caller closed is no error."""
    program = (
        "import os, sys\n"
        "from corecli.base.silence import silence\n"
        "with silence():\n"
        "    assert (os.read(0, 9), sys.stdin.readline()) == (b'', '')\n"
        "print(sys.stdin.readline() if sys.stdin else 'closed')\n"
    )
    words = [sys.executable, "-c", program]
    piped = subprocess.run(words, input="yes\n", capture_output=True, text=True, check=True)
    assert piped.stdout == "yes\n\n"
    closed = subprocess.run(["sh", "-c", 'exec "$@" <&-', "sh", *words], capture_output=True, text=True, check=True)
    assert closed.stdout == "closed\n"
    with silence("diffusers"):
        pass
