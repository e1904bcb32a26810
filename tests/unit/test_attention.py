"""The class token's attention, beside that of the layer itself when it multiplies step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from corecli.base.errors import UsageError
from corecli.commands.show.pictures import keep_mass
from corecli.nets.attention import class_attention
from corecli.nets.encoder import build_encoder

pytest.importorskip("timm")


def test_attention_is_that_of_the_network() -> None:
    encoder = build_encoder("vit-micro/4", image_size=16, projector_dim=None)
    backbone: Any = encoder.backbone
    layer = backbone.blocks[-1].attn
    layer.fused_attn = False
    seen: list[torch.Tensor] = []
    layer.attn_drop.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = _images(24, 16)
    attention, shown = class_attention(encoder, images)
    assert attention.shape == (2, 2, 4, 4)
    assert torch.allclose(attention.flatten(2), seen[0][:, :, 0, 1:], atol=1e-6)
    assert torch.equal(shown, images[:, :, 4:20])  # resized to 16 px: the middle of 24 x 16
    assert not backbone._forward_pre_hooks
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("resnet10-tiny", 16, "no attention to show"),
        ("timm:test_vit3", 160, "no class token"),
        ("timm:eva02_tiny_patch14_224", 224, "no attention to show"),
    ],
)
def test_networks_without_it_are_refused(name: str, size: int, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        class_attention(build_encoder(name, image_size=size, projector_dim=None), _images(16, 16))


def test_the_strongest_patches_that_hold_the_mass_are_kept() -> None:
    attention = torch.tensor([[0.05, 0.4], [0.1, 0.25]])[None]  # of which the rest went to the class token
    assert keep_mass(attention, 0.6).tolist() == [[[False, True], [False, True]]]
    assert keep_mass(attention, 0.9).tolist() == [[[False, True], [True, True]]]
    assert keep_mass(attention, 0.3).tolist() == [[[False, True], [False, False]]]
    assert keep_mass(attention, 1.0).all()


def _images(height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, height, width), dtype=np.uint8))
