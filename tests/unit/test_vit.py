"""ViTs by short names: sizes, crops of other sizes, stochastic depth, MoCo v3's variety."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from corecli.base.errors import UnavailableError, UsageError
from corecli.nets.encoder import build_encoder, load_encoder, save_encoder
from corecli.nets.vit import SIZES, build_vit, watch_patches

timm = pytest.importorskip("timm")


def images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("size", "name"),
    [
        ("tiny", "vit_tiny_patch16_224"),
        ("small", "vit_small_patch16_224"),
        ("base", "vit_base_patch16_224"),
        ("large", "vit_large_patch16_224"),
        ("huge", "vit_huge_patch14_224"),
    ],
)
def test_sizes_are_those_of_timm(size: str, name: str) -> None:
    with torch.device("meta"):
        net: Any = timm.create_model(name, num_classes=0)
    found = SIZES[size]
    assert (found.width, found.depth, found.heads) == (net.embed_dim, len(net.blocks), net.blocks[0].attn.num_heads)


@pytest.mark.parametrize("name", ["vit-micro/4", "vit-micro-moco/4", "timm:vit_tiny_patch16_224"])
def test_crops_of_any_size_in_training_and_square_images_as_in_timm(name: str) -> None:
    encoder = build_encoder(name, image_size=32, projector_dim=8, projector_hidden=16)
    net: Any = encoder.backbone
    for height, width in ((32, 32), (16, 16), (16, 32), (48, 16)):
        h, z = encoder(torch.rand(2, 3, height, width))
        assert (h.shape, z.shape) == ((2, encoder.num_features), (2, 8))
    h.sum().backward()
    patch = net.patch_embed.patch_size[0]
    fixed: Any = timm.models.VisionTransformer(
        img_size=32,
        patch_size=patch,
        embed_dim=net.embed_dim,
        depth=len(net.blocks),
        num_heads=net.blocks[0].attn.num_heads,
        num_classes=0,
    )
    fixed.load_state_dict(net.state_dict(), strict=True)
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        expected = fixed.eval()(encoder._normalized(x / 255))
    torch.testing.assert_close(encoder.encode(x), expected)


def test_positions_of_a_crop_are_interpolated_by_rows_and_columns() -> None:
    net: Any = build_vit("vit-micro/4", image_size=32)[0].eval()
    seen: list[torch.Tensor] = []
    net.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        net(x)
        patches = net.patch_embed.proj(x)
        table = net.pos_embed[0, 1:].T.reshape(1, 64, 8, 8)
        table = F.interpolate(table, (4, 6), mode="bicubic", antialias=True)
    torch.testing.assert_close(seen[0][:, 1:], (patches + table).flatten(2).transpose(1, 2))


def test_encoding_resizes_to_the_size_of_training(tmp_path: Path) -> None:
    encoder = build_encoder("vit-micro/4", image_size=16, projector_dim=4)
    assert encoder.spec["stem"] is None
    save_encoder(tmp_path / "f.safetensors", encoder)
    loaded = load_encoder(tmp_path / "f.safetensors")
    assert torch.equal(
        loaded.encode(images(2, 3, 40, 30), "projector"), encoder.encode(images(2, 3, 40, 30), "projector")
    )
    assert build_encoder("vit-micro/16", image_size=None).spec["preprocessing"]["image_size"] == 224


@pytest.mark.parametrize("name", ["vit-micro/4", "vit-micro-moco/4", "timm:vit_tiny_patch16_224"])
def test_positions_stay_as_interpolated_when_the_image_size_is_set(name: str, tmp_path: Path) -> None:
    encoder = build_encoder(name, image_size=64, projector_dim=None).eval()
    x = images(2, 3, 32, 32)
    before = encoder(x / 255)[0]
    trained = [n for n, _ in encoder.named_parameters()]
    encoder.set_image_size(32)
    torch.testing.assert_close(encoder.encode(x), before.detach())
    assert [n for n, _ in encoder.named_parameters()] == trained
    save_encoder(tmp_path / "f.safetensors", encoder)
    assert torch.equal(load_encoder(tmp_path / "f.safetensors").encode(x), encoder.encode(x))
    with pytest.raises(UsageError, match="do not tile 18 px"):
        encoder.set_image_size(18)


def test_models_of_one_image_size_keep_it() -> None:
    encoder = build_encoder("timm:mixer_s32_224", image_size=64, projector_dim=None)
    with pytest.raises(UsageError, match="takes images of one size only"):
        encoder.set_image_size(32)
    resnet = build_encoder("resnet10-tiny", image_size=8, projector_dim=None)
    resnet.set_image_size(12)
    assert torch.equal(resnet.encode(images(2, 3, 12, 12)), resnet.eval()(images(2, 3, 12, 12) / 255)[0])


@pytest.mark.parametrize("name", ["vit-micro/4", "timm:vit_tiny_patch16_224"])
def test_drop_path_acts_in_training_alone_and_is_kept(name: str, tmp_path: Path) -> None:
    encoder = build_encoder(name, image_size=16, projector_dim=None, drop_path=0.3)
    plain = build_encoder(name, image_size=16, projector_dim=None)
    assert "drop_path" not in plain.spec
    assert encoder.fingerprint == plain.fingerprint
    x = images(2, 3, 16, 16)
    assert torch.equal(encoder.encode(x), plain.encode(x))
    save_encoder(tmp_path / "f.safetensors", encoder)
    blocks: Any = load_encoder(tmp_path / "f.safetensors").backbone.blocks
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.3 * i / (len(blocks) - 1) for i in range(len(blocks))])
    h, _ = encoder.train()(x / 255)
    assert not torch.equal(h, plain.train()(x / 255)[0])


def test_moco_v3s_own() -> None:
    net: Any = build_vit("vit-small-moco/4", image_size=16)[0]
    assert net.blocks[0].attn.num_heads == 12
    row, column, frequency = 2, 3, 5
    position = net.pos_embed[0, 1 + 4 * row + column]
    omega = 10_000 ** (-frequency / 96)
    expected = [f(at * omega) for at in (row, column) for f in (math.sin, math.cos)]
    torch.testing.assert_close(position[frequency::96], torch.tensor(expected))
    assert not net.pos_embed[0, 0].any()
    assert not net.pos_embed.requires_grad
    bounds = {"blocks.0.attn.qkv.weight": 6 / (384 + 384), "blocks.0.mlp.fc1.weight": 6 / (384 + 1536)}
    bounds["patch_embed.proj.weight"] = 6 / (3 * 16 + 384)
    for name, square in bounds.items():
        weight = net.get_parameter(name)
        assert 0.99 * math.sqrt(square) < float(weight.detach().abs().max()) <= math.sqrt(square)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vit-tny/4"}, "did you mean 'vit-tiny/4'"),
        ({"backbone": "vit-smal-moco/8"}, "did you mean 'vit-small-moco/8'"),
        ({"backbone": "vit-small"}, "write vit-SIZE/PATCH"),
        ({"backbone": "vit-small/0"}, "write vit-SIZE/PATCH"),
        ({"backbone": "vit-small/5"}, "patches of 5 px do not tile 32 px.*30 or 35 px"),
        ({"backbone": "vit_small/16"}, "did you mean 'vit-small/16'"),
        ({"backbone": "vit-small/4", "stem": "cifar"}, "a stem of its own"),
        ({"backbone": "resnet18", "drop_path": 0.1}, "no drop path"),
    ],
)
def test_what_cannot_be_built(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_encoder(**options, image_size=32)


@pytest.mark.parametrize("name", ["vit-micro/4", "timm:vit_tiny_patch16_224"])
def test_crops_that_the_patches_do_not_tile(name: str) -> None:
    encoder = build_encoder(name, image_size=32, projector_dim=None)
    with pytest.raises(UsageError, match="do not tile 18 px"):
        encoder(torch.rand(1, 3, 32, 18))


def test_timm_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm.models.vision_transformer", None)
    with pytest.raises(UnavailableError, match="timm is not installed"):
        build_vit("vit-micro/4", image_size=16)


def test_masked_patches_are_a_token_whatever_the_image_shows_there() -> None:
    """Of an image that is not square, row by row."""
    net: Any = build_vit("vit-micro/4", image_size=16)[0].eval()
    token = torch.randn(1, 1, net.embed_dim)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 4] = True  # of 2 x 3 patches: second row, second column
    x = torch.rand(2, 3, 8, 12)
    hidden, beside = x.clone(), x.clone()
    hidden[:, :, 4:8, 4:8] += 1
    beside[:, :, 4:8, 8:12] += 1

    def passed(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad(), watch_patches(net, mask=mask, token=token) as seen:
            h = net(x)
        return h, seen[0]

    h, patches = passed(x)
    assert patches.shape == (2, 6, net.embed_dim)
    torch.testing.assert_close((h[0], patches[0]), tuple(found[0] for found in passed(hidden)), rtol=0, atol=0)
    for found, was in ((passed(hidden)[0][1], h[1]), (passed(beside)[0][0], h[0])):
        assert not torch.allclose(found, was)
    with torch.no_grad(), watch_patches(net) as seen:
        unmasked = net(x)
    torch.testing.assert_close(seen[0][1], patches[1])
    torch.testing.assert_close(unmasked, net(x), rtol=0, atol=0)  # and nothing is left behind
    assert len(seen) == 1


@pytest.mark.parametrize("shape", [(32, 32), (24, 40)])
def test_pooled_features_are_those_of_the_last_blocks_after_the_norm(shape: tuple[int, int]) -> None:
    encoder = build_encoder("vit-micro/8", image_size=32, projector_dim=None).eval()
    x = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    net, seen = encoder.backbone, []
    for block in net.blocks:  # type: ignore[union-attr]
        block.register_forward_hook(lambda _, __, tokens: seen.append(net.norm(tokens)))  # type: ignore[operator]
    own = encoder(x)[0]
    cls, means = [t[:, 0] for t in seen], [t[:, 1:].mean(1) for t in seen]
    torch.testing.assert_close(own, cls[-1])
    expected = {("cls", 2): cls[-2:], ("mean", 3): means[-3:], ("cls+mean", 2): [*cls[-2:], means[-1]]}
    for (pool, num), parts in expected.items():
        encoder.num_features, encoder.projector = 64, None
        encoder.set_pooling(pool, num)  # type: ignore[arg-type]
        found = encoder(x)[0]
        assert encoder.num_features == found.shape[1]
        torch.testing.assert_close(found, torch.cat(parts, 1))


def test_pooling_what_is_not_there() -> None:
    with pytest.raises(UsageError, match="no blocks of patches"):
        build_encoder("resnet10-tiny", image_size=8, projector_dim=None).set_pooling("mean", 1)
    encoder = build_encoder("vit-micro/8", image_size=8, projector_dim=None)
    with pytest.raises(UsageError, match="has 4 blocks, fewer than 5"):
        encoder.set_pooling("mean", 5)
    encoder.backbone.cls_token = None
    with pytest.raises(UsageError, match="no class token"):
        encoder.set_pooling("cls+mean", 1)
