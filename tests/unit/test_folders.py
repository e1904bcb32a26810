"""Generators in diffusers' folder layout: read back to the bit, and run by diffusers itself."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from first_stages import HALVING, set_by_hand

from corecli.base import checkpoint
from corecli.base.errors import CannotCreateError, DataError, MissingInputError, UsageError
from corecli.base.sums import SUMS
from corecli.generators import adm, dit, ldm
from corecli.generators.parts.folders import read_folder, write_folder
from corecli.nets.weights.pipelines import is_own

diffusers = pytest.importorskip("diffusers")
SMALL: dict[str, Any] = {"channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "head_channels": 16}
PIXELS = {**SMALL, "image_size": 8, "attention_resolutions": (4,)}
LATENTS = {**SMALL, "image_size": 16, "attention_resolutions": (8,), "context_dim": 12, "first_stage": HALVING}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "adm": (adm, {**PIXELS, "learn_sigma": False}),
    "adm learned sigma": (adm, PIXELS),
    "adm labels": (adm, {**PIXELS, "condition": "labels", "num_classes": 3}),
    "ldm": (ldm, LATENTS),
    "ldm features": (ldm, {**LATENTS, "condition": "features", "condition_dim": 5}),
}


def made(family: Any, **fields: Any):
    torch.manual_seed(0)
    generator = family.build(family.Config(**fields))
    for p in generator.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    if generator.first_stage is not None:
        set_by_hand(generator.first_stage)
        generator.first_stage.measure(torch.rand(4, 4, 8, 8))
    return generator.eval()


def checkpoint_of(generator: Any, folder: Path) -> tuple[checkpoint.Tensors, checkpoint.Header]:
    arch = type(generator.config).__module__.rpartition(".")[2]
    found = {"arch": arch, "generator": dataclasses.asdict(generator.config), "class_names": ["a"]}
    checkpoint.save(folder / "g.pt", generator.state_dict(), kind="generator", **found)
    return checkpoint.load(folder / "g.pt", kind="generator")


@pytest.mark.parametrize("case", CASES)
def test_a_folder_is_read_back_to_the_bit(case: str, tmp_path: Path) -> None:
    family, fields = CASES[case]
    tensors, header = checkpoint_of(made(family, **fields), tmp_path)
    write_folder(tmp_path / "g", tensors, header)
    write_folder(tmp_path / "g", tensors, header)  # takes the place of the first
    again, found = read_folder(tmp_path / "g")
    assert is_own(tmp_path / "g") and not is_own(tmp_path)
    assert found == header  # its fingerprint too
    assert again.keys() == tensors.keys() and all(torch.equal(again[n], t) for n, t in tensors.items())
    assert sorted(os.listdir(tmp_path)) == ["g", "g.pt"]


@pytest.mark.parametrize("case", CASES)
def test_diffusers_loads_every_part(case: str, tmp_path: Path) -> None:
    family, fields = CASES[case]
    generator = made(family, **fields)
    write_folder(tmp_path / "g", *checkpoint_of(generator, tmp_path))
    kind = diffusers.UNet2DConditionModel if case == "ldm features" else diffusers.UNet2DModel
    unet = kind.from_pretrained(tmp_path / "g" / "unet").eval()
    side = generator.data_shape[1]
    x, t = torch.randn(2, generator.data_shape[0], side, side), torch.tensor([3, 700])
    width = generator.network.width
    vector = None if fields.get("condition") is None else torch.randn(2, width)
    with torch.no_grad():
        if case == "ldm features":
            theirs = unet(x, t, vector[:, None]).sample
        else:
            theirs = unet(x, t, class_labels=vector).sample
        assert torch.equal(theirs, generator.network(x, t, vector))
    if generator.first_stage is not None:
        vae = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "g" / "vae")
        images = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
        with torch.no_grad():
            theirs = vae.encode(images / 127.5 - 1).latents
        torch.testing.assert_close(theirs, generator.first_stage.encode(images))


def test_a_pipeline_of_diffusers_makes_our_images(tmp_path: Path) -> None:
    generator = made(adm, **CASES["adm"][1])
    write_folder(tmp_path / "g", *checkpoint_of(generator, tmp_path))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "g")
    assert type(pipeline).__name__ == "DDIMPipeline"
    pipeline.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(s) for s in (5, 6)]
    made_there = pipeline(2, seeds, num_inference_steps=10, use_clipped_model_output=True, output_type="np").images
    ours = generator.generate([5, 6], steps=10).permute(0, 2, 3, 1).numpy()
    assert np.abs(made_there * 255 - ours).max() < 1


def test_a_learned_variance_runs_in_diffusers_too(tmp_path: Path) -> None:
    generator = made(adm, **CASES["adm learned sigma"][1], diffusion_steps=200)
    write_folder(tmp_path / "g", *checkpoint_of(generator, tmp_path))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "g")
    assert type(pipeline).__name__ == "DDPMPipeline"
    config = pipeline.scheduler.config
    assert (config.variance_type, config.num_train_timesteps, config.beta_start) == ("learned_range", 200, 5e-4)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(1, torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np").images
    assert images.shape == (1, 8, 8, 3) and images.std() > 0


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
def test_the_scheduler_has_our_noise_levels(schedule: str, tmp_path: Path) -> None:
    generator = made(adm, **CASES["adm"][1], schedule=schedule, diffusion_steps=500, objective="v")
    write_folder(tmp_path / "g", *checkpoint_of(generator, tmp_path))
    scheduler = diffusers.DDIMScheduler.from_pretrained(tmp_path / "g" / "scheduler")
    ours = [level.alpha**2 for level in generator.objective.levels("even", 500)]
    torch.testing.assert_close(
        scheduler.alphas_cumprod.flip(0).double(), torch.tensor(ours).double(), atol=1e-5, rtol=1e-3
    )
    assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.timestep_spacing == "leading"


def test_weights_trained_on_elsewhere_are_taken(tmp_path: Path) -> None:
    tensors, header = checkpoint_of(made(adm, **CASES["adm"][1]), tmp_path)
    write_folder(tmp_path / "g", tensors, header)
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "g" / "unet")
    unet.conv_in.bias.data.add_(1)
    unet.save_pretrained(tmp_path / "g" / "unet")
    with pytest.raises(DataError, match=r"does not match its hash .* remove SHA256SUMS if it was changed on purpose"):
        read_folder(tmp_path / "g")
    (tmp_path / "g" / SUMS).unlink()
    again, found = read_folder(tmp_path / "g")
    assert torch.equal(again["network.unet.conv_in.bias"], tensors["network.unet.conv_in.bias"] + 1)
    assert found["fingerprint"] == checkpoint.fingerprint(again) != header["fingerprint"]


def test_what_has_no_class_there_is_refused(tmp_path: Path) -> None:
    transformer = made(dit, image_size=8, size="tiny", patch=2)
    with pytest.raises(UsageError, match="diffusers has no classes for dit eps"):
        write_folder(tmp_path / "g", *checkpoint_of(transformer, tmp_path))
    flow = made(adm, **CASES["adm"][1], objective="flow")
    with pytest.raises(UsageError, match="diffusers has no classes for adm flow"):
        write_folder(tmp_path / "g", *checkpoint_of(flow, tmp_path))
    assert not (tmp_path / "g").exists()


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    tensors, header = checkpoint_of(made(adm, **CASES["adm"][1]), tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    with pytest.raises(CannotCreateError, match="something else"):
        write_folder(tmp_path / "photos", tensors, header)
    assert (tmp_path / "photos" / "cat.png").exists()
    with pytest.raises(MissingInputError):
        read_folder(tmp_path / "photos")
    write_folder(tmp_path / "g", tensors, header)
    weights = Path("unet") / "diffusion_pytorch_model.safetensors"
    write_folder(tmp_path / "h", *checkpoint_of(made(adm, **{**CASES["adm"][1], "channels": 16}), tmp_path))
    shutil.copy(tmp_path / "h" / weights, tmp_path / "g" / weights)
    with pytest.raises(DataError, match="does not match its hash"):
        read_folder(tmp_path / "g")
    (tmp_path / "g" / SUMS).unlink()
    with pytest.raises(DataError, match="has shape"):
        read_folder(tmp_path / "g")
    (tmp_path / "g" / weights).unlink()
    with pytest.raises(MissingInputError):
        read_folder(tmp_path / "g")
