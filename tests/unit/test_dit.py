import math

import pytest
import torch
import torch.nn.functional as F

from corecli.base.errors import DataError, UsageError
from corecli.nets.dit import SIZES, DiT, Size, positions, size_of
from corecli.nets.weights import dit as dit_weights

# Official counts at 4 x 32 x 32 latents with learned sigma, with the 1,001 classes and the fixed positions; XL/2 and
# L/2 as their authors and RCG print them, each rounding to the M of DiT's Table 4 (33, 131, 458, 675).
PUBLISHED = {
    ("s", 2): 32_963_360,
    ("s", 4): 32_945_024,
    ("s", 8): 33_148_160,
    ("b", 2): 130_512_416,
    ("b", 4): 130_475_648,
    ("b", 8): 130_881_536,
    ("l", 2): 458_102_816,
    ("l", 4): 458_053_760,
    ("l", 8): 458_594_816,
    ("xl", 2): 675_129_632,
    ("xl", 4): 675_074_432,
    ("xl", 8): 675_683_072,
}
SMALL = Size(width=24, depth=2, heads=3)


def small(seed: int = 0, *, out_channels: int = 6) -> DiT:
    torch.manual_seed(seed)
    net = DiT(image_size=8, in_channels=3, out_channels=out_channels, patch=2, size=SMALL)
    for p in net.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return net


@pytest.mark.parametrize(("name", "patch"), PUBLISHED)
def test_every_size_has_its_published_parameters(name: str, patch: int) -> None:
    with torch.device("meta"):
        net = DiT(image_size=32, in_channels=4, out_channels=8, patch=patch, size=size_of(name))
    learned = sum(p.numel() for p in net.parameters())
    assert learned + net.positions.numel() + 1001 * net.width == PUBLISHED[name, patch]


def reference(weights: dict[str, torch.Tensor], x, t, vector, *, heads: int, patch: int, depth: int) -> torch.Tensor:
    """DiT's forward in float64 from its official weights, written from the paper and in loops, not from the module."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    x, batch, side = x.double(), len(x), x.shape[-1] // patch

    def linear(name: str, value: torch.Tensor) -> torch.Tensor:
        return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(value: torch.Tensor) -> torch.Tensor:
        centered = value - value.mean(-1, keepdim=True)
        return centered / torch.sqrt((centered**2).mean(-1, keepdim=True) + 1e-6)

    width = w["x_embedder.proj.weight"].shape[0]
    kernel = w["x_embedder.proj.weight"].reshape(width, -1)
    cells = [(r, c) for r in range(side) for c in range(side)]
    cut = torch.stack(
        [x[:, :, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].reshape(batch, -1) for r, c in cells], dim=1
    )
    h = cut @ kernel.T + w["x_embedder.proj.bias"] + w["pos_embed"]
    angles = [[float(step) * 10_000 ** (-i / 128) for i in range(128)] for step in t]
    waves = torch.tensor([[math.cos(a) for a in row] + [math.sin(a) for a in row] for row in angles]).double()
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", waves))) + vector.double()
    for i in range(depth):
        name = f"blocks.{i}"
        parts = linear(f"{name}.adaLN_modulation.1", F.silu(c)).reshape(batch, 6, 1, width).unbind(1)
        y = linear(f"{name}.attn.qkv", norm(h) * (1 + parts[1]) + parts[0])
        outs = []
        for head in range(heads):
            size = width // heads
            q, k, v = (y[..., part * width + head * size : part * width + (head + 1) * size] for part in range(3))
            outs.append(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(size), dim=-1) @ v)
        h = h + parts[2] * linear(f"{name}.attn.proj", torch.cat(outs, dim=-1))
        y = linear(f"{name}.mlp.fc1", norm(h) * (1 + parts[4]) + parts[3])
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        h = h + parts[5] * linear(f"{name}.mlp.fc2", y)
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(c)).reshape(batch, 2, 1, width).unbind(1)
    y = linear("final_layer.linear", norm(h) * (1 + scale) + shift)
    channels = y.shape[-1] // patch**2
    image = torch.zeros(batch, channels, side * patch, side * patch, dtype=torch.float64)
    for token, (r, column) in enumerate(cells):
        pixels = y[:, token].reshape(batch, patch, patch, channels).permute(0, 3, 1, 2)
        image[:, :, r * patch : (r + 1) * patch, column * patch : (column + 1) * patch] = pixels
    return image


def official(net: DiT, *, classes: int = 5) -> dict[str, torch.Tensor]:
    """Its weights as the official repository saves them."""
    table = torch.randn(classes + 1, net.width, generator=torch.Generator().manual_seed(3))
    return {**net.state_dict(), "pos_embed": net.positions[None], "y_embedder.embedding_table.weight": table}


def test_it_computes_what_the_paper_says() -> None:
    net = small()
    x, t, vector = torch.randn(3, 3, 8, 8), torch.tensor([0, 17, 999]), torch.randn(3, 24)
    expected = reference(official(net), x, t, vector, heads=3, patch=2, depth=2)
    torch.testing.assert_close(net(x, t, vector).double(), expected, atol=1e-5, rtol=1e-4)


def test_official_checkpoints_are_recognized_by_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round trip: weights of the official names, with optimizer and both networks, give the official output."""
    monkeypatch.setitem(SIZES, "test", SMALL)
    net = small()
    weights = official(net)
    file = {f"ema.{name}": tensor for name, tensor in weights.items()}
    file |= {f"model.{name}": tensor + 1 for name, tensor in weights.items()} | {"opt.state.0.step": torch.ones(())}
    assert dit_weights.is_dit(file)
    found = dit_weights.convert(file, where="DiT.pt")
    assert (found.size, found.patch, found.in_channels, found.out_channels, found.grid) == ("test", 2, 3, 6, 4)
    again = DiT(image_size=8, in_channels=3, out_channels=6, patch=2, size=SMALL)
    again.load_state_dict(found.tensors)
    x, t, y = torch.randn(3, 3, 8, 8), torch.tensor([0, 17, 999]), torch.tensor([2, 0, 5])
    assert found.labels is not None
    embedded = weights["y_embedder.embedding_table.weight"][y]
    expected = reference(weights, x, t, embedded, heads=3, patch=2, depth=2)
    torch.testing.assert_close(again(x, t, found.labels[y]).double(), expected, atol=1e-5, rtol=1e-4)


