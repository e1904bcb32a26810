"""DiffAugment against loops over pixels."""

from __future__ import annotations

import math

import pytest
import torch

from corecli.generators.parts.diff_augment import KINDS, NUM_DRAWS, diff_augment

BATCH = 6


def images(size: int) -> torch.Tensor:
    return torch.rand(BATCH, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


def draws() -> torch.Tensor:
    uniform = torch.rand(BATCH, NUM_DRAWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    uniform[0], uniform[1] = 0, 1 - 1e-9  # both ends
    return uniform


def colored(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    x = x + (u[0] - 0.5)
    out = torch.empty_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            gray = x[:, i, j].sum() / 3
            out[:, i, j] = gray + 2 * u[1] * (x[:, i, j] - gray)
    return out.mean() + (u[2] + 0.5) * (out - out.mean())


def moved(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    size = x.shape[1]
    most = math.floor(size / 8 + 0.5)
    down, right = (math.floor(float(value) * (2 * most + 1)) - most for value in u[3:5])
    out = torch.zeros_like(x)
    for i in range(size):
        for j in range(size):
            if 0 <= i + down < size and 0 <= j + right < size:
                out[:, i, j] = x[:, i + down, j + right]
    return out


def cut(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    size = x.shape[1]
    side = math.floor(size / 2 + 0.5)
    center = [math.floor(float(value) * (size + 1 - side % 2)) for value in u[5:7]]
    out = x.clone()
    for i in range(center[0] - side // 2, center[0] - side // 2 + side):
        for j in range(center[1] - side // 2, center[1] - side // 2 + side):
            if 0 <= i < size and 0 <= j < size:
                out[:, i, j] = 0
    return out


ONE = {"color": colored, "translation": moved, "cutout": cut}


@pytest.mark.parametrize("size", [8, 14])  # a square of 4 and one of 7 px
@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), KINDS])
def test_it_is_what_the_loops_give(kinds: tuple[str, ...], size: int) -> None:
    expected = images(size)
    for kind in kinds:
        expected = torch.stack([ONE[kind](x, u) for x, u in zip(expected, draws(), strict=True)])
    found = diff_augment(images(size), draws(), kinds)
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found, images(size))


def test_nothing_is_the_identity() -> None:
    assert torch.equal(diff_augment(images(8), draws(), ()), images(8))


def test_gradients_pass_through() -> None:
    x = images(8)[2:4].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: diff_augment(x, draws()[2:4], KINDS), x)
