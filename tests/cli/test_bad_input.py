"""Bad input: one line that says what is wrong, where, and what to do; the right exit code; and no target."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import random
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import pytest
import torch
from ran import Run, refused
from steps import before_step

from corecli.base import checkpoint
from corecli.data.features import FeatureTable, load_features, save_features

DIGITS = "--data digits:8:test"
SSL = "train-ssl --preset tiny --batch-size 8 --steps 3 --quiet --out o"
PSL = f"{SSL} {DIGITS} --method psl --projector-dim 16"
GEN = "train-gen --preset tiny --batch-size 8 --steps 3 --set channel_mult=1,2 --set head_channels=16 --quiet --out o"
EXTRACT = "extract --encoder $tiny/f.safetensors --quiet --out o"
SAMPLE = "sample --ckpt $tiny/g.pt --steps 1 --quiet --out o"
FROM_ROWS = f"{SAMPLE} --features $tiny/z.safetensors --rows ::4"
PROBE = "probe --encoder $tiny/f.safetensors --quiet"
FID = "fid --extractor $tiny/f1.safetensors --quiet"

WORK_IN_PROGRESS = ("run.json", "log.jsonl")


def check(run: Run, line: str, code: int, *words: str, **places: object) -> None:
    """`line` ends with `code`, and with one line on stderr that holds `words`; it leaves no file but a run's log.

    `$tiny` and the like in the line and the words stand for `places`.
    """
    argv = [Template(word).substitute(places) for word in line.split()]
    refused(run(*argv), argv[0], code, *(Template(word).substitute(places) for word in words))
    left = [path for path in Path().rglob("*") if path.is_file() and path.name not in WORK_IN_PROGRESS]
    assert left == []


def name_of(value: object) -> str | None:
    """The verb and the end of a line, as the name of a test."""
    words = value.split() if isinstance(value, str) else []
    return f"{words[0]}-{words[-1].rpartition('/')[2]}" if len(words) > 3 else None


MISSING = [
    (f"{EXTRACT} --data nowhere", ["nowhere: no such file or directory"]),
    (f"{EXTRACT} --data digit:8", ["digit:8: no such file or directory", "named sets are ", "digits:[SIZE]"]),
    (f"extract {DIGITS} --encoder $tiny/ff.safetensors --out o", ["no such file (did you mean $tiny/f.safetensors?)"]),
    (f"{SSL} --data $sets/god", ["$sets/god: no such file", "did you mean $sets/good?"]),
    (f"{SSL} {DIGITS} --init $tiny/none.pt", ["$tiny/none.pt: no such file"]),
    (f"{GEN} {DIGITS} --features zz.safetensors", ["zz.safetensors: no such file"]),
    ("sample --ckpt $tiny/gg.pt --out o", ["$tiny/gg.pt: no such file", "did you mean $tiny/g.pt?"]),
    (f"{SAMPLE} --features zz.safetensors", ["zz.safetensors: no such file"]),
    ("probe --train aa --test bb", ["aa: no such file"]),
    (f"{FID} --reference $sets/good --samples nothing", ["nothing: no such file"]),
    ("inflate --real $sets/good --synthetic nothing --out o", ["nothing: no such file"]),
    ("show nothing --out o", ["nothing: no such file"]),
    ("show $sets/good --out o --config c.toml", ["c.toml: no such file"]),
]


@pytest.mark.parametrize(("line", "words"), MISSING, ids=name_of)
def test_missing_path(run: Run, tiny: Path, sets: Path, line: str, words: list[str]) -> None:
    check(run, line, 66, *words, tiny=tiny, sets=sets)


READERS = {
    "extract": f"{EXTRACT} --data",
    "train-ssl": f"{SSL} --data",
    "train-gen": f"{GEN} --data",
    "probe": f"{PROBE} --test $sets/good --train",
    "fid": f"{FID} --samples $sets/good --reference",
    "inflate": "inflate --quiet --materialize o --real",
    "show": "show --quiet --out o",
}
IMAGES = {
    "empty": ["$sets/empty: no images", "looked for"],
    "garbage": ["$sets/garbage/a/00.png: not an image", "--on-bad skip"],
    "truncated": ["$sets/truncated/a/00.png: truncated", "--on-bad skip"],
    "bomb": ["$sets/bomb/a/00.png: 9000 x 9000 pixels exceed the limit of 64,000,000", "--on-bad skip"],
    "duplicate": ["$sets/duplicate: two files have the key 'a/00'", "00.bmp", "rename or remove"],
    "climbing.tar": ["$sets/climbing.tar: the member '../../evil.png' has a path outside", "do not trust"],
}


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        *((name, "extract") for name in IMAGES),
        *((name, verb) for verb in READERS if verb != "extract" for name in ("empty", "truncated")),
    ],
)
def test_unreadable_images(run: Run, tiny: Path, sets: Path, name: str, verb: str) -> None:
    check(run, f"{READERS[verb]} $sets/{name}", 65, *IMAGES[name], tiny=tiny, sets=sets)


@pytest.mark.parametrize("name", ["garbage", "truncated", "bomb"])
def test_skipped_images_are_counted_and_named(run: Run, tiny: Path, sets: Path, name: str) -> None:
    line = ("extract", "--encoder", tiny / "f.safetensors", "--out", "o.safetensors", "--json")
    ran = run(*line, "--data", sets / name, "--on-bad", "skip")
    assert ran.code == 0
    assert f"skipped 1 unreadable images: {sets}/{name}/a/00.png" in ran.err
    assert json.loads(ran.out)["num"] == 19 == len(load_features(Path("o.safetensors")))


def test_a_set_of_mostly_bad_images_is_refused(run: Run, tiny: Path, sets: Path) -> None:
    Path("in").mkdir()
    for i in range(4):
        Path(f"in/{i}.png").write_bytes(b"not" if i < 3 else (sets / "good/a/00.png").read_bytes())
    ran = run("extract", "--encoder", tiny / "f.safetensors", "--out", "o", "--data", "in", "--on-bad", "skip")
    refused(ran, "extract", 65, "in: 3 of 4 images are bad, more than 10%; the first: in/0.png")
    assert not Path("o").exists()


FEATURES = [
    (f"{SAMPLE} --features $tiny/z1.safetensors", ["$tiny/z1.safetensors: features of encoder", "--force"]),
    (
        f"{GEN} --data $sets/good --features $tiny/z.safetensors",
        ["z.safetensors: 20 of 20 images have no feature: a/00"],
    ),
    (f"{PSL} --features $tiny/other_rows.safetensors", ["other_rows.safetensors: 355 of 355", "same image set"]),
    (
        "probe --train $tiny/z.safetensors --test $tiny/z1.safetensors",
        ["$tiny/z1.safetensors: features are projector of"],
    ),
    (f"{PROBE} --train $tiny/z.safetensors --test $sets/good", ["$sets/good: features are backbone of", "--force"]),
    ("fid --reference $tiny/z.safetensors --samples $tiny/z1.safetensors", ["$tiny/z1.safetensors: ", "measure both"]),
]


@pytest.mark.parametrize(("line", "words"), FEATURES, ids=name_of)
def test_features_of_another_encoder_or_of_other_keys(
    run: Run, tiny: Path, sets: Path, line: str, words: list[str]
) -> None:
    check(run, line, 65, *words, tiny=tiny, sets=sets)


TABLE_READERS = {
    "sample": f"{SAMPLE} --features $path",
    "train-gen": f"{GEN} {DIGITS} --features $path",
    "train-ssl": f"{PSL} --features $path",
    "probe": "probe --train $path --test $tiny/z.safetensors",
    "fid": "fid --reference $path --samples $tiny/z.safetensors",
}


def damage(path: Path, source: Path, kind: str) -> list[str]:
    """Write a truncated, bit-flipped or NaN-holding copy of a file; what the error has to say."""
    content = bytearray(source.read_bytes())
    if kind == "nan":
        tensors, header = checkpoint.load(source)
        tensors["features"][3, 0] = float("nan")
        save_again(path, tensors, header)
        return ["features of 1 images are not finite, the first of", "extract them again"]
    if kind == "flipped":
        content[len(content) * 3 // 5] ^= 4
        path.write_bytes(content)
        return ["content does not match its hash", "make or copy it again"]
    path.write_bytes(content[: len(content) // 2])
    return ["truncated"]


def save_again(path: Path, tensors: checkpoint.Tensors, header: checkpoint.Header, **changes: Any) -> None:
    kept = {k: v for k, v in header.items() if k not in ("kind", "format", "corecli", "fingerprint")}
    checkpoint.save(path, tensors, kind=header["kind"], **kept, **changes)


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for inputs, apart from the one in which the line runs."""
    return tmp_path_factory.mktemp("in")


