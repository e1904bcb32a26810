"""Encoders: what they compute, carry, save and hand to other libraries."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from corecli.base import checkpoint
from corecli.base.errors import DataError, MissingInputError, UnavailableError, UsageError
from corecli.nets.backbones import build_backbone
from corecli.nets.encoder import Encoder, build_encoder, load_encoder, save_backbone, save_encoder


def images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape or (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def encoder() -> Encoder:
    return build_encoder("resnet10-tiny", image_size=8, projector_hidden=16, projector_dim=6)


@pytest.mark.parametrize(
    ("name", "size", "stem", "num_features"),
    [
        ("resnet10-tiny", 8, "cifar", 256),
        ("resnet18", 64, "cifar", 512),
        ("resnet18", 65, "imagenet", 512),
        ("resnet34", None, "imagenet", 512),
        ("resnet50", 32, "cifar", 2048),
    ],
)
def test_the_image_size_chooses_the_stem(name: str, size: int | None, stem: str, num_features: int) -> None:
    encoder = build_encoder(name, image_size=size, projector_dim=None)
    assert (encoder.spec["stem"], encoder.num_features) == (stem, num_features)
    h, z = encoder.eval()(torch.rand(2, 3, 32, 32))
    assert h.shape == (2, num_features)
    assert z is h


def test_cifar_stem_is_3x3_padded_by_1_without_pooling() -> None:
    backbone = build_encoder("resnet18", image_size=224, stem="cifar", projector_dim=None).backbone
    reference = torchvision.models.resnet18(num_classes=3)
    reference.conv1, reference.maxpool, reference.fc = (
        nn.Conv2d(3, 64, 3, 1, 1, bias=False),
        nn.Identity(),
        nn.Identity(),
    )
    reference.load_state_dict(backbone.state_dict(), strict=True)
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(backbone.eval()(x), reference.eval()(x))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_resnets_equal_those_of_torchvision(name: str) -> None:
    """The same weights for the same seed, the same outputs and gradients, bit for bit."""
    models = []
    for build in (getattr(torchvision.models, name), lambda: build_backbone(name, stem="imagenet", image_size=None)[0]):
        torch.manual_seed(0)
        models.append(build())
    reference, ours = models
    reference.fc = nn.Identity()
    expected, found = reference.state_dict(), ours.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    x = torch.rand(2, 3, 32, 32)
    for model in models:
        model(x).square().sum().backward()
    assert torch.equal(ours(x), reference(x))
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(ours.parameters(), reference.parameters(), strict=True))


def test_forward_normalizes_and_projects(encoder: Encoder) -> None:
    x = torch.rand(4, 3, 8, 8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    h, z = encoder.eval()(x)
    torch.testing.assert_close(h, encoder.backbone((x - mean[:, None, None]) / std[:, None, None]))
    hidden, _, last = encoder.projector
    torch.testing.assert_close(z, last(hidden(h).clamp(min=0)))
    assert z.shape == (4, 6)


def test_projector_with_batchnorm(tmp_path: Path) -> None:
    encoder = build_encoder("resnet10-tiny", image_size=8, projector_hidden=16, projector_dim=6, projector_norm="batch")
    assert encoder.projector is not None
    assert [type(m).__name__ for m in encoder.projector] == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    _, z = encoder.train()(torch.rand(16, 3, 8, 8))
    torch.testing.assert_close(z.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    save_encoder(tmp_path / "f.safetensors", encoder)
    assert load_encoder(tmp_path / "f.safetensors").spec == encoder.spec


def test_encode_is_forward_in_evaluation_mode(encoder: Encoder) -> None:
    encoder.train()
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    h, z = encoder.encode(images(), "backbone"), encoder.encode(images(), "projector")
    assert encoder.training
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    expected_h, expected_z = encoder.eval()(images().float() / 255)
    assert torch.equal(h, expected_h)
    assert torch.equal(z, expected_z)
    assert h.dtype == torch.float32
    assert not h.requires_grad
    assert not encoder.training


def test_encoded_features_can_train_a_probe(encoder: Encoder) -> None:
    probe = nn.Linear(256, 2)
    probe(encoder.encode(images())).sum().backward()
    assert probe.weight.grad is not None


def test_encode_in_batches(encoder: Encoder) -> None:
    torch.testing.assert_close(encoder.encode(images(7, 3, 8, 8), batch_size=3), encoder.encode(images(7, 3, 8, 8)))
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder.encode(images()).dtype == torch.float32


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(20, 20), (5, 5), (12, 24), (30, 15)])
def test_encode_resizes_as_torchvision_does(mode: str, shape: tuple[int, int]) -> None:
    encoder = build_encoder("resnet10-tiny", image_size=8, interpolation=mode, projector_dim=None)
    x = images(2, 3, *shape)
    resized = torchvision.transforms.functional.resize(
        x.float() / 255, 8, torchvision.transforms.InterpolationMode(mode)
    )
    cropped = torchvision.transforms.functional.center_crop(resized.clamp(0, 1), 8)
    torch.testing.assert_close(encoder.encode(x), encoder.eval()(cropped)[0], rtol=1e-4, atol=1e-4)


def test_without_a_size_images_are_taken_as_they_are() -> None:
    encoder = build_encoder("resnet10-tiny", image_size=None, stem="cifar", projector_dim=None)
    x = images(2, 3, 9, 13)
    assert torch.equal(encoder.encode(x), encoder.eval()(x.float() / 255)[0])


def test_weights_are_a_function_of_the_seed(encoder: Encoder) -> None:
    state = torch.get_rng_state()
    again = build_encoder("resnet10-tiny", image_size=8, projector_hidden=16, projector_dim=6)
    other = build_encoder("resnet10-tiny", image_size=8, projector_hidden=16, projector_dim=6, seed=1)
    assert encoder.fingerprint == again.fingerprint != other.fingerprint
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["f.safetensors", "f.pt"])
def test_saved_and_loaded(encoder: Encoder, tmp_path: Path, name: str) -> None:
    header = save_encoder(tmp_path / name, encoder, config={"steps": 3}, parents={"data": "abc"})
    loaded = load_encoder(str(tmp_path / name))
    assert loaded.spec == encoder.spec
    assert loaded.fingerprint == encoder.fingerprint == header["fingerprint"]
    assert torch.equal(loaded.encode(images(), "projector"), encoder.encode(images(), "projector"))
    found = checkpoint.read_header(tmp_path / name)
    assert found is not None
    assert (found["kind"], found["spec"], found["config"]) == ("encoder", encoder.spec, {"steps": 3})


def exported(path: Path, encoder: Encoder) -> dict[str, torch.Tensor]:
    """The weights of an exported file, read as its users do."""
    save_backbone(path, encoder)
    return torch.load(path, weights_only=True) if path.suffix == ".pt" else safetensors.torch.load_file(path)


@pytest.mark.parametrize("name", ["r.pt", "r.safetensors"])
def test_export_loads_strictly_in_torchvision(tmp_path: Path, name: str) -> None:
    encoder = build_encoder("resnet18", image_size=224, projector_dim=6)
    net = torchvision.models.resnet18()
    net.fc = nn.Identity()
    net.load_state_dict(exported(tmp_path / name, encoder), strict=True)
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(net.eval()(encoder._normalized(x)), encoder.eval()(x)[0])


@pytest.mark.parametrize(
    ("name", "timm_name", "options"),
    [
        ("resnet18", "resnet18", {}),
        ("vit-tiny/4", "vit_tiny_patch16_224", {"patch_size": 4}),
        ("vit-small-moco/8", "vit_small_patch16_224", {"patch_size": 8, "num_heads": 12}),
        ("timm:vit_tiny_patch16_224", "vit_tiny_patch16_224", {}),
    ],
)
def test_export_loads_strictly_in_timm(tmp_path: Path, name: str, timm_name: str, options: dict[str, int]) -> None:
    timm = pytest.importorskip("timm")
    sized = {} if name == "resnet18" else {"img_size": 32}
    stem = "imagenet" if name == "resnet18" else None
    encoder = build_encoder(name, image_size=32, stem=stem, projector_dim=6)
    net = timm.create_model(timm_name, num_classes=0, **options, **sized)
    net.load_state_dict(exported(tmp_path / "f.pt", encoder), strict=True)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(net.eval()(encoder._normalized(x)), encoder.eval()(x)[0], rtol=1e-4, atol=1e-5)


def test_an_exported_backbone_comes_back_with_its_preprocessing(encoder: Encoder, tmp_path: Path) -> None:
    exported(tmp_path / "f.safetensors", encoder)
    loaded = load_encoder(tmp_path / "f.safetensors")
    assert loaded.spec == {**encoder.spec, "projector": None}
    assert torch.equal(loaded.encode(images()), encoder.encode(images()))


def test_a_vit_through_timm(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    encoder = build_encoder("timm:vit_tiny_patch16_224", image_size=32, projector_dim=4)
    assert (encoder.num_features, encoder.spec["stem"]) == (192, None)
    save_encoder(tmp_path / "f.safetensors", encoder)
    loaded = load_encoder(tmp_path / "f.safetensors")
    x = images(2, 3, 40, 40)
    assert torch.equal(loaded.encode(x, "projector"), encoder.encode(x, "projector"))
    assert build_encoder("timm:vit_tiny_patch16_224", image_size=None).spec["preprocessing"]["image_size"] == 224


def test_a_projector_is_taken_off(encoder: Encoder) -> None:
    encoder.set_projector(None)
    assert encoder.spec["projector"] is None
    with pytest.raises(UsageError, match="no projector"):
        encoder.encode(images(), "projector")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet81"}, "did you mean 'resnet18'"),
        ({"stem": "imagnet"}, "did you mean 'imagenet'"),
        ({"projector_norm": "group"}, "unknown projector norm"),
        ({"backbone": "timm:resnet18", "stem": "cifar"}, "a stem of its own"),
        ({"backbone": "timm:resnet1"}, "timm has no model 'resnet1'"),
    ],
)
def test_what_cannot_be_built(options: dict[str, str], message: str) -> None:
    if options.get("backbone", "").startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(UsageError, match=message):
        build_encoder(**{"backbone": "resnet18", **options}, image_size=32)


def test_timm_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UnavailableError, match="timm is not installed"):
        load_encoder("timm:resnet18")


def test_files_that_hold_no_encoder(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        load_encoder(tmp_path / "none.safetensors")
    checkpoint.save(tmp_path / "z.safetensors", {"features": torch.zeros(2, 2)}, kind="features")
    with pytest.raises(DataError, match="of kind 'features', not 'encoder'"):
        load_encoder(tmp_path / "z.safetensors")
    tensors = encoder.state_dict()
    checkpoint.save(tmp_path / "a.safetensors", {**tensors, "odd": torch.zeros(1)}, kind="encoder", spec=encoder.spec)
    with pytest.raises(DataError, match="belong to no layer, such as 'odd'"):
        load_encoder(tmp_path / "a.safetensors")
    tensors["projector.2.bias"] = torch.zeros(9)
    checkpoint.save(tmp_path / "b.safetensors", tensors, kind="encoder", spec=encoder.spec)
    with pytest.raises(DataError, match=r"'projector.2.bias' has shape \(9,\), not \(6,\)"):
        load_encoder(tmp_path / "b.safetensors")
    checkpoint.save(tmp_path / "c.safetensors", tensors, kind="encoder", spec={"backbone": "resnet18"})
    with pytest.raises(DataError, match="spec: expected a member 'stem'"):
        load_encoder(tmp_path / "c.safetensors")
