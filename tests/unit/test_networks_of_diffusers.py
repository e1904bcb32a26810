"""Our U-Nets and autoencoders against diffusers': names, initial weights, outputs and gradients are bit-equal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from first_stages import HALVING, diffusers_model
from torch import Tensor, nn

from corecli.nets.autoencoder import Spec, build_autoencoder, decoded, encoded
from corecli.nets.latent_unet import LatentUnet
from corecli.nets.unet import AdmUnet

SHAPE: dict[str, Any] = {"image_size": 16, "channels": 16, "num_res_blocks": 2, "head_channels": 8, "norm_groups": 4}
ADM: list[dict[str, Any]] = [
    {"channel_mult": (1, 2), "attention_resolutions": (8,), "takes_vector": False, "dropout": 0.0},
    {"channel_mult": (1, 2, 3), "attention_resolutions": (16, 8), "takes_vector": True, "dropout": 0.3},
]
LATENT: list[dict[str, Any]] = [
    {"channel_mult": (1, 2), "attention_resolutions": (8,), "takes_vector": True, "context_dim": 6},
    {"channel_mult": (2, 1, 3), "attention_resolutions": (), "takes_vector": True, "context_dim": 5},
    {"channel_mult": (1, 2, 2), "attention_resolutions": (16, 8), "takes_vector": True, "context_dim": 0},
    {"channel_mult": (1, 2), "attention_resolutions": (), "takes_vector": False, "context_dim": 0},
]


def blocks(*attends: bool) -> dict[str, Any]:
    """Block types of an autoencoder, from the outermost level."""
    down = ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends]
    up = ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)]
    widths = [8 * (i + 1) for i in range(len(attends))]
    return {"down_block_types": down, "up_block_types": up, "block_out_channels": widths, "norm_num_groups": 4}


STAGES: dict[str, Spec] = {
    "kl": {"kind": "AutoencoderKL", "config": {**blocks(False, True), "scaling_factor": 1.0, "act_fn": "swish"}},
    "kl without quantization layers or attention": {
        "kind": "AutoencoderKL",
        "config": {
            **blocks(False, False, False),
            "layers_per_block": 2,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
            "mid_block_add_attention": False,
        },
    },
    "vq": {"kind": "VQModel", "config": {**blocks(False, True), "num_vq_embeddings": 9, "vq_embed_dim": 5}},
    "tiny": {"kind": "AutoencoderTiny", "config": {}},
    "small tiny": {"kind": "AutoencoderTiny", "config": HALVING["config"]},
}


def check_same_weights(make_ours: Callable[[], nn.Module], make_theirs: Callable[[], nn.Module]) -> None:
    """Names and order are equal, initial weights too unless ours are zeroed, and as many random numbers are drawn."""
    torch.manual_seed(0)
    ours, after = make_ours(), torch.rand(3)
    torch.manual_seed(0)
    theirs = make_theirs()
    assert torch.equal(after, torch.rand(3))
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for weight, their_weight in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(weight, their_weight) or not weight.any()


def check_same_function(
    ours: nn.Module, theirs: nn.Module, our_output: Callable[[], Tensor], their_output: Callable[[], Tensor]
) -> None:
    """Outputs and gradients are equal, with plain and channels-last memory, in float32 and under bfloat16."""
    for half in (False, True):
        for layout in (torch.contiguous_format, torch.channels_last):
            results = []
            for net, output in ((ours, our_output), (theirs, their_output)):
                net.to(memory_format=layout)  # type: ignore[call-overload]
                net.zero_grad()
                torch.manual_seed(5)  # of the dropout
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    y = output()
                y.float().square().mean().backward()
                results.append([y, *[p.grad for p in net.parameters() if p.grad is not None]])
            assert len(results[0]) == len(results[1])
            assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def check_unet(kind: Any, arguments: dict[str, Any], *, batch: int) -> None:
    net: Any = kind(**SHAPE, **arguments)
    diffusers_kind: Any = UNet2DConditionModel if arguments.get("context_dim") else UNet2DModel
    theirs = diffusers_kind(**net.diffusers_config)
    check_same_weights(lambda: kind(**SHAPE, **arguments).unet, lambda: diffusers_kind(**net.diffusers_config))
    for parameter in net.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))  # zeroed layers would hide errors
    theirs.load_state_dict(net.unet.state_dict())
    x, t = torch.randn(batch, arguments["in_channels"], 16, 16), torch.randint(0, 1000, (batch,))
    if arguments.get("context_dim"):
        tokens = torch.randn(batch, 3, net.context_dim)
        check_same_function(net, theirs, lambda: net(x, t, tokens), lambda: theirs(x, t, tokens).sample)
    else:
        vector = torch.randn(batch, net.width) if net.takes_vector else None
        check_same_function(net, theirs, lambda: net(x, t, vector), lambda: theirs(x, t, class_labels=vector).sample)


@pytest.mark.parametrize("changes", ADM, ids=["plain", "vector and dropout"])
def test_adm(changes: dict[str, Any]) -> None:
    check_unet(AdmUnet, {"in_channels": 3, "out_channels": 6, **changes}, batch=2)


@pytest.mark.parametrize("changes", LATENT, ids=["tokens", "tokens in the middle", "vector", "unconditional"])
def test_latent_diffusion(changes: dict[str, Any]) -> None:
    check_unet(LatentUnet, {"in_channels": 4, "out_channels": 4, "dropout": 0.2, **changes}, batch=2)


@pytest.mark.parametrize("kind", [AdmUnet, LatentUnet])
def test_large_batches_are_upsampled_in_contiguous_memory(kind: Any) -> None:
    shape = {"channel_mult": (1, 2), "attention_resolutions": (), "takes_vector": False, "dropout": 0.0}
    extra = {"context_dim": 0} if kind is LatentUnet else {}
    check_unet(kind, {"in_channels": 3, "out_channels": 3, **shape, **extra}, batch=64)


@pytest.mark.parametrize("name", STAGES)
def test_autoencoders(name: str) -> None:
    spec = STAGES[name]
    check_same_weights(lambda: build_autoencoder(spec), lambda: diffusers_model(spec))
    torch.manual_seed(0)
    ours, theirs = build_autoencoder(spec), diffusers_model(spec)
    theirs.load_state_dict(ours.state_dict())
    x = 2 * torch.rand(2, 3, 16, 16) - 1
    check_same_function(ours, theirs, lambda: encoded(ours, x), lambda: encoded(theirs, x))
    with torch.no_grad():
        z = encoded(ours, x)
    z = z.chunk(2, dim=1)[0] if spec["kind"] == "AutoencoderKL" else z
    check_same_function(ours, theirs, lambda: decoded(ours, z), lambda: decoded(theirs, z))


def test_spatial_norms_are_built_with_diffusers() -> None:
    """As in the autoencoders of Kandinsky."""
    spec: Spec = {"kind": "VQModel", "config": {**blocks(False, True), "norm_type": "spatial"}}
    spec["config"] |= {"block_out_channels": [32, 32]}
    network = build_autoencoder(spec)
    assert type(network).__module__.startswith("diffusers")
    assert decoded(network, encoded(network, torch.zeros(1, 3, 8, 8))).shape == (1, 3, 8, 8)


def test_networks_are_built_without_importing_diffusers() -> None:
    lines = [
        "import sys, torch",
        "from corecli.generators import adm, autoencoder, dit, icgan, ldm",
        "adm.build(adm.Config(channels=8, head_channels=8))",
        "stage = autoencoder.build(autoencoder.Config(channels=8)).config.first_stage",
        "ldm.build(ldm.Config(first_stage=stage, channels=8, head_channels=8))",
        "wrong = {'diffusers', 'transformers', 'sklearn', 'torchvision', 'scipy'} & sys.modules.keys()",
        "assert not wrong, wrong",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=60)
