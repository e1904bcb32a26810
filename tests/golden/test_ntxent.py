"""NT-Xent against lightly's and against the sums of SimCLR's Eq. 1 written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from corecli.ssl.parts.losses import nt_xent


def draw(num: int, dim: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num + dim)
    z0 = torch.randn(num, dim, generator=generator, dtype=torch.float64)
    z1 = z0 + 1.5 * torch.randn(num, dim, generator=generator, dtype=torch.float64)
    return (3 * z0).to(dtype), z1.to(dtype)


def equation_1(z0: torch.Tensor, z1: torch.Tensor, temperature: float) -> float:
    views = np.concatenate([z0.double().numpy(), z1.double().numpy()])
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    num, total = len(z0), 0.0
    for i in range(2 * num):
        others = [math.exp(float(views[i] @ views[k]) / temperature) for k in range(2 * num) if k != i]
        positive = math.exp(float(views[i] @ views[(i + num) % (2 * num)]) / temperature)
        total -= math.log(positive / sum(others))
    return total / (2 * num)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)], ids=str)
@pytest.mark.parametrize("temperature", [0.1, 0.2, 0.5])
@pytest.mark.parametrize(("num", "dim"), [(3, 4), (17, 8), (64, 128)])
def test_equals_the_sums_written_out(
    num: int, dim: int, temperature: float, dtype: torch.dtype, tolerance: float
) -> None:
    z0, z1 = draw(num, dim, dtype)
    expected = equation_1(z0, z1, temperature)
    assert nt_xent(z0, z1, temperature=temperature).item() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_equals_lightly_in_value_and_gradient(temperature: float) -> None:
    loss = pytest.importorskip("lightly.loss").NTXentLoss(temperature=temperature)
    values, gradients = [], []
    for function in (lambda a, b: nt_xent(a, b, temperature=temperature), loss):
        z0, z1 = (z.requires_grad_() for z in draw(32, 16))
        value = function(z0, z1)
        value.backward()
        values.append(value.item())
        gradients.append(torch.cat([z0.grad, z1.grad]))
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


def test_stays_finite_for_aligned_pairs_at_a_low_temperature() -> None:
    z = torch.eye(8).requires_grad_()
    loss = nt_xent(z, z, temperature=0.01)
    loss.backward()
    assert 0 <= loss.item() < 1e-6
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_is_computed_in_float32_under_autocast() -> None:
    z0, z1 = draw(32, 16, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z0, z1, temperature=0.1)
    assert loss.item() == nt_xent(z0, z1, temperature=0.1).item()


def test_bfloat16_embeddings_are_widened_first() -> None:
    z0, z1 = (z.bfloat16() for z in draw(32, 16))
    loss = nt_xent(z0, z1, temperature=0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(equation_1(z0.float(), z1.float(), 0.1), rel=1e-6)
