import dataclasses
import json

import pytest
import torch
from torch import nn

from corecli.base import config as cfg
from corecli.base.errors import UsageError
from corecli.commands.train_gen.presets import PRESETS
from corecli.generators import adm
from corecli.generators.parts.diffusion import to_pixels, to_unit_range
from corecli.nets.unet import AdmUnet, norm_groups_for


@pytest.fixture(scope="module")
def table10() -> AdmUnet:
    with torch.device("meta"):
        return AdmUnet(
            image_size=32,
            in_channels=3,
            out_channels=6,
            channels=128,
            channel_mult=(1, 2, 2, 2),
            num_res_blocks=3,
            attention_resolutions=(16, 8),
            head_channels=64,
            norm_groups=32,
            dropout=0.1,
            takes_vector=False,
        )


def tiny(**changes) -> adm.Config:
    small = {"image_size": 16, "learn_sigma": False, "channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}
    small |= {"attention_resolutions": (8,), "head_channels": 32, "dropout": 0.0}
    return adm.Config(**{**small, **changes})


def test_table_10_has_the_published_size(table10: AdmUnet) -> None:
    """57,094,662 is guided-diffusion's own count at CORE's Table 10."""
    assert sum(p.numel() for p in table10.parameters()) == 57_094_662


def test_table_10_is_the_default() -> None:
    names = {f.name for f in dataclasses.fields(adm.Config)}
    published = PRESETS["adm-cifar"]
    preset = {name: value for name, value in published.items() if name in names}
    preset |= cfg.parse_fields(adm.Config, cfg.named_values(published["set"]), where="adm")
    assert adm.Config(**preset) == dataclasses.replace(adm.Config(), learn_sigma=True)
    assert adm.Config().learns_sigma
    assert {"channels", "channel_mult", "head_channels", "dropout", "schedule", "learn_sigma"} <= preset.keys()


def test_middle_attention_has_a_norm_and_dropout_is_everywhere(table10: AdmUnet) -> None:
    attention = table10.unet.mid_block.attentions[0]  # type: ignore[union-attr, index]
    assert isinstance(attention.group_norm, nn.GroupNorm) and attention.group_norm.num_groups == 32
    assert attention.heads == 4
    dropouts = [m.p for m in table10.modules() if isinstance(m, nn.Dropout) and m.p]
    assert dropouts == [0.1] * 36  # one for each residual block


def test_last_layers_start_at_zero() -> None:
    """52 layers at Table 10: the second convolution of 36 residual blocks, 15 attention outputs and the last one."""
    small = adm.build(adm.Config(channels=32, head_channels=32, dropout=0.0))
    zero = [m for m in small.network.modules() if isinstance(m, nn.Conv2d | nn.Linear) and not m.weight.any()]
    assert len(zero) == 52
    assert all(m.bias is not None and not m.bias.any() for m in zero)
    x = torch.randn(1, 3, 32, 32)
    assert not small.network(x, torch.tensor([3])).any()


def test_norm_groups_divide_and_are_recorded() -> None:
    assert norm_groups_for(128, (1, 2, 2, 2)) == 32
    assert norm_groups_for(32, (1, 2)) == 8
    assert norm_groups_for(16, (2, 3, 4)) == 4
    assert norm_groups_for(6, (1, 2)) == 1
    assert adm.build(tiny()).config.norm_groups == 8


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"channels": 8, "head_channels": 8, "channel_mult": (1,), "attention_resolutions": (16,)}, 16),
        ({"channels": 12, "head_channels": 4, "channel_mult": (1, 2, 3), "attention_resolutions": ()}, 8),
        ({"channels": 16, "head_channels": 16, "channel_mult": (2, 3, 4), "num_res_blocks": 2, "image_size": 28}, 28),
    ],
)
def test_other_shapes_work(changes: dict, size: int) -> None:
    generator = adm.build(tiny(**{"image_size": size, **changes}))
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    generator.loss(images, None, generator.draw(0, 0, batch=2)).backward()
    assert generator.generate([0, 1], steps=2).shape == images.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 30, "channel_mult": (1, 2, 2)}, "30 px cannot be halved 2 times.*multiple of 4"),
        ({"head_channels": 64, "channel_mult": (1, 3)}, "heads of 64 channels.*96"),
        ({"norm_groups": 7}, "7 norm groups"),
        ({"schedule": "quadratic"}, "unknown schedule"),
        ({"condition": "text"}, "unknown condition"),
        ({"condition": "features"}, "2 or more dimensions"),
        ({"condition": "labels"}, "number of classes"),
        ({"condition_dropout": 1.0}, "outside 0 to 1"),
        ({"feature_noise": 0.1}, "feature noise"),
        (
            {"condition": "features", "condition_dim": 4, "feature_normalization": "l3"},
            "unknown feature normalization 'l3'",
        ),
    ],
)
def test_choices_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        adm.build(tiny(**changes))


def test_config_survives_json() -> None:
    config = adm.build(tiny(condition="labels", num_classes=3)).config
    again = adm.build(adm.Config(**json.loads(json.dumps(dataclasses.asdict(config)))))
    assert again.config == config


def test_pixels_survive_the_round_trip() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_pixels(to_unit_range(pixels)), pixels)
    assert torch.equal(to_pixels((pixels.float() + 0.49) / 127.5 - 1), pixels)  # rounds, where ADM truncates
    assert to_pixels(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_bf16_autocast_is_close_to_float32() -> None:
    torch.manual_seed(0)
    generator = adm.build(tiny(learn_sigma=True))
    for p in generator.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    draws = generator.draw(0, 0, batch=4)
    full = generator.loss(images, None, draws)
    with torch.autocast("cpu", torch.bfloat16):
        half = generator.loss(images, None, draws)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.03)
