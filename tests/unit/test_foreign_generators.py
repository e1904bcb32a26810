"""Checkpoints of guided-diffusion and of DiTs as generators; their networks' outputs are held to elsewhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from first_stages import HALVING, diffusers_model
from guided_diffusion import random_checkpoint

from corecli.base import checkpoint
from corecli.base.errors import DataError, MissingInputError, UsageError
from corecli.generators import adm, dit
from corecli.generators.parts.foreign import ImportOptions, is_foreign, read_foreign
from corecli.nets.dit import SIZES, DiT, Size

SMALL = Size(width=24, depth=2, heads=3)


@pytest.fixture(autouse=True)
def small_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "test", SMALL)


def dit_weights(*, channels: int, learn_sigma: bool = True, classes: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = DiT(image_size=8, in_channels=channels, out_channels=channels * (1 + learn_sigma), patch=2, size=SMALL)
    for p in net.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    table = torch.randn(classes + 1, 24)
    return {**net.state_dict(), "pos_embed": net.positions[None], "y_embedder.embedding_table.weight": table}


def test_a_dit_on_pixels(tmp_path: Path) -> None:
    weights = dit_weights(channels=3)
    torch.save({"ema": weights, "args": {}}, tmp_path / "DiT.pt")
    assert is_foreign(tmp_path / "DiT.pt")
    arch, generator = read_foreign(tmp_path / "DiT.pt")
    config: Any = generator.config
    assert arch == "dit" and isinstance(config, dit.Config)
    assert (config.image_size, config.size, config.patch, config.learn_sigma) == (8, "test", 2, True)
    assert (config.condition, config.num_classes, config.condition_dropout) == ("labels", 5, 0.1)
    labels = torch.tensor([4, 0])
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    table = weights["y_embedder.embedding_table.weight"]
    assert generator.conditioning is not None
    torch.testing.assert_close(generator.conditioning(labels), table[labels])
    torch.testing.assert_close(generator.conditioning.null(2), table[[5, 5]])
    expected = generator.network(x, t, table[labels])
    assert torch.equal(generator.network(x, t, generator.conditioning(labels)), expected)
    assert generator.generate([0, 1], labels, steps=3, guidance=2.0).shape == (2, 3, 8, 8)


def test_a_dit_on_latents_wants_its_first_stage(tmp_path: Path) -> None:
    torch.save(dit_weights(channels=4, learn_sigma=False), tmp_path / "DiT.pt")
    vae = diffusers_model(HALVING)
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(UsageError, match="4 channels are latents of a first stage"):
        read_foreign(tmp_path / "DiT.pt")
    _, generator = read_foreign(tmp_path / "DiT.pt", ImportOptions(first_stage=str(tmp_path / "vae")))
    assert generator.config.image_size == 16 and generator.data_shape == (4, 8, 8)
    own = generator.first_stage.autoencoder.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(own[n], t) for n, t in vae.state_dict().items())
    assert generator.generate([0], torch.tensor([2]), steps=3).shape == (1, 3, 16, 16)
    torch.save(dit_weights(channels=5), tmp_path / "other.pt")
    with pytest.raises(DataError, match=r"vae: the first stage has 4 channels, but the DiT takes 5"):
        read_foreign(tmp_path / "other.pt", ImportOptions(first_stage=str(tmp_path / "vae")))


def test_a_pipeline_of_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(1)
    shape: dict[str, Any] = {
        "num_attention_heads": 3,
        "attention_head_dim": 8,
        "num_layers": 2,
        "num_embeds_ada_norm": 5,
    }
    theirs = diffusers.DiTTransformer2DModel(**shape, in_channels=4, out_channels=8, sample_size=8, patch_size=2)
    shared = theirs.transformer_blocks[0].norm1.emb.state_dict()
    theirs.transformer_blocks[1].norm1.emb.load_state_dict(shared)
    theirs.save_pretrained(tmp_path / "transformer")
    diffusers_model(HALVING).save_pretrained(tmp_path / "vae")
    assert is_foreign(tmp_path)
    arch, generator = read_foreign(tmp_path)
    assert arch == "dit" and generator.config.image_size == 16 and generator.config.learn_sigma
    assert generator.generate([0], torch.tensor([2]), steps=2).shape == (1, 3, 16, 16)
    (tmp_path / "transformer" / "config.json").unlink()
    with pytest.raises(UsageError, match="unknown image size"):
        read_foreign(tmp_path)


def test_guided_diffusion(tmp_path: Path) -> None:
    weights = random_checkpoint()
    torch.save(weights, tmp_path / "model.pt")
    assert is_foreign(tmp_path / "model.pt")
    with pytest.raises(UsageError, match="give the image size"):
        read_foreign(tmp_path / "model.pt")
    arch, generator = read_foreign(
        tmp_path / "model.pt", ImportOptions(image_size=16, head_channels=32, schedule="cosine")
    )
    config: Any = generator.config
    assert arch == "adm" and isinstance(config, adm.Config) and generator.data_shape == (3, 16, 16)
    assert (config.schedule, config.learn_sigma, config.num_classes) == ("cosine", True, 5)
    labels = torch.tensor([4, 0])
    assert generator.conditioning is not None
    torch.testing.assert_close(generator.conditioning(labels), weights["label_emb.weight"][labels])
    assert generator.generate([0, 1], labels, steps=3).shape == (2, 3, 16, 16)
    with pytest.raises(UsageError, match="condition dropout"):
        generator.generate([0, 1], labels, steps=3, guidance=2.0)


def test_an_unconditional_checkpoint_without_variance(tmp_path: Path) -> None:
    torch.save(random_checkpoint(classes=0, out_channels=3), tmp_path / "model.pt")
    _, generator = read_foreign(tmp_path / "model.pt", ImportOptions(image_size=16, head_channels=32))
    assert (generator.config.condition, generator.config.learn_sigma, generator.config.schedule) == (
        "none",
        False,
        "linear",
    )
    assert generator.generate([0], steps=2).shape == (1, 3, 16, 16)


def test_other_files_are_not_taken(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pt")
    assert not is_foreign(tmp_path / "resnet.pt")
    with pytest.raises(DataError, match="neither weights of guided-diffusion nor of a DiT"):
        read_foreign(tmp_path / "resnet.pt")
    checkpoint.save(tmp_path / "g.pt", {"x": torch.zeros(1)}, kind="generator")
    assert not is_foreign(tmp_path / "g.pt")
    with pytest.raises(MissingInputError):
        is_foreign(tmp_path / "none.pt")