@pytest.mark.parametrize(
    ("kind", "verb"), [*(("flipped", verb) for verb in TABLE_READERS), ("truncated", "sample"), ("nan", "train-gen")]
)
def test_damaged_features(run: Run, tiny: Path, elsewhere: Path, kind: str, verb: str) -> None:
    path = elsewhere / "z.safetensors"
    words = damage(path, tiny / "z.safetensors", kind)
    check(run, TABLE_READERS[verb], 65, f"{path}: ", *words, tiny=tiny, path=path)


def test_an_encoder_that_gives_nan_writes_no_features(run: Run, tiny: Path, elsewhere: Path) -> None:
    tensors, header = checkpoint.load(tiny / "f.safetensors")
    tensors["backbone.conv1.weight"].fill_(float("nan"))
    save_again(elsewhere / "f.safetensors", tensors, header)
    ran = run("extract", "--encoder", elsewhere / "f.safetensors", *DIGITS.split(), "--quiet", "--out", "o")
    refused(ran, "extract", 65, "o: features of 355 images are not finite", "the encoder diverged")
    assert not Path("o").exists()


KINDS = [
    ("sample --ckpt $tiny/f.safetensors --out o", ["is of kind 'encoder', not 'generator'", "by corecli train-gen"]),
    ("sample --ckpt $tiny/syn --out o", ["$tiny/syn: has no corecli header", "by corecli train-gen"]),
    (f"{SAMPLE} --features $tiny/g.pt", ["g.pt: is of kind 'generator', not 'features'", "by corecli extract"]),
    (f"extract {DIGITS} --encoder $tiny/g.pt --out o", ["'generator', not 'encoder'", "by corecli train-ssl"]),
    (f"extract {DIGITS} --encoder $sets/climbing.tar --out o", ["climbing.tar: neither a safetensors nor a torch"]),
    (f"{SSL} {DIGITS} --init $tiny/z.safetensors", ["z.safetensors: is of kind 'features', not 'encoder'"]),
    (f"{SSL} --data $tiny/f.safetensors", ["f.safetensors: is of kind 'encoder', not 'images'"]),
    ("probe --encoder $tiny/z.safetensors --train digits:8 --test digits:8", ["'features', not 'encoder'"]),
    ("fid --extractor $tiny/g.pt --reference digits:8 --samples $tiny/syn", ["g.pt: is of kind 'generator'"]),
    ("show $sets/good/a/00.png --out o", ["00.png: not an image set", "expected a directory of images, "]),
]


