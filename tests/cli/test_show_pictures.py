"""The pictures `corecli show` makes of what it is given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ran import Run

from corecli.data.features import FeatureTable, load_features, save_features
from corecli.data.imageset import open_set


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def cells(path: str, *, columns: int, caption_px: int) -> list[list[np.ndarray]]:
    """The images of a sheet of 8-px ones, shown at 64: rows of uint8 [3, 8, 8]; one column apart on the left."""
    picture = pixels(path)
    rows = (picture.shape[0] - 2) // (66 + caption_px)
    assert picture.shape[1] == 66 * columns + 2 + 8
    corners = [(2 + (66 + caption_px) * row, 2 + 66 * c + 8 * (c > 0)) for row in range(rows) for c in range(columns)]
    found = [picture[y : y + 64 : 8, x : x + 64 : 8].transpose(2, 0, 1) for y, x in corners]
    return [found[row * columns : (row + 1) * columns] for row in range(rows)]


def save(path: str, keys: list[str], features: torch.Tensor) -> None:
    labels = np.full(len(keys), -1)
    save_features(Path(path), FeatureTable(features=features, keys=keys, groups=keys, labels=labels, header={}))


def test_neighbors_are_the_nearest_by_cosine_and_not_oneself(run: Run, tiny: Path) -> None:
    assert run("show", tiny / "real.safetensors", "--features", tiny / "z.safetensors", "--out", "n.png").code == 0
    table = load_features(tiny / "z.safetensors")
    units = table.features.double() / table.features.double().norm(dim=1, keepdim=True)
    images = open_set("digits:8:test")
    queries = np.linspace(0, 354, 6).astype(int)
    drawn = cells("n.png", columns=10, caption_px=14)
    assert len(drawn) == 6
    for query, row in zip(queries, drawn, strict=True):
        cosines = units @ units[query]
        cosines[query] = -2
        expected = [query, *cosines.argsort(descending=True)[:9].tolist()]
        assert np.array_equal(np.stack(row), images.read(np.array(expected)).numpy())


def test_neighbors_of_generated_images_among_real_ones(run: Run, tiny: Path) -> None:
    """A feature table of the real images in another order, in which every sample's is nearest to one we know."""
    real, samples = open_set("digits:8:test"), open_set(str(tiny / "syn"))
    twins = np.random.default_rng(0).permutation(len(real.rows))
    features = torch.eye(len(real.rows))
    save("real.safetensors", [real.rows.keys[row] for row in twins], features)
    nearest = torch.stack([features[100 + i] + 0.5 * features[200 + i] for i in range(len(samples.rows))])
    save("syn.safetensors", samples.rows.keys, nearest)
    line = f"show {tiny}/syn --features syn.safetensors --real digits:8:test --real-features real.safetensors"
    assert run(*line.split(), "--columns", "3", "--rows", "4", "--out", "n.png").code == 0
    drawn = cells("n.png", columns=3, caption_px=14)
    for query, row in zip(np.linspace(0, len(samples.rows) - 1, 4).astype(int), drawn, strict=True):
        assert np.array_equal(row[0], samples.read(np.array([query]))[0].numpy())
        pair = real.read(np.array([twins[100 + query], twins[200 + query]])).numpy()
        assert np.array_equal(np.stack(row[1:]), pair)


def test_attention_is_drawn_a_row_an_image_and_a_column_a_head(run: Run, tiny: Path) -> None:
    line = ("show", "digits:8:test", "--encoder", tiny / "vit.safetensors", "--rows", "3", "-q", "--out")
    assert run(*line, "heat.png").code == 0
    assert run(*line, "kept.png", "--mass", "0.6").code == 0
    assert run(*line, "all.png", "--mass", "1").code == 0
    heat, kept, whole = (pixels(f"{name}.png") for name in ("heat", "kept", "all"))
    assert heat.shape == kept.shape == (3 * (160 + 2 + 14) + 2, 3 * (160 + 2) + 2 + 8, 3)
    original = heat[2:162, 2:162]
    digit = open_set("digits:8:test").read(np.array([0]))[0].permute(1, 2, 0).numpy()
    assert np.array_equal(original[::20, ::20], digit)
    head = (slice(2, 162), slice(172, 332))
    assert np.array_equal(whole[head], original)
    in_view = (kept[head] == original).all(-1)
    assert in_view.reshape(2, 80, 2, 80).all(axis=(1, 3)).sum() in (1, 2, 3)  # whole patches
    assert heat[head].std(axis=-1).max() > 40  # colors, of a gray image


