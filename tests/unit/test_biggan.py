"""BigGAN's networks: published sizes, spectral normalization, and their outputs in an independent float64 form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from corecli.base.errors import UsageError
from corecli.nets.biggan import BigGanDiscriminator, BigGanGenerator, default_mult
from corecli.nets.spectral import SpectralConv2d, SpectralEmbedding, SpectralLinear, normalized

UNUSED_CLASS_TABLE = 128_000  # 1000 x 128, in IC-GAN's generator and not in ours


def generator(image_size: int = 16, **changes: Any) -> BigGanGenerator:
    defaults: dict[str, Any] = {
        "channels": 8,
        "mult": default_mult(image_size)[0],
        "attention_px": (8,),
        "z_dim": 20,
        "condition_dim": 6,
        "num_classes": 0,
        "condition_width": 10,
    }
    return BigGanGenerator(image_size=image_size, **{**defaults, **changes})


def discriminator(image_size: int = 16, **changes: Any) -> BigGanDiscriminator:
    defaults: dict[str, Any] = {
        "channels": 8,
        "mult": default_mult(image_size)[1],
        "attention_px": (8,),
        "condition_dim": 6,
        "num_classes": 0,
    }
    return BigGanDiscriminator(image_size=image_size, **{**defaults, **changes})


def num_parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("px", "of_generator", "of_discriminator"), [(64, 36_655_876, 21_646_018), (32, 6.71, 4.73)])
def test_published_sizes(px: int, of_generator: float, of_discriminator: float) -> None:
    """Of icgan_res64.json, and of the same networks at 32 px, in millions, without attention."""
    published = {"channels": 64, "attention_px": (32,), "condition_dim": 2048}
    with torch.device("meta"):
        sizes = (
            num_parameters(generator(px, z_dim=120, condition_width=512, **published)) + UNUSED_CLASS_TABLE,
            num_parameters(discriminator(px, **published)),
        )
    if px == 32:
        sizes = tuple(round(size / 1e6, 2) for size in sizes)
    assert sizes == (of_generator, of_discriminator)


@pytest.mark.parametrize("px", [8, 16, 32, 64, 128, 256])
def test_every_size_goes_through(px: int) -> None:
    g, d = (make(px, channels=1, attention_px=()) for make in (generator, discriminator))
    images = g(torch.randn(2, g.z_dim), torch.randn(2, 6))
    assert images.shape == (2, 3, px, px)
    assert images.abs().max() <= 1
    assert d(images, torch.randn(2, 6)).shape == (2,)


def singular_values(weight: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svdvals(weight.detach().double().flatten(1))


@pytest.mark.parametrize(
    "make", [lambda: SpectralConv2d(5, 9, 3), lambda: SpectralLinear(7, 4), lambda: SpectralEmbedding(6, 5)]
)
def test_the_largest_singular_value_is_one(make: Any) -> None:
    torch.manual_seed(0)
    layer = make()
    assert torch.allclose(singular_values(layer.weight), torch.ones(1, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(normalized(layer), layer.weight, atol=1e-5)
    layer.weight.data = torch.randn_like(layer.weight) * 3
    weight = [normalized(layer) for _ in range(500)][-1]
    assert singular_values(weight)[0].item() == pytest.approx(1, abs=1e-3)
    u = layer.u.clone()
    layer.eval().weight.data = torch.randn_like(layer.weight)
    normalized(layer)
    assert torch.equal(layer.u, u)


def test_its_gradient_takes_the_singular_vectors_as_constants() -> None:
    """d(W / sigma) = G / sigma - <G, W> / sigma^2 u v^T."""
    torch.manual_seed(0)
    layer = SpectralLinear(5, 4)
    layer.weight.data.mul_(torch.rand(4, 5) + 0.5)
    outer = torch.randn(4, 5)
    u = layer.u.double()
    (normalized(layer) * outer).sum().backward()
    w, g = layer.weight.detach().double(), outer.double()
    v = F.normalize(w.T @ u, dim=0)
    u = F.normalize(w @ v, dim=0)
    sigma = u @ w @ v
    expected = g / sigma - (g * w).sum() / sigma**2 * u[:, None] * v
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.u.double(), u, rtol=1e-5, atol=1e-6)


class Reference:
    """The networks' formulas in float64, from the tensors of a state dict."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.tensors = {name: t.detach().clone().double() for name, t in network.state_dict().items()}

    def weight(self, name: str) -> torch.Tensor:
        w, u = self.tensors[f"{name}.weight"], self.tensors[f"{name}.u"]
        v = F.normalize(u @ w.flatten(1), dim=0)
        u = F.normalize(w.flatten(1) @ v, dim=0)
        return w / (u @ w.flatten(1) @ v)

    def apply(self, name: str, x: torch.Tensor) -> torch.Tensor:
        w, bias = self.weight(name), self.tensors.get(f"{name}.bias")
        return F.linear(x, w, bias) if w.ndim == 2 else F.conv2d(x, w, bias, padding=w.shape[-1] // 2)

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()

    def conditional_norm(self, name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        gain, bias = self.apply(f"{name}.gain", y), self.apply(f"{name}.bias", y)
        return self.norm(x) * (1 + gain[:, :, None, None]) + bias[:, :, None, None]

    def attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.apply(f"{name}.{part}", x) for part in ("query", "key", "value"))
        k, v = F.max_pool2d(k, 2).flatten(2), F.max_pool2d(v, 2).flatten(2)
        shares = torch.softmax(torch.einsum("bcq,bck->bqk", q.flatten(2), k), dim=-1)
        mixed = torch.einsum("bqk,bck->bcq", shares, v).reshape(*v.shape[:2], *x.shape[2:])
        return x + self.tensors[f"{name}.gain"] * self.apply(f"{name}.out", mixed)

    def generate(self, z: torch.Tensor, features: torch.Tensor, *, attends: tuple[int, ...]) -> torch.Tensor:
        chunks = z.chunk(3, dim=1)
        shared = self.apply("embed", features)
        h = self.apply("first", chunks[0]).reshape(len(z), -1, 4, 4)
        for i in range(2):
            y = torch.cat([shared, chunks[i + 1]], dim=1)
            up = F.interpolate(F.relu(self.conditional_norm(f"blocks.{i}.norm1", h, y)), scale_factor=2)
            a = self.apply(f"blocks.{i}.conv1", up)
            a = self.apply(f"blocks.{i}.conv2", F.relu(self.conditional_norm(f"blocks.{i}.norm2", a, y)))
            h = a + self.apply(f"blocks.{i}.skip", F.interpolate(h, scale_factor=2))
            h = self.attention(f"attention.{i}", h) if i in attends else h
        gain, bias = (self.tensors[f"last_norm.{part}"][:, None, None] for part in ("weight", "bias"))
        return torch.tanh(self.apply("last", F.relu(self.norm(h) * gain + bias)))

    def score(self, x: torch.Tensor, features: torch.Tensor, *, attends: tuple[int, ...]) -> torch.Tensor:
        for i in range(4):
            a = self.apply(f"blocks.{i}.conv1", F.relu(x) if i else x)
            a = self.apply(f"blocks.{i}.conv2", F.relu(a))
            skip = self.apply(f"blocks.{i}.skip", x) if f"blocks.{i}.skip.weight" in self.tensors else x
            x = F.avg_pool2d(a + skip, 2) if i == 0 else a + skip
            x = self.attention(f"attention.{i}", x) if i in attends else x
        h = F.relu(x).sum((2, 3))
        return self.apply("score", h)[:, 0] + (self.apply("embed", features) * h).sum(1)


def shaken(network: torch.nn.Module) -> Any:
    for p in network.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return network


def test_the_generator_in_float64() -> None:
    torch.manual_seed(0)
    network = shaken(generator())
    z, features = torch.randn(5, network.z_dim), torch.randn(5, 6)
    assert network.z_dim == 18  # 20 in three equal chunks
    expected = Reference(network).generate(z.double(), features.double(), attends=(0,))
    torch.testing.assert_close(network(z, features).double(), expected, rtol=1e-4, atol=1e-4)


def test_the_discriminator_in_float64() -> None:
    torch.manual_seed(0)
    network = shaken(discriminator())
    x, features = torch.rand(5, 3, 16, 16) * 2 - 1, torch.randn(5, 6)
    expected = Reference(network).score(x.double(), features.double(), attends=(0, 1, 2, 3))
    torch.testing.assert_close(network(x, features).double(), expected, rtol=1e-4, atol=1e-3)


def test_labels_choose_rows_of_a_table() -> None:
    torch.manual_seed(0)
    g, d = (make(condition_dim=0, num_classes=4) for make in (generator, discriminator))
    labels = torch.tensor([3, 0, 3])
    assert torch.equal(g.embed(labels), g.embed.weight[labels])
    torch.testing.assert_close(d.embed(labels), (d.embed.weight / torch.linalg.matrix_norm(d.embed.weight, 2))[labels])
    assert d(g(torch.randn(3, g.z_dim), labels), labels).shape == (3,)


def test_scores_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    g, d = generator(), discriminator()
    features = torch.randn(4, 6)
    plain = d(g(torch.ones(4, g.z_dim), features), features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = d(g(torch.ones(4, g.z_dim), features), features)
    assert half.dtype == torch.float32
    assert g.blocks[0].conv1.u.dtype == torch.float32
    torch.testing.assert_close(half, plain, rtol=0.05, atol=0.3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: default_mult(24), "24 px are not 4 px doubled"),
        (lambda: default_mult(4), "4 px are not"),
        (lambda: default_mult(512), "no widths are known for 512 px"),
        (lambda: generator(16, mult=(4, 4)), "2 widths do not lead from 4 to 16 px"),
        (lambda: generator(16, z_dim=2), "z of 2 dimensions cannot be cut into 3"),
        (lambda: generator(16, channels=5), "attention over 20 channels"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