@pytest.mark.parametrize(("line", "words"), KINDS, ids=name_of)
def test_checkpoint_of_the_wrong_kind(run: Run, tiny: Path, sets: Path, line: str, words: list[str]) -> None:
    check(run, line, 65, *words, tiny=tiny, sets=sets)


CHECKPOINT_READERS = {
    "g.pt": "sample --ckpt $path --features $tiny/z.safetensors --quiet --out o",
    "z.safetensors": f"{SAMPLE} --features $path",
    "f.safetensors": f"extract {DIGITS} --encoder $path --quiet --out o",
}


@pytest.mark.parametrize("name", CHECKPOINT_READERS)
def test_checkpoint_of_a_newer_version(run: Run, tiny: Path, elsewhere: Path, name: str) -> None:
    path = elsewhere / name
    save_again(path, *checkpoint.load(tiny / name), format=99)
    words = ["$path: format 99 is newer than 1", "upgrade corecli"]
    check(run, CHECKPOINT_READERS[name], 65, *words, tiny=tiny, path=path)


@pytest.mark.parametrize("name", CHECKPOINT_READERS)
@pytest.mark.parametrize("kind", ["truncated", "flipped"])
def test_damaged_checkpoint(run: Run, tiny: Path, elsewhere: Path, kind: str, name: str) -> None:
    words = damage(elsewhere / name, tiny / name, kind)
    check(run, CHECKPOINT_READERS[name], 65, "$path: ", *words, tiny=tiny, path=elsewhere / name)