def test_patches_are_drawn_below_their_images_in_whole_blocks(run: Run, tiny: Path) -> None:
    line = ("show", "digits:8:test", "--image-size", 16, "--encoder", tiny / "vit.safetensors", "--picture", "pca")
    assert run(*line, "--columns", 3, "--rows", 4, "-q", "--out", "p.png").code == 0
    picture = pixels("p.png")
    assert picture.shape == (4 * 162 + 2, 3 * 162 + 2, 3)
    data = open_set("digits:8:test", image_size=16)
    for number, row in enumerate(np.linspace(0, len(data.rows) - 1, 6).astype(int)):
        y, x = 2 + 324 * (number // 3), 2 + 162 * (number % 3)
        shown = picture[y : y + 160 : 10, x : x + 160 : 10].transpose(2, 0, 1)
        assert np.array_equal(shown, data.read(np.array([row]))[0].numpy())
        blocks = picture[y + 162 : y + 322, x : x + 160].reshape(4, 40, 4, 40, 3)
        assert (blocks == blocks[:, :1, :, :1]).all()  # a patch of 4 px, ten times enlarged
    assert len(np.unique(picture[164:324, 2:162].reshape(-1, 3), axis=0)) > 1


def test_images_stand_below_the_captions_their_groups_are_named_after(run: Run, tiny: Path) -> None:
    groups = sorted(set(open_set(str(tiny / "syn")).rows.groups))
    words = " ".join(["digit"] * 200)  # wrapped
    texts = [{"id": group, "caption": words if group == groups[0] else "one"} for group in groups]
    Path("c.jsonl").write_text("\n".join(map(json.dumps, texts)))
    line = ("show", tiny / "syn", "--captions", "c.jsonl", "--rows", 2, "-q", "--out", "c.png")
    assert run(*line).code == 0
    picture = pixels("c.png")
    assert picture.shape[1] == 240
    corner = picture[-6 - 128 : -6, 2:130]  # of the last line's first image, 8 px enlarged 16 times
    last = np.flatnonzero(np.array(open_set(str(tiny / "syn")).rows.groups) == groups[-1])[:1]
    assert np.array_equal(corner[::16, ::16].transpose(2, 0, 1), open_set(str(tiny / "syn")).read(last)[0].numpy())
    assert picture.shape[0] > 2 * 136 + 10 * 16
    assert (picture[: 9 * 16].min(axis=(1, 2)) < 200).mean() > 0.5  # lines of text
    Path("c.jsonl").write_text("other\n")
    ran = run(*line)
    assert ran.code == 65
    assert "c.jsonl: no caption has the id of a group" in ran.err


def test_a_table_is_scattered_and_a_run_drawn_as_curves(run: Run, tiny: Path) -> None:
    plans = {}
    first = '{"step": 1, "loss": 2.5, "lr": 0.1, "seconds": 3, "data_wait": 0.2}'
    records = (first, '{"step": 2, "loss": 2.0, "probe": null}', '{"st')
    for name, subject in (("scatter", "z.safetensors"), ("curves", "f.safetensors.d"), ("sheet", "real.safetensors")):
        Path("f.safetensors.d").mkdir(exist_ok=True)
        Path("f.safetensors.d/log.jsonl").write_text("\n".join(records))
        place = subject if name == "curves" else tiny / subject
        plans[name] = json.loads(run("show", place, "--out", "o.png", "--dry-run", "--json").out)
        assert run("show", place, "--out", f"{name}.png").code == 0
    assert {name: plan["picture"] for name, plan in plans.items()} == {name: name for name in plans}
    assert plans["curves"]["curves"] == ["loss", "lr"]
    assert pixels("curves.png").shape == (270, 800, 3)
    assert run("show", "f.safetensors.d", "--columns", "1", "--out", "one.png").code == 0
    assert pixels("one.png").shape == (540, 400, 3)
    assert len(np.unique(pixels("scatter.png").reshape(-1, 3), axis=0)) > 100


def test_the_largest_tables_are_thinned_for_tsne(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from corecli.draw import embedding

    monkeypatch.setattr(embedding, "LARGEST_TSNE", 50)
    monkeypatch.setattr(embedding, "NUM_STEPS", 5)
    ran = run("show", tiny / "z.safetensors", "--embedding", "tsne", "--out", "t.png")
    assert (ran.code, ran.out) == (0, "t.png\n")
    assert "t-SNE of 50 of 355 rows, evenly chosen" in ran.err


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("$tiny/real.safetensors --mass 0.6", 2, "--mass does not apply to this picture (sheet)"),
        ("$tiny/real.safetensors --features $tiny/z.safetensors --encoder x", 2, "--features does not apply"),
        ("$tiny/real.safetensors --picture pca", 2, "--picture does not apply to this picture (sheet)"),
        ("$tiny/real.safetensors --encoder $tiny/vit.safetensors --picture pca --mass 0.5", 2, "--mass does not apply"),
        ("$tiny/syn --captions none.jsonl", 66, "none.jsonl"),
        ("$tiny/z.safetensors --rows 3", 2, "--rows does not apply to this picture (scatter)"),
        ("$tiny/real.safetensors --embedding pca", 2, "--embedding does not apply to this picture (sheet)"),
        (
            "$tiny/syn --features $tiny/z.safetensors --real $tiny/real.safetensors",
            2,
            "need --real and --real-features",
        ),
        ("$tiny/real.safetensors --features $tiny/f.safetensors", 65, "f.safetensors"),
        ("$tiny/syn --features $tiny/z.safetensors", 65, "images have no feature"),
        ("$tiny/real.safetensors --encoder $tiny/f.safetensors", 2, "no attention to show"),
        ("$tiny/real.safetensors --features $tiny/z.safetensors --columns 1", 65, "no images to search for neighbors"),
        ("$tiny/syn --real digits:16:train", 65, "digits:16:train: no image has the key of a group"),
        ("empty.d", 65, "log.jsonl: the log has no values yet"),
        ("broken.d", 65, "log.jsonl: line 2: expected an object, found [2]"),
    ],
)
def test_what_does_not_fit_together_is_refused(run: Run, tiny: Path, line: str, code: int, message: str) -> None:
    for name, text in (("empty.d", ""), ("broken.d", '{"step": 1, "loss": 1}\n[2]\n')):
        Path(name).mkdir()
        (Path(name) / "log.jsonl").write_text(text)
    ran = run("show", *line.replace("$tiny", str(tiny)).split(), "--out", "o.png")
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert not Path("o.png").exists()
