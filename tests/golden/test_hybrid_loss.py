"""L_hybrid against a float64 computation written from the papers' formulas with SciPy, and its gradients."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from corecli.diffusion.noise import noise_tables
from corecli.diffusion.objectives.eps import Eps
from corecli.diffusion.training import noised, training_loss
from corecli.diffusion.variance import vlb_term

SHAPE = (3, 4, 4)


def make(num_timesteps: int, schedule: str, t: list[int]):
    generator = torch.Generator().manual_seed(num_timesteps)
    objective = Eps(schedule=schedule, diffusion_steps=num_timesteps)
    x0 = torch.randint(0, 256, (len(t), *SHAPE), generator=generator) / 127.5 - 1
    x0[:, :, 0], x0[:, :, 1] = -1, 1  # the open bins
    noise = torch.randn(len(t), *SHAPE, generator=generator)
    times = torch.tensor(t)
    eps = noise + 0.2 * torch.randn(len(t), *SHAPE, generator=generator)
    v = 1.2 * torch.rand(len(t), *SHAPE, generator=generator) - 0.1
    return objective, x0, noised(x0, noise, objective.at(times)), times, noise, eps, v


def hybrid_loss(objective, output: torch.Tensor, *, x0, t, noise) -> torch.Tensor:
    return training_loss(objective, lambda x, t: output, x0, t=t, noise=noise)


def vlb_by_hand(schedule: str, num_timesteps: int, x0, x_t, t: int, eps, v) -> float:
    """One term in bits per dimension: IDDPM Eq. 15 for the variance, DDPM Eq. 7, 11 and 13 for the rest."""
    if schedule == "linear":
        betas = np.linspace(0.1 / num_timesteps, 20 / num_timesteps, num_timesteps)
    else:
        f = np.cos((np.arange(num_timesteps + 1) / num_timesteps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])  # alpha_bar[t] is the paper's, t from 1
    x0, x_t, eps, v = (a.double().numpy() for a in (x0, x_t, eps, v))
    n = t + 1
    beta, now, before = betas[n - 1], alpha_bar[n], alpha_bar[n - 1]
    posterior_variance = beta * (1 - before) / (1 - now)
    clipped = posterior_variance if t > 0 else betas[1] * (1 - alpha_bar[1]) / (1 - alpha_bar[2])
    variance = np.exp((v + 1) / 2 * np.log(beta) + (1 - v) / 2 * np.log(clipped))
    mean = (x_t - beta / np.sqrt(1 - now) * eps) / np.sqrt(1 - beta)
    if t > 0:
        true_mean = (np.sqrt(before) * beta * x0 + np.sqrt(1 - beta) * (1 - before) * x_t) / (1 - now)
        ratio = posterior_variance / variance
        nats = 0.5 * (ratio - 1 - np.log(ratio) + (true_mean - mean) ** 2 / variance)
    else:
        std = np.sqrt(variance)
        upper = np.where(x0 > 0.999, np.inf, x0 + 1 / 255)
        lower = np.where(x0 < -0.999, -np.inf, x0 - 1 / 255)
        mass = norm.cdf(upper, mean, std) - norm.cdf(lower, mean, std)
        nats = -np.log(np.maximum(mass, 1e-12))
    return nats.mean() / np.log(2)


@pytest.mark.parametrize(("schedule", "num_timesteps"), [("linear", 1000), ("cosine", 1000), ("linear", 4000)])
def test_hybrid_loss_matches_the_formula(schedule: str, num_timesteps: int) -> None:
    t = [0, 0, 1, 2, num_timesteps // 2, num_timesteps - 2]
    objective, x0, x_t, times, noise, eps, v = make(num_timesteps, schedule, t)
    terms = [vlb_by_hand(schedule, num_timesteps, x0[i], x_t[i], t[i], eps[i], v[i]) for i in range(len(t))]
    ours = vlb_term(noise_tables(schedule, num_timesteps), eps, v, x0=x0, x_t=x_t, t=times)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours, terms, rtol=2e-4)
    mse = ((eps.double() - noise.double()) ** 2).mean().item()
    loss = hybrid_loss(objective, torch.cat([eps, v], dim=1), x0=x0, t=times, noise=noise)
    assert loss.item() == pytest.approx(mse + 0.001 * num_timesteps * np.mean(terms), rel=1e-4)


def test_decoder_is_a_distribution_over_pixel_values() -> None:
    """The likelihoods of all 256 values sum to 1, for means inside and outside the range and any width."""
    tables = noise_tables("linear", 1000)
    values = (torch.arange(256) / 127.5 - 1)[:, None, None, None]
    t = torch.zeros(256, dtype=torch.long)
    for x_t in (-1.01, -0.3, 0.0, 0.997):
        for v in (-1.0, 1.0, 4.0):
            x = torch.full((256, 1, 1, 1), x_t)
            bits = vlb_term(tables, torch.zeros_like(x), torch.full_like(x, v), x0=values, x_t=x, t=t)
            assert torch.exp2(-bits.double()).sum().item() == pytest.approx(1, abs=1e-4)


def test_the_bound_teaches_the_variance_alone() -> None:
    objective, x0, _, times, noise, eps, v = make(1000, "linear", [0, 3, 500])
    output = torch.cat([eps, v], dim=1).requires_grad_()
    hybrid_loss(objective, output, x0=x0, t=times, noise=noise).backward()
    alone = eps.clone().requires_grad_()
    ((alone - noise) ** 2).mean().backward()
    assert output.grad is not None and alone.grad is not None
    torch.testing.assert_close(output.grad[:, :3], alone.grad, rtol=1e-6, atol=0)
    assert output.grad[:, 3:].abs().max() > 0


def test_hybrid_loss_is_float32_under_autocast() -> None:
    objective, x0, _, times, noise, eps, v = make(1000, "linear", [0, 3, 500])
    output = torch.cat([eps, v], dim=1)
    expected = hybrid_loss(objective, output.bfloat16().float(), x0=x0, t=times, noise=noise)
    with torch.autocast("cpu", torch.bfloat16):
        loss = hybrid_loss(objective, output.bfloat16(), x0=x0, t=times, noise=noise)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