class Bomb:
    """What a hostile checkpoint holds: unpickling it runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch boom",)


@pytest.mark.parametrize("layout", ["zip", "legacy", "pickle"])
def test_code_in_a_checkpoint_does_not_run(run: Run, tiny: Path, elsewhere: Path, layout: str) -> None:
    path = elsewhere / "evil.pt"
    if layout == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        content = {"state_dict": {"w": torch.zeros(2)}, "x": Bomb()}
        torch.save(content, path, _use_new_zipfile_serialization=layout == "zip")
    words = ["$path: not a safe, readable torch file: it contains code or objects", "never code"]
    for line in (
        f"extract {DIGITS} --encoder $path --out o",
        "fid --reference digits:8 --samples $tiny/syn --extractor $path",
    ):
        check(run, line, 65, *words, tiny=tiny, path=path)
    check(run, "sample --ckpt $path --out o", 65, "$path: ", path=path)
    assert not Path("boom").exists()


def test_a_namespace_in_a_checkpoint_is_no_code(run: Run, elsewhere: Path) -> None:
    path = elsewhere / "moco.pth"
    torch.save({"state_dict": {"w": torch.zeros(2)}, "args": argparse.Namespace(lr=1)}, path)
    words = ["$path: no ResNet or ViT backbone found", "timm:NAME:FILE"]
    check(run, f"extract {DIGITS} --encoder $path --out o", 65, *words, path=path)


def test_another_config_over_an_existing_run_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"{SSL} {DIGITS} --save-sec 0".split()
    with monkeypatch.context() as patched:

        def fail() -> None:
            raise RuntimeError("a bug")

        before_step(patched, 2, fail)
        ran = run(*line)
        assert (ran.code, ran.out) == (1, "")
        assert "unexpected RuntimeError: a bug" in ran.err
    other = (*line, "--lr", "0.5", "--weight-decay", "0.1")
    refused(run(*other), "train-ssl", 73, "o.d: exists with another config: lr: 0.002 there, 0.5 now; weight_decay: ")
    assert not Path("o").exists()
    assert run(*other, "--force").code == 0


def test_a_run_folder_without_saved_work_may_change_its_config(run: Run, sets: Path) -> None:
    assert run(*SSL.split(), "--data", sets / "truncated").code == 65
    assert run(*SSL.split(), "--data", sets / "good").code == 0


LABELS = [
    (f"{SSL} --method supervised --data $sets/flat", ["$sets/flat: supervised needs labels", "class sub-folders"]),
    (f"{SSL} --method supervised --data $sets/one", ["$sets/one: supervised needs labels of at least two classes"]),
    (f"{GEN} --condition labels --data $sets/flat", ["$sets/flat: has no labels", "class sub-folders"]),
    (f"{PROBE} --test $sets/good --train $sets/flat", ["$sets/flat: has no labels"]),
    (f"{PROBE} --train $sets/good --test $sets/flat", ["$sets/flat: has no labels"]),
    (f"{PROBE} --test $sets/good --train $sets/one", ["$sets/one: has labels of one class only"]),
    (f"{PROBE} --train $sets/good --test digits:8", ["digits:8: has classes that the training set does not have"]),
    ("inflate --out o --per-class 3 --real $sets/flat", ["$sets/flat: per_class needs labels", "fraction"]),
    (f"{SAMPLE} --order class-balanced --features $unlabeled", ["$unlabeled: rows without labels"]),
]


@pytest.mark.parametrize(("line", "words"), LABELS, ids=name_of)
def test_labels_needed_and_absent_or_of_one_class(
    run: Run, tiny: Path, sets: Path, elsewhere: Path, line: str, words: list[str]
) -> None:
    known = load_features(tiny / "z.safetensors")
    unknown = FeatureTable(
        features=known.features, keys=known.keys, groups=known.groups, labels=known.labels * 0 - 1, header=known.header
    )
    save_features(elsewhere / "z.safetensors", unknown)
    check(run, line, 65, *words, tiny=tiny, sets=sets, unlabeled=elsewhere / "z.safetensors")


@pytest.mark.parametrize("verb", [SSL, GEN], ids=name_of)
def test_fewer_images_than_a_batch(run: Run, sets: Path, verb: str) -> None:
    words = ["$sets/good: 20 images are fewer than a batch of 32", "--batch-size 20 or less"]
    check(run, f"{verb} --data $sets/good --batch-size 32", 65, *words, sets=sets)


def test_guidance_needs_condition_dropout(run: Run, tiny: Path) -> None:
    line = "sample --ckpt $tiny/undropped.pt --features $tiny/z.safetensors --guidance 2 --out o"
    check(run, line, 2, "undropped.pt: the generator was trained without", "--condition-dropout above 0", tiny=tiny)
    line = "sample --ckpt $tiny/unconditional.pt --guidance 2 --out o"
    check(run, line, 2, "unconditional.pt: the generator is unconditional", "drop --guidance", tiny=tiny)


TARGETS = ("o", "o.tar", "o.npz", "o.safetensors")
TOO_LARGE = [
    f"{SSL} --data $tiny/real.safetensors --out $full/o.safetensors",
    f"{SSL} --data $tiny/real.safetensors --save-sec 0 --out $full/o.pt",
    f"{GEN} --data $tiny/real.safetensors --out $full/o.pt",
    f"{EXTRACT} --data $tiny/real.safetensors --out $full/o.safetensors",
    *(f"{FROM_ROWS} --out $full/{name}" for name in TARGETS),
    *(f"inflate --real $tiny/real.safetensors --materialize $full/{name}" for name in TARGETS),
    "inflate --real $tiny/real.safetensors --format tar --materialize $full/o",
    f"{FID} --reference digits:8:train --save-stats $full/o.npz",
    "show digits:16:test --columns 20 --rows 15 --out $full/o.png",
]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 24 KiB."""
    folder = tmp_path_factory.mktemp("full")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs root; test_files_may_not_grow covers the rest")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("line", TOO_LARGE, ids=name_of)
