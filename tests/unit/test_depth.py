"""Depths of weights, and the learning rates that follow from them."""

from __future__ import annotations

import copy

import pytest
import torch

from corecli.engine.optim import build_optimizer, set_learning_rate
from corecli.nets.backbones import build_backbone
from corecli.nets.depth import depths, rate_scales


def test_depths_of_a_resnet_are_its_stages() -> None:
    net, _ = build_backbone("resnet18", stem="imagenet", image_size=None)
    found, top = depths([name for name, _ in net.named_parameters()])
    assert top == 5
    assert (found["conv1.weight"], found["bn1.bias"], found["layer1.0.conv1.weight"]) == (0, 0, 1)
    assert found["layer4.1.bn2.weight"] == 4


def test_depths_of_a_vit_are_timms_except_the_last_norm() -> None:
    """The code of MAE and BEiT counts the last norm with the head, timm with the last block."""
    optim = pytest.importorskip("timm.optim")
    timm = pytest.importorskip("timm")
    net = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    found, top = depths([name for name, _ in net.named_parameters()])
    assert top == 13
    groups = optim.param_groups_layer_decay(net, layer_decay=0.5)
    number = {id(p): name for name, p in net.named_parameters()}
    scales = {number[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    ours = {name: 0.5 ** (top - depth) for name, depth in found.items()}
    assert {name for name in ours if ours[name] != scales[name]} == {"norm.weight", "norm.bias"}
    assert ours["norm.weight"] == 1


def test_rates_of_a_vit_of_four_blocks() -> None:
    """decay^(L + 1 - id) with L = 4: 1/32 for the embeddings, 1/16 to 1/2 for the blocks, 1 for the last norm."""
    net, _ = build_backbone("vit-micro/4", stem=None, image_size=8)
    head = torch.nn.Linear(2, 2)
    parameters = {**dict(net.named_parameters()), "head": head.weight}
    optimizer = build_optimizer(
        "adamw", parameters.values(), lr=1.0, weight_decay=0.5, rate_scales=rate_scales(net, 0.5)
    )
    expected = {"cls_token": 1 / 32, "pos_embed": 1 / 32, "patch_embed": 1 / 32, "norm": 1, "head": 1}
    expected |= {"blocks.0": 1 / 16, "blocks.1": 1 / 8, "blocks.2": 1 / 4, "blocks.3": 1 / 2}
    for lr in (1.0, 0.1):  # as built, and as a schedule has it
        set_learning_rate(optimizer, lr)
        found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        assert len(found) == len(parameters)
        for name, p in parameters.items():
            (scale,) = (scale for start, scale in expected.items() if name.startswith(start))
            assert found[id(p)]["lr"] == lr * scale
            assert found[id(p)]["weight_decay"] == (0.5 if p.ndim > 1 else 0)


@pytest.mark.parametrize("name", ["adamw", "lars", "sgd"])
def test_a_step_is_scaled_and_a_factor_of_one_changes_nothing(name: str) -> None:
    start = [torch.nn.Parameter(torch.full((2, 2), 3.0)), torch.nn.Parameter(torch.full((2, 2), 3.0))]

    def moved(**given: dict[int, float]) -> torch.Tensor:
        weights = copy.deepcopy(start)
        scales = {weights[i]: scale for i, scale in given.get("scales", {}).items()}
        optimizer = build_optimizer(name, weights, lr=0.01, weight_decay=0.1, clip=False, rate_scales=scales)
        for p in weights:
            p.grad = torch.ones_like(p)
        optimizer.step()
        return torch.stack([w - p for w, p in zip(start, weights, strict=True)]).detach()

    plain, halved = moved(), moved(scales={1: 0.5})
    assert torch.equal(moved(scales={0: 1.0, 1: 1.0}), plain)
    assert torch.equal(halved[0], plain[0])
    torch.testing.assert_close(halved[1], plain[1] / 2, rtol=1e-4, atol=1e-7)
