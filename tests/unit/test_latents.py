"""Latents encoded once: what is kept is what is learned, and nothing else is taken for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from first_stages import HALVING, set_by_hand

from corecli.base import checkpoint
from corecli.base.errors import DataError, UsageError
from corecli.data import loader
from corecli.data.formats import packed
from corecli.data.imageset import ImageSet, open_set
from corecli.data.latents import LatentSet, file_name, open_latents, write_latents
from corecli.data.loader import Loader, read_batches
from corecli.data.mix import Mixture, Part, save_mixture
from corecli.data.order import Order
from corecli.data.rows import make_rows
from corecli.engine.dist import World
from corecli.generators import dit, ldm
from corecli.generators.parts import latent

NUM = 20
KL: dict[str, Any] = {
    "kind": "AutoencoderKL",
    "config": {
        "block_out_channels": [4, 4],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 2,
        "latent_channels": 3,
    },
}


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    pixels = torch.randint(0, 256, (NUM, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = make_rows([f"dog/{i:03d}" for i in range(NUM)])
    packed.write(tmp_path / "set.safetensors", rows, [pixels], class_names=("dog",), header={})
    return open_set(tmp_path / "set.safetensors")


def generator_on(first_stage: dict[str, Any] | None, **changes: Any):
    torch.manual_seed(0)
    return dit.build(dit.Config(image_size=8, first_stage=first_stage, size="tiny", patch=2, **changes))


def prepared(generator: Any, images: ImageSet, folder: Path) -> ImageSet:
    return latent.prepare(generator, images, folder, world=World(), batch_size=6, workers=0, quiet=True)


@pytest.mark.parametrize("spec", [HALVING, KL])
@pytest.mark.parametrize("flip", [False, True])
def test_kept_latents_give_the_loss_of_the_images(spec: dict, flip: bool, images: ImageSet, tmp_path: Path) -> None:
    generator = generator_on(spec, flip=flip)
    for p in generator.network.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    latents = prepared(generator, images, tmp_path)
    assert isinstance(latents, LatentSet) and latents.rows.keys == images.rows.keys
    rows = np.array([3, 11, 0, 19, 7, 7, 8, 2])
    kept = latents.read(rows)
    assert kept.shape == (8, 1 + flip, *generator.first_stage.moments_shape) and kept.dtype == torch.float16
    draws = generator.draw(0, 5, batch=8)
    from_images = generator.loss(images.read(rows), None, draws)
    torch.testing.assert_close(generator.loss(kept, None, draws), from_images, atol=1e-4, rtol=1e-4)
    assert not torch.equal(from_images, generator.loss(kept.roll(1, dims=0), None, draws))
    assert [path.suffix for path in tmp_path.glob("latents-*")] == [".safetensors"]


def test_a_posterior_is_sampled_anew_every_step(images: ImageSet, tmp_path: Path) -> None:
    generator = generator_on(KL)
    kept = prepared(generator, images, tmp_path).read(np.arange(8))
    draws = [generator.draw(0, step, batch=8) for step in (0, 0, 1)]
    assert draws[0].posterior_noise.shape == (8, *generator.data_shape)
    first, again, other = (generator._clean(kept, d) for d in draws)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert generator_on(HALVING).draw(0, 0, batch=8).posterior_noise.shape == (8, 0)
    half = generator._clean(kept[4:], draws[0][4:])
    assert torch.equal(half, first[4:])


def test_they_are_encoded_once(images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = generator_on(HALVING)
    first = prepared(generator, images, tmp_path).read(np.arange(NUM))
    again = generator_on(HALVING)
    again.first_stage.load_state_dict(generator.first_stage.state_dict())
    with monkeypatch.context() as patched:
        patched.setattr(type(again), "moments", None)
        second = prepared(again, images, tmp_path).read(np.arange(NUM))
    assert torch.equal(first, second)
    assert torch.equal(generator.first_stage.scale, again.first_stage.scale)
    again.first_stage.autoencoder.encoder.layers[0].weight.data.add_(1)
    assert prepared(again, images, tmp_path).read(np.arange(NUM)).ne(first).any()
    assert len(list(tmp_path.glob("latents-*"))) == 2


def test_scales_are_measured_where_none_are_published(images: ImageSet, tmp_path: Path) -> None:
    measured = generator_on(HALVING, flip=False)
    set_by_hand(measured.first_stage)
    kept = prepared(measured, images, tmp_path).read(np.arange(NUM)).double()[:, 0]
    torch.testing.assert_close(
        measured.first_stage.shift.flatten().double(), kept.mean((0, 2, 3)), atol=1e-6, rtol=1e-5
    )
    expected = 1 / kept.std((0, 2, 3), correction=0)
    torch.testing.assert_close(measured.first_stage.scale.flatten().double(), expected, atol=1e-4, rtol=1e-4)
    published = generator_on(KL, flip=False)
    prepared(published, images, tmp_path)
    assert published.first_stage.scale.unique().tolist() == pytest.approx([0.18215])
    whitened = generator_on(KL, flip=False, latent_scale="measured")
    prepared(whitened, images, tmp_path)
    assert len(whitened.first_stage.scale.unique()) == 3
    with pytest.raises(UsageError, match="no published scale"):
        generator_on(HALVING, latent_scale="published")
    with pytest.raises(UsageError, match="unknown scale of latents"):
        generator_on(HALVING, latent_scale="unit")


def test_pixels_need_none(images: ImageSet, tmp_path: Path) -> None:
    assert prepared(generator_on(None), images, tmp_path) is images
    assert not list(tmp_path.glob("latents*"))
    with pytest.raises(UsageError, match=r"needs a first stage.*--arch autoencoder"):
        ldm.build(ldm.Config(image_size=8))


@pytest.mark.parametrize("held", [False, True])
def test_the_loader_reads_them_like_images(
    held: bool, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_worth_holding", lambda *_: held)  # as on a GPU, where there is room
    latents = prepared(generator_on(HALVING), images, tmp_path)
    order = Order(latents.slots, segments=latents.segments, batch_size=6, seed=0, total_steps=4)
    for _, moments, rows in Loader(latents, order, world=World()):
        assert torch.equal(moments, latents.read(rows))
    whole = torch.cat(
        [x for x, _ in read_batches(latents, [np.arange(7), np.arange(7, 9)], device=torch.device("cpu"))]
    )
    assert torch.equal(whole, latents.read(np.arange(9)))


def test_a_mixture_is_encoded_by_rows_and_shown_by_slots(images: ImageSet, tmp_path: Path) -> None:
    """A part that is repeated is encoded once; the order of slots over its latents is that over the images."""
    synthetic = torch.full((4, 3, 8, 8), 200, dtype=torch.uint8)
    rows = make_rows([f"dog/{i:03d}@0" for i in range(4)])
    packed.write(tmp_path / "syn.safetensors", rows, [synthetic], class_names=("dog",), header={})
    parts = (Part(set=str(tmp_path / "set.safetensors")), Part(set=str(tmp_path / "syn.safetensors"), repeat=3))
    save_mixture(tmp_path / "mix.json", Mixture(parts=parts))
    mixture = open_set(tmp_path / "mix.json")
    generator = generator_on(HALVING)
    latents = prepared(generator, mixture, tmp_path)
    assert isinstance(latents, LatentSet)
    assert len(latents.rows) == NUM + 4 == len(latents.read(np.arange(NUM + 4)))
    assert latents.slots.tolist() == mixture.slots.tolist() and len(latents.slots) == NUM + 12
    assert latents.rows.groups == mixture.rows.groups and latents.guard == mixture.guard
    order = Order(latents.slots, segments=latents.segments, batch_size=8, seed=0, total_steps=4)
    shown = []
    for _, moments, rows in Loader(latents, order, world=World()):
        torch.testing.assert_close(moments, generator.moments(mixture.read(rows)), atol=2e-3, rtol=2e-3)
        shown += rows.tolist()
    assert sorted(shown) == sorted(mixture.slots.tolist())
    assert file_name(mixture, first_stage="a", mirrored=True) != file_name(images, first_stage="a", mirrored=True)


def test_an_encoding_that_broke_off_goes_on(images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent, "_SHARD_ROWS", 6)
    generator, encoded = generator_on(HALVING), []
    moments = type(generator).moments

    def counted(self: Any, batch: torch.Tensor) -> torch.Tensor:
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(len(batch))
        return moments(self, batch)

    (tmp_path / "alone").mkdir()
    wanted = prepared(generator, images, tmp_path / "alone").read(np.arange(NUM))
    monkeypatch.setattr(type(generator), "moments", counted)
    with pytest.raises(KeyboardInterrupt):
        prepared(generator, images, tmp_path)
    assert [path.suffix for path in tmp_path.glob("latents-*")] == [".d"]
    encoded = [0, 0, 0]
    latents = prepared(generator, images, tmp_path)
    assert encoded == [0, 0, 0, 6, 2]  # the third and fourth shard
    assert torch.equal(latents.read(np.arange(NUM)), wanted)
    (path,) = tmp_path.glob("latents-*")
    assert path.read_bytes() == (tmp_path / "alone" / path.name).read_bytes()


def test_latents_that_are_not_finite_are_refused_at_once(images: ImageSet, tmp_path: Path) -> None:
    generator = generator_on(HALVING)
    generator.first_stage.autoencoder.encoder.layers[0].weight.data.mul_(1e9)  # past float16
    with pytest.raises(DataError, match="not finite"):
        prepared(generator, images, tmp_path)
    assert not list(tmp_path.glob("latents-*"))


def test_a_cut_file_of_latents_is_refused(images: ImageSet, tmp_path: Path) -> None:
    prepared(generator_on(HALVING), images, tmp_path)
    (path,) = tmp_path.glob("latents-*")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=f"{path}: truncated"):
        prepared(generator_on(HALVING), images, tmp_path)


def test_the_file_is_verified_and_of_these_images_alone(images: ImageSet, tmp_path: Path) -> None:
    path = tmp_path / "latents.safetensors"
    moments = torch.randn(NUM, 1, 2, 2, 2).half()
    source: dict[str, Any] = {"first_stage": "a" * 64, "mirrored": False}
    write_latents(path, images, moments.split(7), **source)
    tensors, header = checkpoint.load(path, kind="latents")  # verifies the hash
    assert torch.equal(tensors["moments"], moments) and header["images"] == images.fingerprint
    assert torch.equal(open_latents(path, images, **source).read(np.array([4, 2])), moments[[4, 2]])
    for name, value, other in (("first_stage", "b" * 64, "another first stage"), ("mirrored", True, "mirror images")):
        with pytest.raises(DataError, match=f"the latents were made for .*{other}"):
            open_latents(path, images, **{**source, name: value})
    with pytest.raises(DataError, match="the latents were made for other images"):
        open_latents(path, open_set("digits:8:test"), **source)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="truncated"):
        open_latents(path, images, **source)


def test_images_of_another_size_are_refused(images: ImageSet, tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = dit.build(dit.Config(image_size=16, first_stage=HALVING, size="tiny", patch=2))
    with pytest.raises(DataError, match="the first stage takes 16 px"):
        prepared(other, images, tmp_path)
    with pytest.raises(DataError, match="the generator takes"):
        other.loss(torch.zeros(2, 1, 4, 8, 8).half(), None, other.draw(0, 0, batch=2))
