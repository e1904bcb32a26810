"""Checkpoints of other tools: the same features as in the network they were saved from, or a refusal by name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from corecli.base.errors import DataError, MissingInputError, UsageError
from corecli.nets.encoder import IMAGENET_MEAN, IMAGENET_STD, load_encoder
from corecli.nets.weights.encoders import recognize

MEAN, STD = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
IMAGES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def network(*, kernel: int = 7, padding: int = 1) -> Any:
    """A torchvision ResNet-18 with random statistics, so that a lost weight shows in its features."""
    torch.manual_seed(0)
    net: Any = torchvision.models.resnet18()
    if kernel == 3:
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, padding, bias=False), nn.Identity()
    return randomized(net)


def randomized(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5)
    return net.eval()


@torch.no_grad()
def features(net: Any) -> Tensor:
    """Of IMAGES, normalized; the classifier is taken off."""
    net.fc = nn.Identity()
    h = net((IMAGES.float() / 255 - MEAN) / STD)
    assert h.std() > 0.1
    return h


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def encoded(path: Path) -> Tensor:
    encoder = load_encoder(path)
    encoder.spec["preprocessing"]["image_size"] = None  # ImageNet's 224 px would only take time
    return encoder.encode(IMAGES)


def test_torchvision(tmp_path: Path) -> None:
    net = network()
    torch.save(net.state_dict(), tmp_path / "resnet18-f37072fd.pth")
    encoder = load_encoder(tmp_path / "resnet18-f37072fd.pth")
    assert encoder.spec == {
        "backbone": "resnet18",
        "stem": "imagenet",
        "projector": None,
        "preprocessing": {
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            "image_size": 224,
            "interpolation": "bicubic",
            "resize": 256,
        },
    }
    torch.testing.assert_close(encoded(tmp_path / "resnet18-f37072fd.pth"), features(net))


def test_files_of_the_first_torch_versions(tmp_path: Path) -> None:
    net = network()
    state = {name: value for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.testing.assert_close(encoded(tmp_path / "old.pth"), features(net))


def test_solo_learn_pads_its_cifar_stem_by_2(tmp_path: Path) -> None:
    net = network(kernel=3, padding=2)
    state = prefixed("backbone.", {n: v for n, v in net.state_dict().items() if not n.startswith("fc.")})
    state |= prefixed("momentum_backbone.", {n: v + 1 for n, v in net.state_dict().items()})
    state |= {"classifier.weight": torch.zeros(10, 512), "projector.0.weight": torch.zeros(2048, 512)}
    content = {"state_dict": state, "hyper_parameters": argparse.Namespace(method="simclr"), "epoch": 3}
    torch.save(content, tmp_path / "last.ckpt")
    assert load_encoder(tmp_path / "last.ckpt").spec["stem"] == "cifar-solo"
    torch.testing.assert_close(encoded(tmp_path / "last.ckpt"), features(net))


def test_lightning_with_a_sequential_backbone(tmp_path: Path) -> None:
    net = network()
    backbone = nn.Sequential(*list(net.children())[:-1])
    state = prefixed("backbone.", backbone.state_dict())
    state |= prefixed("backbone_momentum.", {n: v + 1 for n, v in backbone.state_dict().items()})
    state |= {"projection_head.layers.0.weight": torch.zeros(512, 512)}
    torch.save({"state_dict": state, "optimizer_states": [{"state": {}}]}, tmp_path / "epoch=9.ckpt")
    torch.testing.assert_close(encoded(tmp_path / "epoch=9.ckpt"), features(net))


def test_lightly_own_resnet_loses_its_first_relu_in_a_sequential(tmp_path: Path) -> None:
    net: Any = randomized(pytest.importorskip("lightly.models").ResNetGenerator("resnet-18"))
    net.bn1.bias.data -= 1
    backbone = nn.Sequential(*list(net.children())[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    torch.save({"state_dict": prefixed("backbone.", backbone.state_dict())}, tmp_path / "cifar.ckpt")
    torch.testing.assert_close(encoded(tmp_path / "cifar.ckpt"), features(backbone))
    torch.save(net.state_dict(), tmp_path / "whole.pt")
    net.linear = nn.Identity()
    torch.testing.assert_close(encoded(tmp_path / "whole.pt"), features(net))


def test_moco_and_dino_give_the_network_their_authors_evaluate(tmp_path: Path) -> None:
    net = network()
    other = {name: value + 1 for name, value in net.state_dict().items()}
    heads = {"module.encoder_q.fc.0.weight": torch.zeros(2, 2), "module.queue": torch.zeros(2, 2)}
    query = prefixed("module.encoder_q.", {n: v for n, v in net.state_dict().items() if not n.startswith("fc.")})
    moco = {"arch": "resnet18", "state_dict": {**query, **prefixed("module.encoder_k.", other), **heads}}
    torch.save({**moco, "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}}}, tmp_path / "moco.pth.tar")
    torch.testing.assert_close(encoded(tmp_path / "moco.pth.tar"), features(network()))
    dino = {"student": prefixed("module.backbone.", other), "teacher": prefixed("backbone.", net.state_dict())}
    torch.save(dino, tmp_path / "dino.pth")
    torch.testing.assert_close(encoded(tmp_path / "dino.pth"), features(net))


def test_byol_keeps_the_same_network_under_two_names(tmp_path: Path) -> None:
    net = network()
    other = {name: value + 1 for name, value in net.state_dict().items()}
    parts = {"net.": net.state_dict(), "online_encoder.net.": net.state_dict(), "target_encoder.net.": other}
    state = {name: value for prefix, part in parts.items() for name, value in prefixed(prefix, part).items()}
    state |= {"online_encoder.projector.net.0.weight": torch.zeros(2, 2), "online_predictor.0.weight": torch.zeros(2)}
    torch.save(state, tmp_path / "byol.pt")
    torch.testing.assert_close(encoded(tmp_path / "byol.pt"), features(net))


def test_moco_v3_resnet_is_the_online_one(tmp_path: Path) -> None:
    net = network()
    other = {name: value + 1 for name, value in net.state_dict().items()}
    state = {n: v for n, v in net.state_dict().items() if not n.startswith("fc.")}
    state = prefixed(
        "module.base_encoder.", {**state, "fc.0.weight": torch.zeros(2, 2), "fc.4.running_var": other["fc.bias"]}
    )
    state |= prefixed("module.momentum_encoder.", other) | {"module.predictor.0.weight": torch.zeros(2, 2)}
    torch.save({"arch": "resnet18", "state_dict": state, "epoch": 300}, tmp_path / "r-18-300ep.pth.tar")
    torch.testing.assert_close(encoded(tmp_path / "r-18-300ep.pth.tar"), features(net))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_the_number_of_blocks_gives_the_depth(name: str) -> None:
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    assert recognize(state, where="file").backbone == name


def test_what_is_not_recognized_is_named(tmp_path: Path) -> None:
    state = network().state_dict()

    def refusal(content: dict[str, Any]) -> str:
        torch.save(content, tmp_path / "f.pth")
        with pytest.raises(DataError) as error:
            load_encoder(tmp_path / "f.pth")
        return str(error.value)

    assert "belong to no layer, such as 'backbone.gate.weight'" in refusal({**state, "gate.weight": torch.zeros(1)})
    missing = {name: value for name, value in state.items() if name != "layer2.0.bn1.bias"}
    assert "1 weights are missing, such as 'backbone.layer2.0.bn1.bias'" in refusal(missing)
    other = {name: value + 1 for name, value in state.items()}
    assert "under 'a.', 'b.'" in refusal({**prefixed("a.", state), **prefixed("b.", other)})
    assert "no ResNet or ViT backbone found" in refusal({"blocks.0.attn.qkv.weight": torch.zeros(6, 2)})
    assert "unknown ResNet: stages of [2, 2, 2, 3] basic blocks" in refusal(
        {**state, "layer4.2.conv1.weight": torch.zeros(1)}
    )
    wide = {**state, "layer1.0.conv1.weight": torch.zeros(128, 64, 3, 3)}
    assert "'backbone.layer1.0.conv1.weight' has shape (128, 64, 3, 3)" in refusal(wide)


def test_code_in_a_file_is_refused(tmp_path: Path) -> None:
    torch.save({"net": nn.Linear(1, 1)}, tmp_path / "f.pt")
    with pytest.raises(DataError, match="not a safe, readable torch file"):
        load_encoder(tmp_path / "f.pt")


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_timm_weights_from_a_file(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model(name, num_classes=7).eval()
    torch.save({"model": prefixed("module.", net.state_dict())}, tmp_path / "w.pth")
    encoder = load_encoder(f"timm:{name}:{tmp_path / 'w.pth'}")
    config = net.pretrained_cfg
    preprocessing = encoder.spec["preprocessing"]
    assert (tuple(preprocessing["mean"]), preprocessing["image_size"]) == (config["mean"], 224)
    x = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    normalized = (x / 255 - torch.tensor(config["mean"])[:, None, None]) / torch.tensor(config["std"])[:, None, None]
    with torch.no_grad():
        expected = net.forward_head(net.forward_features(normalized), pre_logits=True)
    torch.testing.assert_close(encoder.encode(x), expected)


def test_timm_refusals(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    with pytest.raises(UsageError, match="did you mean 'resnet18'"):
        load_encoder("timm:resnet81")
    with pytest.raises(MissingInputError):
        load_encoder(f"timm:resnet18:{tmp_path / 'none.pth'}")
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "w.pth")
    with pytest.raises(DataError, match="weights are missing"):
        load_encoder(f"timm:resnet18:{tmp_path / 'w.pth'}")