def test_disk_full(run: Run, tiny: Path, full: Path, line: str) -> None:
    check(run, line, 74, "$full/", "no space left on device", "free some space", tiny=tiny, full=full)
    assert [path.name for path in full.iterdir() if path.suffix != ".d"] == []
    for path in full.iterdir():
        shutil.rmtree(path)


@pytest.mark.parametrize("line", TOO_LARGE, ids=name_of)
def test_files_may_not_grow(run: Run, tiny: Path, elsewhere: Path, line: str) -> None:
    if line.endswith("$full/o"):
        return  # a directory of files that are all small
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with contextlib.ExitStack() as after:
        after.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
        check(run, line, 74, "$full/", "file too large", tiny=tiny, full=elsewhere)
    assert [path.name for path in elsewhere.iterdir() if path.suffix != ".d"] == []


WRITERS = {
    "train-ssl": f"{SSL} {DIGITS} --out $place/o",
    "train-gen": f"{GEN} {DIGITS} --out $place/o",
    "extract": f"{EXTRACT} {DIGITS} --out $place/o",
    "sample": f"{FROM_ROWS} --out $place/o",
    "inflate": "inflate --real $sets/good --out $place/o",
    "fid": f"{FID} --reference $sets/good --save-stats $place/o",
    "show": "show $sets/good --out $place/o",
}


@pytest.mark.parametrize(
    ("kind", "verb"), [*(("read-only", verb) for verb in WRITERS), ("in a file", "extract"), ("in a file", "train-ssl")]
)
def test_a_place_that_cannot_be_written(run: Run, tiny: Path, sets: Path, kind: str, verb: str) -> None:
    place = Path("/proc/nowhere") if kind == "read-only" else sets / "good/a/00.png"
    check(run, WRITERS[verb], 73, "$place/o", tiny=tiny, sets=sets, place=place)


@pytest.mark.parametrize("verb", [verb for verb in WRITERS if verb != "sample"])
def test_a_file_is_not_written_over_a_directory(run: Run, tiny: Path, sets: Path, elsewhere: Path, verb: str) -> None:
    (elsewhere / "o").mkdir()
    check(
        run,
        WRITERS[verb],
        73,
        "$place/o: is a directory",
        "choose the path of a file",
        tiny=tiny,
        sets=sets,
        place=elsewhere,
    )


