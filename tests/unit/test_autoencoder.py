"""First stages: their scales, moments and files; and the autoencoder that train-gen makes one of."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from first_stages import HALVING, diffusers_model, set_by_hand, smooth

from corecli.base import checkpoint
from corecli.base.errors import DataError, MissingInputError, UnavailableError, UsageError
from corecli.generators import autoencoder
from corecli.generators.parts.folders import autoencoder_of
from corecli.nets.autoencoder import FirstStage, Spec, build_autoencoder, published_scale
from corecli.nets.encoder import build_encoder
from corecli.nets.perceptual import PerceptualDistance
from corecli.nets.weights.autoencoders import load_first_stage

BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
SPECS: dict[str, Spec] = {
    "kl": {
        "kind": "AutoencoderKL",
        "config": {**BLOCKS, "block_out_channels": [4, 4], "norm_num_groups": 2, "latent_channels": 3},
    },
    "vq": {
        "kind": "VQModel",
        "config": {
            **BLOCKS,
            "block_out_channels": [4, 4],
            "norm_num_groups": 2,
            "latent_channels": 3,
            "num_vq_embeddings": 7,
        },
    },
    "tiny": HALVING,
}
IMAGES = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def stage_of(name: str, *, image_size: int = 16) -> FirstStage:
    torch.manual_seed(1)
    return FirstStage(SPECS[name], image_size=image_size)


def tiny(**changes: Any) -> autoencoder.Autoencoder:
    torch.manual_seed(0)
    small = {"image_size": 16, "channels": 8, "channel_mult": (1, 2), "latent_channels": 3, "attention": False}
    return autoencoder.build(autoencoder.Config(**{**small, "codes": 16, **changes}))


@pytest.mark.parametrize(("name", "moments"), [("kl", (6, 8, 8)), ("vq", (3, 8, 8)), ("tiny", (4, 8, 8))])
def test_every_kind_encodes_and_decodes(name: str, moments: tuple[int, ...]) -> None:
    stage = stage_of(name)
    kept = stage.encode(IMAGES)
    assert kept.shape == (4, *moments) == (4, *stage.moments_shape) and kept.dtype == torch.float32
    latents = stage.latents(kept, torch.randn(4, *stage.data_shape))
    assert latents.shape == (4, *stage.data_shape) and not latents.requires_grad
    assert stage.decode(latents).shape == IMAGES.shape and stage.decode(latents).dtype == torch.uint8
    assert not any(p.requires_grad for p in stage.parameters())
    assert not stage.train().training


def test_latents_and_pixels_are_what_the_weights_say() -> None:
    stage = stage_of("tiny")
    set_by_hand(stage)
    images = smooth(IMAGES)
    kept = stage.encode(images)
    torch.testing.assert_close(kept[:, :3], 0.1 * F.avg_pool2d(images / 255, 2), atol=1e-6, rtol=1e-5)
    stage.measure(kept)
    latents = stage.latents(kept).double()
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3), correction=0), torch.ones(4).double(), atol=1e-5, rtol=0)
    assert (stage.decode(stage.latents(kept)).int() - images.int()).abs().max() <= 1


def test_kl_latents_are_samples_of_their_posterior() -> None:
    """mean + std noise, from diffusers' own posterior; and measured, samples have unit scale."""
    stage = stage_of("kl")
    posterior = autoencoder_of(stage).encode(IMAGES / 127.5 - 1).latent_dist
    noise = torch.randn(4, 3, 8, 8)
    sample = 0.18215 * (posterior.mean + posterior.std * noise)
    torch.testing.assert_close(stage.latents(stage.encode(IMAGES), noise), sample)
    torch.testing.assert_close(stage.latents(stage.encode(IMAGES)), 0.18215 * posterior.mean)
    stage.measure(stage.encode(IMAGES))
    samples = stage.latents(stage.encode(IMAGES).repeat(50, 1, 1, 1), torch.randn(200, 3, 8, 8))
    torch.testing.assert_close(samples.std((0, 2, 3)), torch.ones(3), atol=0.05, rtol=0)


def test_a_vq_stage_decodes_codes() -> None:
    stage = stage_of("vq")
    codebook = torch.randn(7, 3)
    stage.autoencoder.quantize.embedding.weight.data.copy_(codebook)  # type: ignore[union-attr]
    codes = codebook[torch.randint(7, (4, 8, 8))].permute(0, 3, 1, 2)
    assert torch.equal(stage.decode(codes), stage.decode(codes + 1e-3))
    assert not torch.equal(stage.decode(codes), stage.decode(codes.roll(1, dims=3)))


