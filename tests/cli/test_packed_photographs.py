"""Photographs of different sizes, packed by `inflate --materialize` as the files that they are."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from photographs import make_photographs
from PIL import Image
from ran import Run, refused

from corecli.base.errors import DataError
from corecli.base.layout import data_start, read_index
from corecli.data.features import load_features
from corecli.data.imageset import ImageSet, open_set
from corecli.nets.encoder import build_encoder, save_encoder

FORMS = ("set.safetensors", "set.tar", "set")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture
def packed(run: Run, photographs: Path, tmp_path: Path) -> Path:
    return _written(run, photographs, tmp_path / "set.safetensors")


def _written(run: Run, source: Path, out: Path, *more: object) -> Path:
    ran = run("inflate", "--real", source, "--materialize", out, *more)
    assert ran.code == 0, ran.err
    return out


def _files(image_set: ImageSet) -> list[bytes]:
    return [image_set.picture(row).encoded() for row in range(len(image_set.rows))]


@pytest.mark.parametrize("form", FORMS)
def test_files_are_stored_as_they_are(run: Run, photographs: Path, tmp_path: Path, form: str) -> None:
    source, found = open_set(photographs), open_set(_written(run, photographs, tmp_path / form))
    assert found.is_mixed
    assert _files(found) == _files(source)
    assert [found.picture(row).size for row in range(24)] == [source.picture(row).size for row in range(24)]
    assert (list(found.rows.keys), found.class_names) == (list(source.rows.keys), source.class_names)
    assert found.rows.labels.tolist() == source.rows.labels.tolist()
    assert run("verify", tmp_path / form).code == 0
    assert run("inflate", "--real", photographs, "--materialize", tmp_path / form).code == 0, "already there"


def test_files_are_encoded_again(run: Run, photographs: Path, tmp_path: Path) -> None:
    source = open_set(photographs)
    found = open_set(_written(run, photographs, tmp_path / "a.tar", "--encode", "jpeg:95", "--max-px", 64))
    exact = open_set(_written(run, photographs, tmp_path / "b.safetensors", "--encode", "png"))
    for row in range(24):
        before, after = source.picture(row), found.picture(row)
        assert max(after.size) == min(64, max(before.size))
        assert after.encoded().startswith(b"\xff\xd8")
        assert np.array_equal(exact.picture(row).pixels(), before.pixels())
        resized = Image.fromarray(np.array(before.pixels())).resize(
            (after.size[1], after.size[0]), Image.Resampling.BICUBIC
        )
        assert np.abs(after.pixels().astype(int) - np.asarray(resized).astype(int)).mean() < 6


def test_images_of_one_size_are_packed_as_files_on_request(run: Run, tmp_path: Path) -> None:
    pixels = _written(run, Path("digits:8:test"), tmp_path / "a.safetensors")
    files = _written(run, Path("digits:8:test"), tmp_path / "b.safetensors", "--encode", "as-read")
    first, second = open_set(pixels), open_set(files)
    assert not second.is_mixed
    assert "images" in read_index(pixels) and "encoded" in read_index(files)
    every = np.arange(len(first.rows))
    assert np.array_equal(first.read_array(every), second.read_array(every))


@pytest.mark.parametrize(
    ("line", "code", "parts"),
    [
        (("--materialize", "x.npz"), 2, ("npz stores images of one size", "--image-size")),
        (("--materialize", "x.tar", "--encode", "jpeg:101"), 2, ("--encode 'jpeg:101'", "jpeg:QUALITY")),
        (("--materialize", "x.tar", "--encode", "as-read", "--max-px", 9), 2, ("--max-px", "--encode jpeg:90")),
        (("--materialize", "x.tar", "--max-px", 9), 2, ("--max-px needs --encode",)),
        (("--materialize", "x.tar", "--encode", "as-read", "--image-size", 9), 2, ("--image-size changes images",)),
        (("--out", "x.json", "--encode", "png"), 2, ("--encode needs --materialize",)),
    ],
    ids=str,
)
def test_what_cannot_be_encoded_is_refused(
    run: Run, photographs: Path, line: tuple[object, ...], code: int, parts: tuple[str, ...], tmp_path: Path
) -> None:
    line = tuple(tmp_path / str(word) if str(word).startswith("x.") else word for word in line)
    refused(run("inflate", "--real", photographs, *line), "inflate", code, *parts)
    assert not list(tmp_path.iterdir())


def test_features_are_those_of_the_folder(run: Run, photographs: Path, packed: Path, tmp_path: Path) -> None:
    encoder = build_encoder("resnet10-tiny", image_size=24, projector_dim=None)
    encoder.set_resize(28)
    save_encoder(tmp_path / "f.safetensors", encoder)
    tables = []
    for number, (data, workers) in enumerate(((photographs, 0), (packed, 0), (packed, 2))):
        out = tmp_path / f"{number}.safetensors"
        line = ("extract", "--data", data, "--encoder", tmp_path / "f.safetensors", "--out", out)
        ran = run(*line, "--workers", workers, "-q")
        assert ran.code == 0, ran.err
        tables.append(load_features(out).features)
    assert torch.equal(tables[0], tables[1]) and torch.equal(tables[0], tables[2])


def test_an_encoder_trained_from_the_packed_file_is_that_of_the_folder(
    run: Run, photographs: Path, packed: Path, tmp_path: Path
) -> None:
    from corecli.nets.encoder import load_encoder

    weights = []
    for name, data, workers in (("a", photographs, 0), ("b", packed, 2)):
        out = tmp_path / f"{name}.safetensors"
        line = ("train-ssl", "--preset", "tiny", "--steps", 2, "--batch-size", 8, "--projector-dim", 16, "-q")
        ran = run(*line, "--data", data, "--view-px", 16, "--workers", workers, "--out", out)
        assert ran.code == 0, ran.err
        weights.append(load_encoder(out).state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_damage_is_found_when_the_image_is_read(run: Run, packed: Path) -> None:
    begin, end = read_index(packed)["encoded"]["data_offsets"]
    place = data_start(packed) + (begin + end) // 2
    damaged = bytearray(packed.read_bytes())
    damaged[place] ^= 1
    packed.write_bytes(damaged)
    image_set = open_set(packed)
    with pytest.raises(DataError, match="do not match their hash"):
        for row in range(24):
            image_set.picture(row)
    assert run("verify", packed).code == 65
    packed.write_bytes(damaged[:-1])
    with pytest.raises(DataError, match="truncated"):
        open_set(packed)


def test_flipped_bits_never_crash(packed: Path) -> None:
    data, generator = packed.read_bytes(), np.random.default_rng(4)
    head = data_start(packed) + 3000
    for place in [*generator.integers(0, head, 40), *generator.integers(head, len(data), 20)]:
        damaged = bytearray(data)
        damaged[place] ^= int(generator.integers(1, 256))
        packed.write_bytes(damaged)
        with suppress(DataError):
            image_set = open_set(packed)
            for row in range(len(image_set.rows)):
                image_set.picture(row).pixels()


def test_a_bad_file_is_skipped_and_the_set_has_another_fingerprint(run: Run, photographs: Path, tmp_path: Path) -> None:
    folder = make_photographs(tmp_path / "folder", num=24)
    jpeg = next(folder.rglob("*.jpg"))
    jpeg.write_bytes(jpeg.read_bytes()[:-200])
    packed = _written(run, folder, tmp_path / "set.safetensors")
    whole, good = open_set(packed), open_set(packed, on_bad="skip")
    assert (len(whole.rows), len(good.rows), len(good.bad)) == (24, 23, 1)
    assert whole.fingerprint != good.fingerprint
    assert jpeg.stem not in "".join(key.rpartition("/")[2] for key in good.rows.keys)


def test_webdataset_reads_tars_of_photographs(run: Run, photographs: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    tar = _written(run, photographs, tmp_path / "set.tar")
    samples = list(webdataset.WebDataset(str(tar), shardshuffle=False).decode("pil"))
    source = open_set(photographs)
    assert [sample["__key__"] for sample in samples] == list(source.rows.keys)
    assert [sample["cls"] for sample in samples] == source.rows.labels.tolist()
    sizes = [(sample.get("jpg") or sample.get("png")).size for sample in samples]
    stored = [Image.open(next(photographs.glob(f"{key}.*"))).size for key in source.rows.keys]
    assert sizes == stored
