"""Layouts of Inception weight files: which are accepted, and how others are refused."""

from __future__ import annotations

import pickle

import pytest
import safetensors.torch
import torch
from torch import Tensor

from corecli.base.checkpoint import fingerprint
from corecli.base.errors import DataError, UnavailableError
from corecli.nets.inception import FidInception
from corecli.nets.weights.inception import canonical_weights, load_inception, nvidia_names

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Tensors of a random network; gamma is 1, as in a new BatchNorm."""
    return dict(FidInception().state_dict())


@pytest.fixture(scope="module")
def canonical(weights) -> str:
    return fingerprint(canonical_weights(weights))


def nvidia(weights: Weights, join: str, leaves: tuple[str, str, str]) -> Weights:
    """The tensors with the names of NVIDIA's TorchScript file; `join` separates the towers of the last blocks."""
    renamed = {"output.weight": weights["fc.weight"], "output.bias": weights["fc.bias"]}
    roles = dict(zip(("bias", "running_mean", "running_var"), leaves, strict=True))
    for ours, theirs in nvidia_names().items():
        if theirs.startswith(("layers.mixed_9", "layers.mixed_10")):
            head, block, rest = theirs.split(".", 2)
            theirs = ".".join((head, block, rest.replace(".", join)))
        renamed[f"{theirs}.weight"] = weights[f"{ours}.conv.weight"]
        renamed |= {f"{theirs}.{leaf}": weights[f"{ours}.bn.{role}"] for role, leaf in roles.items()}
    return renamed


def test_nvidia_names_are_the_tensorflow_graphs():
    names = nvidia_names()
    assert len(set(names.values())) == 94
    assert names["Conv2d_1a_3x3"] == "layers.conv"
    assert names["Conv2d_4a_3x3"] == "layers.conv_4"
    assert names["Mixed_5b.branch5x5_2"] == "layers.mixed.tower.conv_1"
    assert names["Mixed_5b.branch_pool"] == "layers.mixed.tower_2.conv"
    assert names["Mixed_6a.branch3x3"] == "layers.mixed_3.conv"
    assert names["Mixed_6a.branch3x3dbl_3"] == "layers.mixed_3.tower.conv_2"
    assert names["Mixed_6d.branch7x7dbl_5"] == "layers.mixed_6.tower_1.conv_4"
    assert names["Mixed_7a.branch7x7x3_4"] == "layers.mixed_8.tower_1.conv_3"
    assert names["Mixed_7c.branch3x3_2b"] == "layers.mixed_10.tower.mixed.conv_1"
    assert names["Mixed_7c.branch3x3dbl_3a"] == "layers.mixed_10.tower_1.mixed.conv"


@pytest.mark.parametrize(
    "layout",
    [
        lambda w: w,
        lambda w: {n: t for n, t in w.items() if "num_batches" not in n},
        lambda w: {f"state_dict.module.{n}": t for n, t in w.items()},
        lambda w: {n: t.double() if t.is_floating_point() else t for n, t in w.items()},
        lambda w: nvidia(w, "_", ("beta", "mean", "var")),
        lambda w: nvidia(w, ".", ("shift", "mean", "var")),
    ],
    ids=["with-counters", "without-counters", "nested", "double", "nvidia-flat", "nvidia-nested"],
)
def test_every_layout_has_the_same_fingerprint(layout, weights, canonical):
    assert fingerprint(canonical_weights(layout(weights))) == canonical


def test_other_weights_have_another_fingerprint(weights, canonical):
    other = weights | {"fc.bias": weights["fc.bias"] + 1e-6}
    assert fingerprint(canonical_weights(other)) != canonical


@pytest.mark.parametrize("name", ["inception.pth", "inception.safetensors", "inception.bin"])
def test_files_load_by_content(name, weights, canonical, tmp_path):
    path = tmp_path / name
    if name.endswith("safetensors"):
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path)
    net = load_inception(path)
    assert net.fingerprint == canonical
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())


def test_a_missing_file_names_the_public_weights(tmp_path):
    with pytest.raises(UnavailableError, match="pt_inception-2015-12-05-6726825d") as caught:
        load_inception(tmp_path / "none.pth")
    assert caught.value.exit_code == 69
    assert "none.pth" in str(caught.value)


@pytest.mark.parametrize("aux", [True, False])
def test_imagenet_weights_are_refused_by_name(aux, weights):
    imagenet = weights | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    if aux:
        imagenet["AuxLogits.fc.bias"] = torch.zeros(1000)
    with pytest.raises(DataError, match="torchvision's Inception-v3 for ImageNet, not the FID network"):
        canonical_weights(imagenet)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda w: {"weight": torch.zeros(3)}, "0 of 472"),
        (lambda w: {n: t for n, t in w.items() if n != "Mixed_7c.branch1x1.bn.bias"}, "471 of 472"),
        (lambda w: w | {"fc.weight": torch.zeros(10, 2048)}, "471 of 472"),
        (lambda w: w | {"extra": torch.zeros(1)}, "472 of 472"),
    ],
    ids=["other", "missing", "shape", "extra"],
)
def test_other_networks_are_refused_with_a_count(change, found, weights):
    with pytest.raises(DataError, match=f"{found} tensors"):
        canonical_weights(change(weights), where="file.pth")


class _Payload:
    def __reduce__(self) -> tuple:
        return (print, ("run",))


def test_pickles_and_torchscript_are_refused_with_a_hint(tmp_path, capsys):
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(_Payload()))
    torch.save({"net": _Payload()}, tmp_path / "code.pt")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    for name in ("plain.pkl", "code.pt", "script.pt"):
        with pytest.raises(DataError, match="state_dict"):
            load_inception(tmp_path / name)
    assert capsys.readouterr().out == ""
