"""Published projectors: layers, values, and encoders with a projector."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from corecli.base.errors import UsageError
from corecli.nets.encoder import build_encoder, load_encoder, save_encoder
from corecli.nets.projector import ProjectorSpec, build_projector

SIZES = {"hidden": 6, "dim": 4}
SHORT = {nn.Linear: "L", nn.BatchNorm1d: "B", nn.LayerNorm: "N", nn.ReLU: "R", nn.GELU: "G"}


def spec(**fields: Any) -> ProjectorSpec:
    return cast(ProjectorSpec, {**SIZES, "norm": "batch", **fields})


@pytest.mark.parametrize(
    ("fields", "layers", "biases"),
    [
        pytest.param({"norm": "none"}, "LRL", True, id="simclr of solo-learn, moco v2"),
        pytest.param({}, "LBRLB", False, id="simclr's own"),
        pytest.param({"bias": True, "last_norm": "none"}, "LBRL", True, id="byol"),
        pytest.param({"layers": 3, "last_norm": "plain"}, "LBRLBRLb", False, id="simsiam"),
        pytest.param({"layers": 3, "last_norm": "none"}, "LBRLBRL", False, id="barlow twins"),
        pytest.param({"last_norm": "plain"}, "LBRLb", False, id="moco v3"),
        pytest.param({"norm": "none", "layers": 3, "activation": "gelu"}, "LGLGL", True, id="dino"),
        pytest.param({"norm": "layer", "layers": 3, "last_norm": "plain"}, "LNGLNGLn", True, id="synclr's code"),
        pytest.param({"norm": "none", "layers": 1}, "L", True, id="linear"),
    ],
)
def test_published_projectors(fields: dict[str, Any], layers: str, biases: bool) -> None:
    net = build_projector(5, spec(**fields))
    words = [SHORT[cast(type[nn.Module], type(m))] for m in net]
    found = "".join(
        word if word in "RG" or len(list(m.parameters())) else word.lower() for word, m in zip(words, net, strict=True)
    )
    assert found == layers
    linear = [m for m in net if isinstance(m, nn.Linear)]
    assert {m.bias is not None for m in linear} == {biases}
    assert [m.in_features for m in linear] == [5, *[6] * (len(linear) - 1)]
    assert net(torch.randn(3, 5)).shape == (3, 4)


def test_values_of_a_projector_without_affine_norm_at_its_end() -> None:
    net = build_projector(5, spec(last_norm="plain")).double()
    x = torch.randn(7, 5, dtype=torch.float64)

    def normalized(h: torch.Tensor) -> torch.Tensor:
        return (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt()

    hidden = normalized(x @ cast(torch.Tensor, net[0].weight).T).clamp(min=0)
    torch.testing.assert_close(net(x), normalized(hidden @ cast(torch.Tensor, net[3].weight).T))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "group"}, "unknown projector norm 'group'"),
        ({"last_norm": "afine"}, "did you mean 'affine'"),
        ({"activation": "swish"}, "unknown projector activation"),
        ({"layers": 0}, "at least 1 layer"),
    ],
)
def test_invalid_specs_are_errors(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_projector(5, spec(**fields))


def test_an_encoder_gets_the_projector_of_a_method(tmp_path: Path) -> None:
    encoder = build_encoder("resnet10-tiny", image_size=8, projector_dim=None).eval()
    other = copy.deepcopy(encoder)
    state = torch.get_rng_state()
    encoder.set_projector(spec(layers=3, last_norm="plain"), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert encoder.projector is not None
    assert not encoder.projector.training
    assert encoder.projector_dim == 4
    other.set_projector(spec(layers=3, last_norm="plain"), seed=1)
    assert other.fingerprint == encoder.fingerprint
    other.set_projector(spec(layers=3, last_norm="plain"), seed=2)
    assert other.fingerprint != encoder.fingerprint
    save_encoder(tmp_path / "f.safetensors", encoder)
    loaded = load_encoder(tmp_path / "f.safetensors")
    assert loaded.spec == encoder.spec
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(loaded.encode(images, "projector"), encoder.encode(images, "projector"))
    encoder.set_projector(None)
    assert (encoder.projector, encoder.projector_dim, encoder.spec["projector"]) == (None, None, None)