@pytest.mark.parametrize(
    ("spec", "shift", "scale"),
    [
        ({"kind": "AutoencoderKL", "config": {}}, 0, 0.18215),
        ({"kind": "AutoencoderKL", "config": {"scaling_factor": 0.13025}}, 0, 0.13025),
        ({"kind": "AutoencoderKL", "config": {"scaling_factor": 1.5, "shift_factor": 0.06}}, 0.06, 1.5),
        (
            {"kind": "AutoencoderKL", "config": {"scaling_factor": 0.5, "latents_mean": [2.0], "latents_std": [4.0]}},
            2,
            0.125,
        ),
        ({"kind": "VQModel", "config": {}}, 0, 1),
        ({"kind": "VQModel", "config": {"scaling_factor": 0.18215}}, 0, 1),
        ({"kind": "VQModel", "config": {"scaling_factor": 0.5}}, 0, 0.5),
        ({"kind": "AutoencoderTiny", "config": {}}, 0, 1),
        ({"kind": "AutoencoderKL", "config": {"scaling_factor": 0.3}, "measured": True}, 0, 1),
    ],
)
def test_published_scales(spec: Spec, shift: float, scale: float) -> None:
    """Stable Diffusion's and latent diffusion's own; a VQModel's config says another than LDM's, which is 1."""
    assert published_scale(spec) == ([shift], [scale])


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("inside", ["", "vae"])
def test_folders_of_diffusers_are_read(name: str, inside: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs: Any = diffusers_model(SPECS[name])
    theirs.save_pretrained(tmp_path / inside)
    stage = load_first_stage(tmp_path, image_size=16)
    own = stage.autoencoder.state_dict()
    assert all(torch.equal(own[n], t) for n, t in theirs.state_dict().items())
    assert stage.spec["kind"] == SPECS[name]["kind"] and not stage.spec.get("measured")
    again = FirstStage(json.loads(json.dumps(stage.spec)), image_size=16)
    again.load_state_dict(stage.state_dict())
    assert torch.equal(again.encode(IMAGES), stage.encode(IMAGES))


def test_what_train_gen_writes_is_read(tmp_path: Path) -> None:
    """An autoencoder's file, and the first stage out of a generator's."""
    model = tiny()
    path = tmp_path / "ae.safetensors"
    header = {"arch": "autoencoder", "generator": dataclasses.asdict(model.config)}
    checkpoint.save(path, model.state_dict(), kind="generator", **header)
    stage = load_first_stage(path, image_size=16)
    assert stage.spec.get("measured") and torch.equal(stage.encode(IMAGES), model.first_stage.encode(IMAGES))
    assert not any(p.requires_grad for p in stage.parameters())
    plain = tmp_path / "adm.safetensors"
    checkpoint.save(plain, {"network.x": torch.zeros(1)}, kind="generator", arch="adm", generator={})
    with pytest.raises(DataError, match="adm without a first stage"):
        load_first_stage(plain, image_size=16)


def test_broken_folders_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no such folder"):
        load_first_stage(tmp_path / "vae", image_size=16)
    with pytest.raises(DataError, match="holds no first stage"):
        load_first_stage(tmp_path, image_size=16)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(DataError, match="no first stage, but UNet2DModel"):
        load_first_stage(tmp_path, image_size=16)
    theirs: Any = diffusers_model(SPECS["kl"])
    theirs.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a readable first stage"):
        load_first_stage(tmp_path, image_size=16)
    weights.unlink()
    with pytest.raises(DataError, match="not a readable first stage"):
        load_first_stage(tmp_path, image_size=16)
    theirs.quant_conv = None
    theirs.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"weights are missing, such as 'quant_conv.bias'"):
        load_first_stage(tmp_path, image_size=16)


def test_a_hub_is_searched_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[bool] = []
    theirs: Any = diffusers_model(SPECS["kl"])
    theirs.save_pretrained(tmp_path)

    def download(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        searches.append(local_files_only)
        if local_files_only:
            raise FileNotFoundError("not in the cache")
        if name == "owner/gone":
            raise ConnectionError("no route to host")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UnavailableError, match=r"owner/vae: not in the local cache, .*HF_HUB_OFFLINE.*`hf download owner/vae`"
    ):
        load_first_stage("owner/vae", image_size=16)
    assert searches == [True]
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert load_first_stage("owner/vae", image_size=16).data_shape == (3, 8, 8)
    assert searches == [True, True, False]
    with pytest.raises(UnavailableError, match=r"not in the local cache.*no route to host"):
        load_first_stage("owner/gone", image_size=16)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot downsample images of 17 px by 2.*multiple of 2"):
        stage_of("kl", image_size=17)
    with pytest.raises(DataError, match="'UNet' is not a kind of first stage"):
        build_autoencoder({"kind": "UNet", "config": {}})
    with pytest.raises(DataError, match="not the config of an AutoencoderKL"):
        build_autoencoder({"kind": "AutoencoderKL", "config": {"depth": 3}})
    stage = stage_of("tiny")
    with pytest.raises(DataError, match="constant or not finite"):
        stage.measure(torch.ones(4, 4, 8, 8))
    with pytest.raises(UsageError, match="unknown kind of autoencoder"):
        tiny(kind="gan")
    with pytest.raises(UsageError, match="unknown error"):
        tiny(error="l3")
    with pytest.raises(UsageError, match="not conditioned on labels"):
        tiny(condition="labels")


