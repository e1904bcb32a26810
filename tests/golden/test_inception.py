"""The Inception network against an analytic case, torchvision's shapes, pytorch-fid and torch-fidelity."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from corecli.nets.inception import BLOCKS, DIMS, FidInception
from corecli.nets.weights.inception import load_inception

Weights = dict[str, Tensor]


def random_weights() -> Weights:
    """He-normal convolutions and BatchNorm statistics near 1 and 0, so that activations keep their size."""
    generator = torch.Generator().manual_seed(1234)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    drawn = {}
    with torch.device("meta"):
        shapes = FidInception().state_dict()
    for name, t in shapes.items():
        if t.ndim == 4:
            drawn[name] = normal(t) * (2 / t[0].numel()) ** 0.5
        elif name.startswith("fc"):
            drawn[name] = normal(t) * 0.05
        elif name.endswith("running_var"):
            drawn[name] = 1 + 0.2 * torch.rand(t.shape, generator=generator)
        elif name.endswith("num_batches_tracked"):
            drawn[name] = torch.tensor(0)
        else:
            drawn[name] = 0.1 * normal(t) + float(name.endswith("bn.weight"))
    return drawn


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights()


@pytest.fixture(scope="module")
def weights_file(weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (3, 3, 32, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def plain(weights) -> FidInception:
    net = FidInception()
    net.load_state_dict(weights)
    return net


@pytest.fixture(scope="module")
def folded(weights_file) -> FidInception:
    return load_inception(weights_file)


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_names_and_shapes_are_torchvisions():
    torchvision = pytest.importorskip("torchvision")
    peer = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    ours = {name: t.shape for name, t in FidInception().state_dict().items()}
    assert ours == {name: t.shape for name, t in peer.state_dict().items()}


def test_features_equal_pytorch_fid(plain, folded, weights, images, monkeypatch):
    peer = pytest.importorskip("pytorch_fid.inception")
    monkeypatch.setattr(peer, "load_state_dict_from_url", lambda *args, **kwargs: weights)
    with torch.no_grad():
        expected = peer.InceptionV3([3]).eval()(images.float() / 255)[0].flatten(1)
    assert torch.equal(plain.features(images, "torch")["pool"], expected)
    assert_close(folded.features(images, "torch")["pool"], expected, 1e-5)


def test_features_and_logits_equal_torch_fidelity(plain, folded, weights_file, images):
    peer = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    net = peer.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], str(weights_file))
    pool, logits = net(images)
    assert torch.equal(plain.features(images, "tf1")["pool"], pool)
    found = folded.features(images)
    assert_close(found["pool"], pool, 1e-5)
    assert_close(found["logits"], logits, 1e-5)


def test_zero_kernels_show_the_biases_in_order():
    """With every kernel 0 each unit is relu(beta), whatever the image: which channel is which can be read off."""
    net = FidInception()
    betas = torch.randn(100_000, generator=torch.Generator().manual_seed(2))
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.zeros_(module.weight)
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.bias.copy_(betas[: module.num_features])
            betas = betas[module.num_features :]
    found = net(torch.zeros(2, 3, 299, 299))
    last = [net.Mixed_7c.get_submodule(name).bn.bias.relu() for name in _last_convs("Mixed_7c")]
    assert_close(found["pool"][1], torch.cat(last), 1e-6)
    assert torch.equal(found["spatial"][0].view(17, 17, 7)[3, 4], net.Mixed_6d.branch1x1.bn.bias[:7].relu())
    assert_close(found["logits"][0], net.fc.weight @ torch.cat(last), 1e-6)


def _last_convs(block: str) -> list[str]:
    names = []
    for branch in BLOCKS[block][1]:
        last = branch.steps[-1]
        names += [conv.name for conv in ((last,) if hasattr(last, "name") else last)]
    return names


def test_spatial_features_are_the_first_channels_of_mixed_6d(plain, images):
    seen: list[Tensor] = []
    hook = plain.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, out: seen.append(out))
    found = plain.features(images)
    hook.remove()
    assert {name: t.shape[1] for name, t in found.items()} == DIMS
    assert torch.equal(found["spatial"], seen[0].permute(0, 2, 3, 1)[..., :7].reshape(3, -1))


def test_features_do_not_depend_on_the_batch(folded, images):
    whole = folded.features(images)["pool"]
    alone = torch.cat([folded.features(image[None])["pool"] for image in images])
    assert_close(alone, whole, 1e-6)
