"""The published configurations of train-gen, built without memory: they have the published numbers of parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from corecli.base import config as cfg
from corecli.base import registry
from corecli.commands.train_gen.options import PRESETS
from corecli.engine.dist import World
from corecli.generators.icgan import learner
from corecli.generators.parts.learning import TrainOptions


def built(name: str, **changes: Any) -> Any:
    preset: dict[str, Any] = dict(PRESETS[name])
    family = registry.load("generators", preset["arch"])
    fields = {f.name for f in dataclasses.fields(family.Config)}
    chosen = {field: value for field, value in preset.items() if field in fields}
    chosen |= cfg.parse_fields(family.Config, cfg.named_values(preset["set"]), where=name)
    with torch.device("meta"):
        return family.build(family.Config(**{**chosen, **changes}))


def num(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


FIRST_STAGES = {"kl-f8": 83_653_863, "vq-f8": 67_717_295}
OF_FEATURES = {"condition": "features", "condition_dim": 512}


def first_stage(name: str) -> dict[str, Any]:
    return built(name).config.first_stage


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_first_stages(name: str) -> None:
    """Of Stable Diffusion's AutoencoderKL, and of the VQModel of latent diffusion's vq-f8, as diffusers builds them."""
    stage = built(name).first_stage
    assert num(stage) == FIRST_STAGES[name]
    assert stage.data_shape == (4, 32, 32)


def test_adm_of_cifar() -> None:
    assert num(built("adm-cifar")) == 57_094_662


@pytest.mark.parametrize(("changes", "published"), [(OF_FEATURES, 389_872_388), ({}, 257_733_124)])
def test_core_table_11(changes: dict[str, Any], published: int) -> None:
    generator = built("ldm-256", first_stage=first_stage("vq-f8"), **changes)
    assert num(generator.network) == published
    assert generator.data_shape == (4, 32, 32)


@pytest.mark.parametrize(("name", "published"), [("dit-l-2", 458_102_816), ("dit-xl-2", 675_129_632)])
def test_dits(name: str, published: int) -> None:
    """Those counts have the fixed positions and a table of 1,001 classes in them."""
    generator = built(name, first_stage=first_stage("kl-f8"), condition="labels", num_classes=1000)
    positions = generator.network.positions.numel()
    table = generator.conditioning.embedding.weight.numel()
    assert num(generator.network) + positions + table == published


@pytest.mark.parametrize(("px", "widths"), [(64, 64), (128, 96), (256, 96)])
def test_icgans(px: int, widths: int) -> None:
    """Of 64 px the published counts, less a table of 1000 classes that is never used; of all, the published widths."""
    generator = built(f"icgan-{px}", condition="features", condition_dim=2048)
    with torch.device("meta"):
        discriminator = learner(generator, TrainOptions(), World(device=torch.device("meta"))).discriminator
    if px == 64:
        assert (num(generator), num(discriminator)) == (36_655_876 - 128_000, 21_646_018)
    assert generator.network.last.weight.shape[1] == widths * generator.config.channel_mult[-1]
    assert generator.config.image_size == generator.data_shape[-1] == px


def test_edm_of_cifar() -> None:
    generator = built("edm-cifar")
    assert generator.objective.name == "edm"
    assert not generator.config.learns_sigma
    images = PRESETS["edm-cifar"]["steps"] * PRESETS["edm-cifar"]["batch_size"]  # type: ignore[operator]
    assert images == 200_000_000
    half_life = 500_000 / PRESETS["edm-cifar"]["batch_size"]  # type: ignore[operator]
    assert PRESETS["edm-cifar"]["ema_decay"] == pytest.approx(0.5 ** (1 / half_life), abs=1e-6)
    assert num(generator) == pytest.approx(55.7e6, rel=0.03)  # EDM's own network, of other blocks


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if "image_size" not in preset])
def test_tiny_presets_fit_16_px(name: str) -> None:
    arch = PRESETS[name]["arch"]
    changes: dict[str, Any] = {"image_size": 16}
    if arch == "ldm":
        changes["first_stage"] = built("tiny-autoencoder", image_size=16).config.first_stage
    if arch == "icgan":
        changes |= OF_FEATURES
    assert num(built(name, **changes)) < 8e6