def test_checkpoints_of_diffusers_are_recognized_by_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to diffusers' own output once its time embedding has the frequencies and norms the epsilon of DiT."""
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.setitem(SIZES, "test", SMALL)
    torch.manual_seed(1)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
        norm_eps=1e-6,
    ).eval()
    shared = theirs.transformer_blocks[0].norm1.emb
    shared.time_proj.downscale_freq_shift = 0
    theirs.transformer_blocks[1].norm1.emb = shared
    found = dit_weights.convert(theirs.state_dict(), where="transformer")
    assert (found.size, found.patch, found.grid) == ("test", 2, None)
    ours = DiT(image_size=8, in_channels=3, out_channels=6, patch=2, size=SMALL)
    ours.load_state_dict(found.tensors)
    assert found.labels is not None and found.labels.shape == (6, 24)
    x, t, y = torch.randn(2, 3, 8, 8), torch.tensor([3, 700]), torch.tensor([4, 1])
    with torch.no_grad():
        expected = theirs(x, t, y).sample
        torch.testing.assert_close(ours(x, t, found.labels[y]), expected, atol=1e-5, rtol=1e-4)
    apart = {n: t + ("blocks.1.norm1.emb" in n) for n, t in theirs.state_dict().items()}
    with pytest.raises(DataError, match="differs from that of the first block"):
        dit_weights.convert(apart, where="transformer")


def test_a_new_network_is_zero_and_starts_as_published() -> None:
    torch.manual_seed(0)
    net = DiT(image_size=8, in_channels=3, out_channels=3, patch=2, size=size_of("tiny"))
    assert not net(torch.randn(1, 3, 8, 8), torch.tensor([3])).any()
    zero = [n for n, p in net.named_parameters() if n.endswith("weight") and not p.any()]
    assert len(zero) == 4 + 2  # the gates of 4 blocks, and the last layer with its own
    assert net.t_embedder.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    qkv = net.blocks[0].attn.qkv.weight  # type: ignore[union-attr]
    assert qkv.abs().max().item() == pytest.approx(math.sqrt(6 / (128 + 3 * 128)), rel=0.01)


def test_positions_are_those_of_diffusers() -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    theirs = embeddings.PatchEmbed(height=8, width=8, patch_size=2, in_channels=4, embed_dim=16)
    torch.testing.assert_close(positions(4, 16), theirs.pos_embed[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 9}, "patches of 2 px do not tile 9 px"),
        ({"size": Size(24, 2, 5)}, "5 heads do not divide"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DiT(**{"image_size": 8, "in_channels": 3, "out_channels": 3, "patch": 2, "size": SMALL, **changes})
    with pytest.raises(UsageError, match="unknown DiT size 'xxl'"):
        size_of("xxl")


def test_foreign_sizes_and_positions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = official(small())
    with pytest.raises(DataError, match="unknown DiT size: width 24, depth 2"):
        dit_weights.convert(weights, where="DiT.pt")
    monkeypatch.setitem(SIZES, "test", SMALL)
    with pytest.raises(DataError, match="positions are not"):
        dit_weights.convert({**weights, "pos_embed": weights["pos_embed"] + 1}, where="DiT.pt")
    assert not dit_weights.is_dit({"conv1.weight": torch.zeros(1)})
