import math
from typing import Any

import pytest
import torch

from corecli.generators.parts.conditioning import EmbeddingConditioning
from corecli.nets.text import ByteEncoder, NgramBag, num_cut, to_bytes

CAPTIONS = ["a cat", "\u732b and a dog", ""]


@pytest.fixture
def encoder() -> ByteEncoder:
    torch.manual_seed(0)
    return ByteEncoder(width=64, length=12)


def test_captions_are_utf8_cut_and_padded() -> None:
    encoded = to_bytes(CAPTIONS, 6)
    assert encoded.tolist() == [[*b"a cat", 0], list("\u732b an".encode()), [0] * 6]
    assert num_cut(CAPTIONS, 6) == 1
    assert to_bytes(["ab"], 99).shape == (1, 2)
    assert to_bytes(["\ud800"], 9).tolist() == [[ord("?")]]  # half a character, as JSON may hold


def test_padding_changes_nothing(encoder: ByteEncoder) -> None:
    encoded = to_bytes(CAPTIONS, 12)
    tokens = encoder(encoded)
    assert tokens.shape == (3, 13, 64)
    for caption, found in zip(CAPTIONS, tokens, strict=True):
        num = min(12, len(caption.encode()))
        alone = encoder(encoded[CAPTIONS.index(caption)][None, :num])[0]
        torch.testing.assert_close(found[: 1 + num], alone, atol=1e-5, rtol=1e-5)
        assert torch.equal(found[1 + num :], found[:1].expand(12 - num, -1))


def test_tokens_against_an_independent_forward(encoder: ByteEncoder) -> None:
    """The same transformer in float64, on a caption without padding, written from its description."""
    net: Any = encoder.double()
    x = net.embedding.weight[[0, *b"a cat"]] + net.positions[:6]
    for block in net.blocks:
        q, k, v = (part.unflatten(1, (2, 32)).transpose(0, 1) for part in block.attn.qkv(block.norm1(x)).chunk(3, 1))
        attention = (q @ k.transpose(1, 2) / math.sqrt(32)).softmax(-1)
        x = x + block.attn.proj((attention @ v).transpose(0, 1).flatten(1))
        h = block.mlp.fc1(block.norm2(x))
        gelu = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + block.mlp.fc2(gelu)
    expected = torch.cat([net.norm(x.mean(0, keepdim=True)), net.norm(x)[1:]])
    torch.testing.assert_close(encoder(to_bytes(["a cat"], 12))[0], expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("attends", [False, True])
def test_embeddings_are_told_apart_as_much_as_features_are(attends: bool) -> None:
    """The condition of a generator has mean 0 and std 1 in every dimension, over the captions at initialization."""
    given = 7 + 0.01 * torch.randn(50, 5, 8)
    conditioning = EmbeddingConditioning(dim=8, length=4, width=64, attends=attends, droppable=True)
    seen: list[torch.Tensor] = []
    conditioning.measure(given)
    conditioning.linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    conditioning(given)
    z = (seen[0][:, :5] if attends else seen[0]).flatten(0, -2)
    torch.testing.assert_close(z.mean(0), torch.zeros(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(8), atol=1e-2, rtol=0)


def test_a_bag_sums_a_vector_of_each_ngram() -> None:
    bag = NgramBag(6)
    assert not bag(to_bytes(CAPTIONS, 12)).any()
    torch.nn.init.normal_(bag.vectors)
    encoded = to_bytes(["abcab", "ab", "xabc", ""], 12)
    found = bag(encoded)
    assert len({tuple(vector.tolist()) for vector in found}) == 4
    assert torch.equal(found[3], torch.zeros(6))
    torch.testing.assert_close(bag(encoded[1:2, :2]), found[1:2])  # padding adds nothing
    torch.testing.assert_close(bag(encoded[:, :0]), torch.zeros(4, 6))
    # From its fifth byte on, a caption adds the same vectors wherever a word stands.
    words = bag(to_bytes(["0123456 three", "0123456", "zz 3456 three", "zz 3456"], 99))
    torch.testing.assert_close(words[0] - words[1], words[2] - words[3], atol=1e-5, rtol=1e-5)