@pytest.mark.parametrize(
    "line",
    [
        f"{FROM_ROWS} --out $place/mine",
        f"{FROM_ROWS} --out $place/mine --force",
        f"{FROM_ROWS} --out $place/thesis.tex",
        f"{EXTRACT} {DIGITS} --out $place/thesis.tex",
        f"{FID} --reference $sets/good --save-stats $place/thesis.tex",
        "inflate --real $sets/good --out $place/thesis.tex",
        "inflate --real $sets/good --materialize $place/mine",
        "show $sets/good --out $place/thesis.tex",
    ],
    ids=name_of,
)
def test_files_of_others_are_not_replaced(run: Run, tiny: Path, sets: Path, elsewhere: Path, line: str) -> None:
    files = {elsewhere / "mine" / "notes.txt": "dear diary", elsewhere / "thesis.tex": "chapter 1"}
    for path, text in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    check(run, line, 73, "$place/", "exists", tiny=tiny, sets=sets, place=elsewhere)
    assert {path: path.read_text() for path in elsewhere.rglob("*") if path.is_file()} == files


def test_an_empty_directory_may_be_filled(run: Run, tiny: Path) -> None:
    Path("o").mkdir()
    assert run(*Template(FROM_ROWS).substitute(tiny=tiny).split()).code == 0
    assert Path("o/manifest.json").exists()


@pytest.mark.parametrize(
    ("kind", "verb"),
    [
        *(("cuda", verb) for verb in ("extract", "train-ssl", "train-gen", "sample")),
        ("cpu", "extract"),
        ("numpy", "sample"),
    ],
)
def test_out_of_memory(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch, verb: str, kind: str) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        if kind == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has a total of ...")
        if kind == "numpy":
            raise MemoryError("Unable to allocate 7.28 TiB for an array")
        torch.empty(1 << 55)  # the allocator's own message

    monkeypatch.setattr("corecli.nets.encoder.Encoder.encode", exhausted)
    monkeypatch.setattr("corecli.nets.encoder.Encoder.forward", exhausted)
    monkeypatch.setattr("corecli.nets.unet.AdmUnet.forward", exhausted)
    line = f"{WRITERS[verb]} --batch-size 12"
    check(run, line, 1, "out of memory on cpu", "try --batch-size 6", tiny=tiny, place="here")


@pytest.mark.parametrize("verb", [SSL, GEN], ids=name_of)
def test_images_that_are_not_square(run: Run, sets: Path, verb: str) -> None:
    option = "--view-px" if verb == SSL else "--image-size"
    check(run, f"{verb} --data $sets/rect", 65, "$sets/rect: images of 12 x 8 are not square", option, sets=sets)
    assert run(*verb.split(), "--data", sets / "rect", "--image-size", "8").code == 0


@pytest.mark.parametrize("verb", [SSL, GEN], ids=name_of)
def test_parts_of_two_sizes(run: Run, sets: Path, verb: str) -> None:
    assert run("inflate", "--out", "mix.json", "--real", sets / "good", "--synthetic", "digits:16").code == 0
    option = "--image-size" if verb == GEN else "--view-px"
    refused(
        run(*verb.split(), "--data", "mix.json"), verb.split()[0], 65, "mix.json: the images differ in size", option
    )


def test_parts_that_do_not_fit_leave_no_mixture(run: Run, sets: Path) -> None:
    check(
        run, "inflate --out o --real $sets/good --synthetic $sets/good", 65, "o: the key 'a/00' is in both", sets=sets
    )
    check(run, "inflate --out o --real $sets/good --first 2 --fraction 0.5", 65, "several subsets", sets=sets)
    check(
        run,
        "inflate --out o --real $sets/good --synthetic digits:8 --missing fail",
        65,
        "have no synthetic partner",
        sets=sets,
    )


@pytest.mark.parametrize(
    ("verb", "log_every"),
    [(f"{SSL} --optimizer lars", 1), (f"{SSL} --optimizer sgd", 50), (GEN, 1), (GEN, 50)],
    ids=name_of,
)
def test_a_loss_that_diverges(run: Run, verb: str, log_every: int) -> None:
    line = f"{verb} {DIGITS} --lr 1e30 --steps 6 --log-every {log_every}"
    check(run, line, 1, "o: training diverged", "lower --lr")