def test_the_kl_loss_is_the_papers() -> None:
    """Against torch's own divergence; with no noise and no weight only the L1 error is left."""
    model = tiny(kl_weight=0.3, flip=False)
    draws = model.draw(0, 0, batch=4)
    x = IMAGES / 127.5 - 1
    theirs = autoencoder_of(model.first_stage)
    posterior = theirs.encode(x).latent_dist
    rebuilt = theirs.decode(posterior.mean + posterior.std * draws.noise).sample
    normal = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    own = torch.distributions.Normal(posterior.mean.double(), posterior.std.double())
    kl = torch.distributions.kl_divergence(own, normal).sum()
    expected = (rebuilt - x).abs().double().mean() + 0.3 * kl / x.numel()
    torch.testing.assert_close(model.loss(IMAGES, None, draws).double(), expected, atol=1e-5, rtol=1e-5)


def test_the_vq_loss_is_the_papers() -> None:
    """VQ-VAE, Eq. 3: the codebook moves to the encodings, these a quarter as much to it; gradients pass straight."""
    model = tiny(kind="vq", flip=False, error="l2")
    net: Any = model.first_stage.autoencoder
    x = IMAGES / 127.5 - 1
    theirs = autoencoder_of(model.first_stage)
    z = theirs.encode(x).latents
    flat, codebook = z.permute(0, 2, 3, 1).reshape(-1, 3), net.quantize.embedding.weight
    distances = (flat[:, None].double() - codebook[None].double()).square().sum(-1)
    codes = codebook[distances.argmin(1)].reshape(4, 8, 8, 3).permute(0, 3, 1, 2)
    rebuilt = theirs.decode(codes, force_not_quantize=True).sample
    expected = (rebuilt - x).square().mean() + 1.25 * (z - codes).square().mean()
    loss = model.loss(IMAGES, None, model.draw(0, 0, batch=4))
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    assert codebook.grad is not None and codebook.grad.any() and net.encoder.conv_in.weight.grad.any()


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_it_learns_to_reconstruct(kind: str) -> None:
    model = tiny(kind=kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    images = torch.full((4, 3, 16, 16), 40, dtype=torch.uint8)
    for i in range(4):
        images[i, :, 4 * i : 4 * i + 4] = 220
    before = (model.reconstruct(images).float() - images).abs().mean()
    for step in range(60):
        optimizer.zero_grad()
        model.loss(images, None, model.draw(0, step, batch=4)).backward()
        optimizer.step()
    after = (model.reconstruct(images).float() - images).abs().mean()
    assert after < before / 3
    silent = [n for n, p in model.named_parameters() if p.grad is None]
    assert silent == []


def test_its_loss_is_a_function_of_the_draws_and_flips() -> None:
    model = tiny()
    draws = model.draw(0, 1, batch=4)
    assert torch.equal(draws.noise, model.draw(0, 1, batch=4).noise)
    assert not torch.equal(draws.noise, model.draw(0, 2, batch=4).noise)
    halves = [model.loss(IMAGES[a : a + 2], None, draws[a : a + 2]) for a in (0, 2)]
    torch.testing.assert_close(sum(halves) / 2, model.loss(IMAGES, None, draws))
    assert 0 < draws.flip.sum() < 4
    mirrored = torch.stack([im.flip(-1) if f else im for im, f in zip(IMAGES, draws.flip, strict=True)])
    straight = tiny(flip=False)
    assert torch.equal(model.loss(IMAGES, None, draws), straight.loss(mirrored, None, draws))
    with pytest.raises(DataError, match="takes"):
        model.loss(IMAGES[..., :8], None, draws)


def test_it_makes_no_images() -> None:
    model = tiny()
    model.check_condition(None)
    with pytest.raises(UsageError, match=r"cannot generate images.*--first-stage FILE"):
        model.generate([0, 1], steps=3)
    with pytest.raises(UsageError, match="takes no features"):
        model.check_condition(torch.zeros(2, 3))


@pytest.mark.parametrize("backbone", ["resnet18", "vit-tiny/4"])
def test_the_perceptual_distance_compares_features(backbone: str, tmp_path: Path) -> None:
    encoder = build_encoder(backbone, image_size=16, projector_dim=None)
    distance = PerceptualDistance(encoder)
    x = (IMAGES / 127.5 - 1).requires_grad_()
    other = IMAGES.flip(0) / 127.5 - 1
    assert distance(x, x.detach()).item() == pytest.approx(0, abs=1e-6)
    near, far = distance(x, x.detach() + 0.01), distance(x, other)
    assert 0 < near < far <= 4
    far.backward()
    assert x.grad is not None and x.grad.any() and all(p.grad is None for p in encoder.parameters())


def test_the_perceptual_term_joins_the_loss(tmp_path: Path) -> None:
    from corecli.nets.encoder import save_encoder

    encoder = build_encoder("resnet18", image_size=16, projector_dim=None)
    save_encoder(tmp_path / "f.safetensors", encoder)
    plain, perceptual = tiny(), tiny(perceptual=str(tmp_path / "f.safetensors"), perceptual_weight=2.0)
    assert perceptual.state_dict().keys() == plain.state_dict().keys()
    draws = plain.draw(0, 0, batch=4)
    difference = perceptual.loss(IMAGES, None, draws) - plain.loss(IMAGES, None, draws)
    assert 0 < difference.item() <= 8
