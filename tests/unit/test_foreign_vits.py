"""ViT checkpoints of other tools: the features of the network they were saved from, or a refusal by name."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from corecli.base.errors import DataError
from corecli.nets.encoder import IMAGENET_MEAN, IMAGENET_STD, load_encoder
from corecli.nets.weights.encoders import recognize

pytest.importorskip("timm")
from timm.models.vision_transformer import VisionTransformer

MEAN, STD = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
MICRO = {"embed_dim": 64, "depth": 4, "num_heads": 2, "patch_size": 4, "img_size": 16, "num_classes": 0}
SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6}
State = dict[str, Tensor]


def vit(**options: Any) -> Any:
    """A ViT in which every weight matters to the features."""
    torch.manual_seed(0)
    return randomized(VisionTransformer(**{**MICRO, **options}))


def randomized(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim < 2 or name.endswith(("token", "pos_embed", "pos_embedding")):
                parameter.uniform_(0.2, 1.2)
    return net.eval()


def images(px: int) -> Tensor:
    return torch.randint(0, 256, (2, 3, px, px), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def features(net: Any, px: int) -> Tensor:
    h = net((images(px).float() / 255 - MEAN) / STD)
    assert h.std() > 0.1
    return h


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def changed(state: State) -> State:
    return {name: value + 1 for name, value in state.items()}


def check(path: Path, net: Any, backbone: str, *, px: int = 16) -> None:
    encoder = load_encoder(path)
    assert encoder.spec["backbone"] == backbone
    assert (encoder.spec["stem"], encoder.spec["projector"]) == (None, None)
    assert encoder.spec["preprocessing"]["image_size"] == px
    torch.testing.assert_close(encoder.encode(images(px)), features(net, px), rtol=1e-4, atol=1e-4)


def timm_own(state: State) -> dict[str, Any]:
    return {**state, "head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}


def dino(state: State) -> dict[str, Any]:
    head = {"head.mlp.0.weight": torch.zeros(8, 64), "head.last_layer.weight_g": torch.ones(9, 1)}
    return {
        "student": prefixed("module.", changed(prefixed("backbone.", state) | head)),
        "teacher": prefixed("backbone.", state) | head,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small"),
        "dino_loss": {"center": torch.zeros(1, 9)},
    }


def ibot(state: State) -> dict[str, Any]:
    state = {**state, "masked_embed": torch.zeros(1, 64)}
    return {"state_dict": state, "epoch": 3}


def mae(state: State) -> dict[str, Any]:
    decoder = ("decoder_embed.weight", "decoder_pos_embed", "decoder_blocks.0.norm1.weight", "decoder_norm.bias")
    return {"model": {**state, "mask_token": torch.zeros(1, 1, 32), **{name: torch.zeros(2, 2) for name in decoder}}}


def lightly(state: State) -> dict[str, Any]:
    """The DINO of lightly's examples, in Lightning's file; both heads and the criterion are beside the backbones."""
    parts = prefixed("student_backbone.vit.", changed(state)) | prefixed("teacher_backbone.vit.", state)
    heads = {"student_head.layers.0.weight": torch.zeros(2, 64), "criterion.center": torch.zeros(1, 1, 2)}
    return {"state_dict": {**parts, **heads}, "pytorch-lightning_version": "2.6", "loops": {"fit": {"progress": 1}}}


def solo(state: State) -> dict[str, Any]:
    own = prefixed("backbone.", state) | prefixed("momentum_backbone.", changed(state))
    return {"state_dict": {**own, "classifier.weight": torch.zeros(10, 64), "projector.0.bias": torch.zeros(3)}}


@pytest.mark.parametrize("layout", [dict, timm_own, dino, ibot, mae, lightly, solo], ids=lambda f: f.__name__)
def test_layouts(layout: Callable[[State], dict[str, Any]], tmp_path: Path) -> None:
    net = vit()
    torch.save(layout(net.state_dict()), tmp_path / "checkpoint.pth")
    check(tmp_path / "checkpoint.pth", net, "vit-micro/4")


@pytest.mark.parametrize(
    ("options", "backbone"),
    [
        ({"patch_size": 8, "img_size": 32}, "vit-micro/8"),
        ({"embed_dim": 192, "depth": 12, "num_heads": 3}, "vit-tiny/4"),
        ({**SMALL, "patch_size": 16, "img_size": 48}, "vit-small/16"),
    ],
)
def test_shapes_give_width_depth_patch_and_image_size(options: dict[str, Any], backbone: str, tmp_path: Path) -> None:
    net = vit(**options)
    torch.save(net.state_dict(), tmp_path / "vit.pth")
    check(tmp_path / "vit.pth", net, backbone, px=options.get("img_size", 16))


@pytest.mark.parametrize(("size", "width", "depth"), [("large", 1024, 24), ("huge", 1280, 32)])
def test_larger_vits_are_recognized(size: str, width: int, depth: int) -> None:
    with torch.device("meta"):
        net = VisionTransformer(embed_dim=width, depth=depth, num_heads=16, patch_size=14, img_size=28, num_classes=0)
    state = {n: torch.zeros(t.shape) if n == "pos_embed" else t for n, t in net.state_dict().items()}
    assert recognize(state, where="file").backbone == f"vit-{size}/14"


def moco_positions(grid: int, dim: int) -> Tensor:
    """As MoCo v3 builds them, over a mesh grid indexed by row first."""
    at = torch.arange(grid, dtype=torch.float32)
    first, second = torch.meshgrid(at, at, indexing="ij")
    omega = 1.0 / 10000 ** (torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))
    outer = [torch.einsum("m,d->md", axis.flatten(), omega) for axis in (first, second)]
    table = torch.cat([f(axis) for axis in outer for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat((torch.zeros(1, 1, dim), table[None]), dim=1)


def test_moco_v3_vit_small_has_12_heads(tmp_path: Path) -> None:
    net = vit(**SMALL | {"num_heads": 12})
    net.pos_embed.data = moco_positions(4, 384)
    state = {**net.state_dict(), "head.0.weight": torch.zeros(3, 384), "head.1.running_mean": torch.zeros(3)}
    both = prefixed("module.base_encoder.", state) | prefixed("module.momentum_encoder.", changed(state))
    both |= {"module.predictor.0.weight": torch.zeros(3, 3)}
    torch.save({"epoch": 300, "arch": "vit_small", "state_dict": both}, tmp_path / "vit-s-300ep.pth.tar")
    check(tmp_path / "vit-s-300ep.pth.tar", net, "vit-small-moco/4")
    assert "pos_embed" not in dict(load_encoder(tmp_path / "vit-s-300ep.pth.tar").backbone.named_parameters())


def as_dinov2(net: Any) -> State:
    """The released names: a position for the class token, registers of their own, a mask token."""
    state = {**net.state_dict(), "mask_token": torch.zeros(1, 384)}
    if "reg_token" in state:
        position = torch.full((1, 1, 384), 0.3)
        state["register_tokens"] = state.pop("reg_token")
        state["cls_token"] = state["cls_token"] - position
        state["pos_embed"] = torch.cat((position, state["pos_embed"]), dim=1)
    return state


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_released_and_in_training(registers: int, tmp_path: Path) -> None:
    net = vit(**SMALL, patch_size=14, img_size=28, init_values=1e-5, reg_tokens=registers, no_embed_class=registers > 0)
    name = f"timm:vit_small_patch14_{'reg4_' if registers else ''}dinov2"
    released = as_dinov2(net)
    torch.save(released, tmp_path / "dinov2_vits14_pretrain.pth")
    check(tmp_path / "dinov2_vits14_pretrain.pth", net, name, px=28)

    def chunked(name: str) -> str:
        index = name.split(".")[1] if name.startswith("blocks.") else ""
        return name.replace(f"blocks.{index}.", f"blocks.{int(index) // 3}.{index}.", 1) if index else name

    backbone = {f"backbone.{chunked(n)}": t for n, t in released.items()}
    heads = {"dino_head.mlp.0.weight": torch.zeros(2, 2), "ibot_head.mlp.0.weight": torch.zeros(2, 2)}
    torch.save({"teacher": {**backbone, **heads}}, tmp_path / "teacher_checkpoint.pth")
    check(tmp_path / "teacher_checkpoint.pth", net, name, px=28)


def test_dinov2_giant_has_gated_perceptrons() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        state = timm.create_model("vit_giant_patch14_dinov2", img_size=28, num_classes=0).state_dict()
    names = {"mlp.fc1.": "mlp.w12.", "mlp.fc2.": "mlp.w3."}
    own = {n.replace(*next(((a, b) for a, b in names.items() if a in n), ("", ""))): t for n, t in state.items()}
    found = recognize(own, where="file")
    assert found.backbone == "timm:vit_giant_patch14_dinov2"
    assert found.tensors.keys() == state.keys()


def test_torchvision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net: Any = torchvision.models.VisionTransformer(
        image_size=16, patch_size=4, num_layers=4, num_heads=2, hidden_dim=64, mlp_dim=256, num_classes=5
    )
    randomized(net)
    torch.save(net.state_dict(), tmp_path / "vit.pth")
    net.heads = nn.Identity()
    check(tmp_path / "vit.pth", net, "vit-micro/4")


def test_what_is_not_recognized_is_named(tmp_path: Path) -> None:
    state = vit().state_dict()

    def refusal(content: State) -> str:
        torch.save(content, tmp_path / "f.pth")
        with pytest.raises(DataError) as error:
            load_encoder(tmp_path / "f.pth")
        return str(error.value)

    def without(*names: str) -> State:
        return {n: t for n, t in state.items() if n not in names}

    assert "belong to no layer, such as 'backbone.norm_pre.bias'" in refusal({**state, "norm_pre.bias": torch.ones(64)})
    assert "1 weights are missing, such as 'backbone.blocks.2.norm2.bias'" in refusal(without("blocks.2.norm2.bias"))
    assert "unknown ViT: it has no cls_token" in refusal(without("cls_token"))
    assert "unknown ViT: it has no pos_embed" in refusal(without("pos_embed"))
    assert "15 position embeddings do not form a square grid" in refusal({**state, "pos_embed": torch.zeros(1, 16, 64)})
    assert "width 32, depth 4, patch 4, 0 registers" in refusal({**state, "cls_token": torch.zeros(1, 1, 32)})
    assert "4 registers" in refusal(
        {**state, "reg_token": torch.zeros(1, 4, 64)} | {"pos_embed": torch.zeros(1, 16, 64)}
    )
    assert "timm:NAME:FILE" in refusal({**state, "blocks.0.ls1.gamma": torch.ones(64)})
    assert "under 'a.', 'b.'" in refusal({**prefixed("a.", state), **prefixed("b.", changed(state))})