UNKNOWN = [
    ("smaple", "unknown verb 'smaple' (did you mean 'sample'?)"),
    (f"{SSL} {DIGITS} --preset tinny", "unknown preset 'tinny' (did you mean 'tiny'?)"),
    ("show x --out o --preset tiny", "unknown preset 'tiny' (there are none)"),
    (f"{SSL} {DIGITS} --method simclar", "unknown method 'simclar' (did you mean 'simclr'?)"),
    (f"{SSL} {DIGITS} --stage simclar:10", "unknown method 'simclar' (did you mean 'simclr'?)"),
    (f"{SSL} {DIGITS} --backbone resnet81", "unknown backbone 'resnet81' (did you mean 'resnet18'?)"),
    (f"{SSL} {DIGITS} --augment strnog", "unknown augment 'strnog' (did you mean 'strong'?)"),
    (f"{SSL} {DIGITS} --optimizer larz", "unknown optimizer 'larz' (did you mean 'lars'?)"),
    (f"{GEN} {DIGITS} --arch amd", "unknown arch 'amd' (did you mean 'adm'?)"),
    (f"{SAMPLE} --sampler ddimm", "unknown sampler 'ddimm' (did you mean 'ddim'?)"),
    (f"{SAMPLE} --ssampler ddim", "No such option: --ssampler (Possible options: --sampler)"),
    ("completion bsh", "unknown shell 'bsh' (did you mean 'bash'?)"),
    (f"{EXTRACT} --data torchvision:CIFAR11", "unknown torchvision dataset 'CIFAR11' (did you mean 'CIFAR10'?)"),
]


@pytest.mark.parametrize(("line", "message"), UNKNOWN)
def test_unknown_names(run: Run, tiny: Path, line: str, message: str) -> None:
    argv = Template(line).substitute(tiny=tiny).split()
    ran = run(*argv)
    verb = "" if line == "smaple" else f" {argv[0]}"
    assert (ran.code, ran.out, ran.err) == (2, "", f"corecli{verb}: error: {message}\n")


USAGE = [
    ("sample", "--ckpt is required"),
    ("show", "SET|FILE|DIR is required"),
    ("completion", "bash|zsh|fish is required"),
    (f"{SSL} {DIGITS} --steps 0", "stage simclr has no steps"),
    (f"{SSL} {DIGITS} --steps many", "'many' is not a length of training"),
    (f"{SSL} {DIGITS} --warmup soon", "'soon' is not a length of training"),
    (f"{SSL} {DIGITS} --warmup 3", "a warm-up of 3 steps leaves none of the 3 steps (lower --warmup)"),
    (f"{SSL} {DIGITS} --stage psl", "stage 'psl' has no length"),
    (f"{SSL} {DIGITS} --method psl", "psl needs a feature table (give --features)"),
    (f"{SSL} {DIGITS} --workers two", "--workers 'two' is neither a number nor auto"),
    (f"{SSL} {DIGITS} --nproc two", "--nproc 'two' is neither a number nor auto"),
    (f"{SSL} {DIGITS} --nnodes 2", "--nnodes needs --rdzv-endpoint HOST:PORT"),
    (f"{GEN} {DIGITS} --condition features", "--condition features needs --features"),
    (f"{GEN} {DIGITS} --set channel_mult=1,1,1,1,1", "images of 8 px cannot be halved 4 times"),
    (SAMPLE, "$tiny/g.pt: the generator is conditioned on features (give --features)"),
    (f"{FROM_ROWS} --rows 900", "--rows '900' selects no rows of 355"),
    (f"{FROM_ROWS} --steps 1001", "1001 sampling steps are more than the model's 1000 timesteps"),
    (f"{FROM_ROWS} --guidance 2,3,2", "--guidance repeats a value (give each value once)"),
    (f"{FROM_ROWS} --guidance 2 --guidance-interval 1", "--guidance-interval takes two noise levels"),
    (f"{FROM_ROWS} --guidance 2 --guidance-interval 3,1", "guidance interval 3 to 1"),
    (f"{FROM_ROWS} --ema-length 0.4", "an average of length 0.4 is outside the range 0 to"),
    ("inflate --real digits:8", "nothing to write"),
    ("inflate --out o", "nothing to mix"),
    ("fid --reference digits:8", "nothing to measure"),
    ("fid --reference digits:8 --samples $tiny/syn", "images need --extractor"),
    (f"{EXTRACT} --data digits:eight", "digits:eight: malformed name of a digits set (write digits:"),
]


