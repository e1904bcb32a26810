"""What every file of `commands/probe/modes/` promises, including files not written yet."""

from __future__ import annotations

import copy
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from corecli.base import config as cfg
from corecli.base import registry
from corecli.cli.app import run_line
from corecli.commands.probe import segmentation
from corecli.commands.probe.classification import fit, prepare
from corecli.commands.probe.options import MODES, Config
from corecli.commands.probe.problem import read_problem
from corecli.commands.probe.reader import Reader
from corecli.commands.probe.sets import tasks
from corecli.data.features import FeatureTable, save_features
from corecli.data.masks import open_masked
from corecli.engine.dist import World
from corecli.nets.encoder import Encoder, build_encoder

NAMES = registry.choices(MODES)
NEEDS = {name: registry.constants(MODES, name)["NEEDS"] for name in NAMES}
SHORT = {"epochs": 1, "warmup_epochs": 0, "train_batch": 64, "steps": 2, "warmup_steps": 0}
SHORT |= {"crop_px": 16, "stride_px": 8, "optimizer": "sgd", "lr": 0.1}
CLASSES, DIM = 3, 6


def short(mode: Any, **more: Any) -> Any:
    """The options of a mode, so that it trains for a moment only."""
    names = {field.name for field in fields(mode.Options)}
    return mode.Options(**{name: value for name, value in {**SHORT, **more}.items() if name in names})


def tiny(backbone: str = "resnet10-tiny", px: int = 8) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(backbone, image_size=px, projector_dim=None).eval()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A feature table whose classes are far from each other."""
    labels = torch.arange(60) % CLASSES
    features = 8 * torch.eye(DIM)[labels] + torch.randn(60, DIM, generator=torch.Generator().manual_seed(0))
    keys = [f"{row:02d}" for row in range(60)]
    path = tmp_path_factory.mktemp("modes") / "z.safetensors"
    save_features(path, FeatureTable(features=features, keys=keys, groups=keys, labels=labels.numpy(), header={}))
    return str(path)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 20 px whose color is their class, and their masks."""
    folder, rng = tmp_path_factory.mktemp("masked"), np.random.default_rng(0)
    for number in range(4):
        values = rng.integers(0, CLASSES, (5, 5), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        for name, pixels in (("images", np.stack([values * 90] * 3, -1)), ("masks", values)):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_declarations_agree(name: str) -> None:
    declared, mode = registry.constants(MODES, name), registry.load(MODES, name)
    assert declared["Options"] == asdict(mode.Options()), "every option has a literal default in the file"
    assert declared["NEEDS"] in ("features", "views", "images", "masks")
    assert isinstance(declared["NUM_SEEDS"], int) and declared["NUM_SEEDS"] >= 1
    assert declared["USES_VAL"] is ("holdout" in declared["Options"])
    assert declared["NEEDS"] != "views" or "augment" in declared["Options"]
    assert ("k" in declared["Options"]) == ("knn_temperature" in declared["Options"])
    assert declared["title"].endswith(".") and len(declared["title"]) <= 120
    for option in declared["Options"]:
        of_verb = cfg.described(Config).get(option)
        assert of_verb is None or of_verb[1].suffix is not None, f"{option} is an option of every mode"


@pytest.mark.parametrize("name", NAMES)
def test_options_of_other_modes_are_refused(name: str, table: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["probe", "--mode", name, "--train", table, "--test", table, "--set", "no_such_option=1", "--dry-run"]
    assert run_line(line) == 2
    assert f"unknown option of {name} 'no_such_option'" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in NAMES if NEEDS[name] in ("features", "views")])
def test_features_of_distant_classes_are_separated(name: str, table: str) -> None:
    mode, reader = registry.load(MODES, name), Reader(encoder=None, world=World())
    problem = read_problem(tasks([table], (), [table])[0], reader, seeds=range(1))
    context = prepare(problem, reader, on_images=False)
    before = context.features.clone()
    first, again = (fit(mode, short(mode, epochs=20), context, range(1))[0].classifier.logits(before) for _ in range(2))
    assert first.shape == (60, CLASSES)
    assert (first.argmax(1) == problem.numbers).all()
    assert torch.equal(first, again), "a fit is a function of the seed"
    assert torch.equal(before, context.features), "features stay as they are"


@pytest.mark.parametrize("name", [name for name in NAMES if NEEDS[name] in ("views", "images")])
def test_a_fit_on_images_leaves_the_encoder_as_it_is(name: str) -> None:
    mode, encoder = registry.load(MODES, name), tiny()
    reader = Reader(encoder=encoder, world=World(), workers=0)
    problem = read_problem(tasks(["digits:8:test"], (), ["digits:8:test"])[0], reader, seeds=range(1))
    context, before = prepare(problem, reader, on_images=True), copy.deepcopy(encoder.state_dict())
    (first,), (again,) = (fit(mode, short(mode), context, range(1)) for _ in range(2))
    features = torch.rand(5, encoder.num_features)
    logits = first.classifier.logits(features)
    assert logits.shape == (5, 10) and logits.isfinite().all()
    assert torch.equal(logits, again.classifier.logits(features)), "a fit is a function of the seed"
    assert (first.encoder is None) == (NEEDS[name] == "views")
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize("name", [name for name in NAMES if NEEDS[name] == "masks"])
def test_masks_of_images_of_any_size_are_predicted(name: str, masked: Path) -> None:
    mode, data = registry.load(MODES, name), open_masked(f"{masked}/images", f"{masked}/masks")
    reader = Reader(encoder=tiny("vit-micro/4", px=16), world=World(), workers=0)
    context = segmentation.Context(train=data, num_classes=CLASSES, reader=reader)
    first, again = (mode.fit(context, options=short(mode, train_batch=2), seed=0) for _ in range(2))
    for size in ((20, 20), (9, 31)):
        image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            logits = first(image)
            assert torch.equal(logits, again(image)), "a fit is a function of the seed"
        assert logits.shape == (CLASSES, *size) and logits.isfinite().all()
    assert int(segmentation.count_predictions(data, first, context).sum()) == 4 * 20 * 20
