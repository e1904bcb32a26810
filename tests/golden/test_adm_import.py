"""guided-diffusion's U-Net, written for the tests, against the network that its checkpoints are imported into."""

import pytest
import torch
from guided_diffusion import GROUPS, HEAD, Tensors, random_checkpoint, reference

from corecli.base.errors import DataError, UsageError
from corecli.nets.unet import AdmUnet
from corecli.nets.weights import adm as adm_weights


def imported(weights: Tensors, **told) -> tuple[AdmUnet, adm_weights.AdmWeights]:
    found = adm_weights.convert(weights, image_size=16, head_channels=HEAD, where="model.pt", **told)
    net = AdmUnet(**found.settings, norm_groups=GROUPS, dropout=0.0, takes_vector=found.labels is not None)
    net.load_state_dict(found.tensors)
    return net.eval(), found


@pytest.mark.parametrize("new_order", [False, True])
def test_an_imported_checkpoint_computes_what_guided_diffusion_does(new_order: bool) -> None:
    weights = random_checkpoint()
    assert adm_weights.is_adm(weights)
    net, found = imported(weights, new_order=new_order)
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([3, 871]), torch.tensor([4, 0])
    assert found.labels is not None
    with torch.no_grad():
        ours = net(x, t, found.labels[y]).double()
    expected = reference(weights, x, t, y, new_order=new_order)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    other, _ = imported(weights, new_order=not new_order)
    with torch.no_grad():
        assert (other(x, t, found.labels[y]).double() - expected).abs().max() > 1e-3


def test_its_settings_are_told_by_content() -> None:
    _, found = imported(random_checkpoint(classes=0, out_channels=3))
    assert found.labels is None
    assert found.settings == {
        "image_size": 16,
        "in_channels": 3,
        "out_channels": 3,
        "channels": 32,
        "channel_mult": (1, 2, 2),
        "num_res_blocks": 2,
        "attention_resolutions": (8, 4),
        "head_channels": 32,
    }


def test_half_precision_is_read_as_float32() -> None:
    net, _ = imported({n: t.half() for n, t in random_checkpoint().items()})
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_what_shows_nowhere_must_be_said() -> None:
    with pytest.raises(UsageError, match="give the image size"):
        adm_weights.convert(random_checkpoint(), where="model.pt")


def test_published_checkpoints_are_told_by_their_levels() -> None:
    """64 px has the new order of attention; 128 px has 4 heads at every level, which ours has not."""
    weights = random_checkpoint(mult=(1, 2, 3, 4))
    found = adm_weights.convert(weights, head_channels=HEAD, where="64x64_diffusion.pt")
    told = adm_weights.convert(weights, head_channels=HEAD, new_order=True, where="64x64_diffusion.pt")
    assert found.settings["image_size"] == 64 and found.settings["attention_resolutions"] == (32, 16, 8)
    assert all(torch.equal(found.tensors[n], t) for n, t in told.tensors.items())
    with pytest.raises(UsageError, match="4 heads at every level"):
        adm_weights.convert(random_checkpoint(mult=(1, 1, 2, 3, 4)), where="128x128_diffusion.pt")


def test_relatives_are_refused() -> None:
    weights = random_checkpoint()
    plain = {n: t for n, t in weights.items() if not n.startswith("input_blocks.3.")}
    plain["input_blocks.3.0.op.weight"] = torch.zeros(32, 32, 3, 3)
    with pytest.raises(DataError, match="resblock_updown"):
        imported(plain)
    added = {n: t[: len(t) // 2] if "emb_layers" in n else t for n, t in weights.items()}
    with pytest.raises(DataError, match="use_scale_shift_norm"):
        imported(added)
    with pytest.raises(DataError, match=r"1 weights belong to no layer, such as 'input_blocks.1.2.weight'"):
        imported({**weights, "input_blocks.1.2.weight": torch.zeros(1)})
    assert not adm_weights.is_adm({"conv_in.weight": torch.zeros(1)})