@pytest.mark.parametrize(("line", "message"), USAGE)
def test_lines_that_make_no_sense(run: Run, tiny: Path, line: str, message: str) -> None:
    check(run, line, 2, message, tiny=tiny)


def test_unknown_timm_model(run: Run) -> None:
    pytest.importorskip("timm")
    words = ["timm has no model 'resnet_18'", "did you mean 'resnet18"]
    check(run, f"extract {DIGITS} --encoder timm:resnet_18 --out o", 2, *words)


def test_bad_config_and_environment(run: Run, tiny: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = elsewhere / "c.toml"
    line = f"{SAMPLE} --config $file"
    for text, *words in (
        ("stpes = 3", "$file: unknown key 'stpes'", "did you mean 'steps'?"),
        ("steps = 0", "$file: steps: 0 is below 1"),
        ("sampler = 'ddimm'", "$file: sampler: unknown sampler 'ddimm'", "did you mean 'ddim'?"),
        ("steps = ", "$file: neither JSON nor TOML"),
    ):
        file.write_text(text)
        check(run, line, 78, *words, tiny=tiny, file=file)
    monkeypatch.setenv("CORECLI_ETA", "much")
    check(run, SAMPLE, 78, "CORECLI_ETA", "'much' is not a valid float", tiny=tiny)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(run: Run, tiny: Path) -> None:
    check(run, f"{EXTRACT} {DIGITS} --device cuda", 69, "no CUDA device was found", "--device cpu", tiny=tiny)


def test_weights_that_are_not_there(run: Run, tiny: Path) -> None:
    line = "fid --reference digits:8 --samples $tiny/syn --extractor inception.pth"
    check(run, line, 69, "inception.pth: extractor not found", "pt_inception-2015-12-05-6726825d.pth", tiny=tiny)


@pytest.mark.slow
def test_whatever_is_damaged_is_one_line(run: Run, tiny: Path) -> None:
    """600 files with a flipped bit, a wrong byte or a missing end: read as they are, or refused with one line."""
    rng = random.Random(0)
    for name in ("real.npz", "real.tar"):
        assert run("inflate", "--real", tiny / "syn", "--materialize", name).code == 0
    line = ("fid", "--reference", tiny / "syn", "--extractor", tiny / "f.safetensors", "--save-stats", "s.npz")
    assert run(*line).code == 0
    sample = f"{SAMPLE} --rows 0 --force"
    inflate = "inflate --out m.json --materialize p.npz --force --real"
    lines = {
        tiny / "z.safetensors": f"{sample} --features",
        tiny / "g.pt": f"{sample} --features $tiny/z.safetensors --ckpt",
        tiny / "f.safetensors": "extract --data $tiny/syn --out e --quiet --force --encoder",
        tiny / "mix.json": inflate,
        tiny / "real.safetensors": inflate,
        Path("real.npz"): inflate,
        Path("real.tar"): inflate,
        Path("s.npz"): "fid --samples $tiny/z.safetensors --reference",
    }
    codes = set()
    for number in range(600):
        source = rng.choice(list(lines))
        content = bytearray(source.read_bytes())
        where = rng.choice([rng.randrange(len(content)), rng.randrange(min(len(content), 1500))])
        kind = rng.choice(["flip", "byte", "cut"])
        if kind == "cut":
            content = content[:where]
        else:
            content[where] = rng.randrange(256) if kind == "byte" else content[where] ^ 1 << rng.randrange(8)
        damaged = Path(f"damaged-{number}{source.suffix}")
        damaged.write_bytes(content)
        ran = run(*Template(lines[source]).substitute(tiny=tiny).split(), damaged)
        codes.add(ran.code)
        assert ran.code in (0, 2, 65, 66), (source, kind, where, ran)
        assert ran.code == 0 or (ran.err.count("\n") == 1 and ran.err.startswith("corecli ")), ran.err
    assert codes >= {0, 65}
