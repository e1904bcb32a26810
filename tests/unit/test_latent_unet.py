from typing import Any

import pytest
import torch
from torch import nn

from corecli.base.errors import UsageError
from corecli.nets.latent_unet import LatentUnet

TABLE_11: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "channels": 256,
    "channel_mult": (1, 2, 4),
    "num_res_blocks": 2,
    "attention_resolutions": (32, 16, 8),
    "head_channels": 32,
    "norm_groups": 32,
    "dropout": 0.0,
}
SMALL = {**TABLE_11, "image_size": 8, "channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1}
SMALL |= {"attention_resolutions": (8,), "head_channels": 4, "norm_groups": 2}


@pytest.mark.parametrize(("context_dim", "published"), [(256, 389_872_388), (512, 394_984_196), (0, 257_733_124)])
def test_table_11_has_the_published_parameters(context_dim: int, published: int) -> None:
    """latent-diffusion's own counts at CORE's Table 11; RCG conditions on 256 dimensions, LDM on 512."""
    with torch.device("meta"):
        net = LatentUnet(**TABLE_11, context_dim=context_dim, takes_vector=context_dim > 0)
    assert sum(p.numel() for p in net.parameters()) == published


def test_heads_have_the_requested_channels() -> None:
    """diffusers takes numbers of heads under the name of their width, for one of its two U-Nets."""
    with torch.device("meta"):
        cross = LatentUnet(**TABLE_11, context_dim=256, takes_vector=True)
        own = LatentUnet(**TABLE_11, context_dim=0, takes_vector=False)
    for net in (cross, own):
        heads = {m.heads for m in net.modules() if type(m).__name__ == "Attention"}
        assert heads == {8, 16, 32}


@pytest.mark.parametrize("context_dim", [0, 6])
def test_last_layers_start_at_zero(context_dim: int) -> None:
    """As in latent diffusion: each residual block's second convolution, each attention's way out, the last layer."""
    torch.manual_seed(0)
    net = LatentUnet(**SMALL, context_dim=context_dim, takes_vector=True)
    zero = {n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and not m.weight.any()}
    blocks = {n for n, m in net.named_modules() if type(m).__name__ == "Residual"}
    attends = {n for n, m in net.named_modules() if type(m).__name__ == ("Transformer" if context_dim else "Attention")}
    way_out = "proj_out" if context_dim else "to_out.0"
    assert zero == {f"{n}.conv2" for n in blocks} | {f"{n}.{way_out}" for n in attends} | {"unet.conv_out"}
    assert len(blocks) == 8 and len(attends) == 4
    assert not net(torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, net.width)).any()


def test_one_vector_is_one_token() -> None:
    torch.manual_seed(0)
    net = LatentUnet(**SMALL, context_dim=6, takes_vector=True)
    for p in net.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    x, t, vector = torch.randn(2, 4, 8, 8), torch.tensor([3, 4]), torch.randn(2, 6)
    one = net(x, t, vector)
    assert torch.equal(one, net(x, t, vector[:, None]))
    torch.testing.assert_close(one, net(x, t, vector[:, None].expand(-1, 3, -1)), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(one, net(x, t, -vector), atol=1e-3)
    several = net(x, t, torch.randn(2, 5, 6))
    assert several.shape == x.shape and not torch.allclose(one, several, atol=1e-3)


def test_without_cross_attention_the_vector_joins_the_time() -> None:
    torch.manual_seed(0)
    net = LatentUnet(**SMALL, context_dim=0, takes_vector=True)
    for p in net.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 4])
    assert net.width == 32
    assert not torch.allclose(net(x, t, torch.zeros(2, 32)), net(x, t, torch.ones(2, 32)), atol=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="needs a condition"):
        LatentUnet(**SMALL, context_dim=6, takes_vector=False)
    with pytest.raises(UsageError, match="heads of 3 channels"):
        LatentUnet(**{**SMALL, "head_channels": 3}, context_dim=6, takes_vector=True)
