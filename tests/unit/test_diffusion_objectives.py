import pytest
import torch

from corecli.diffusion.noise import noise_tables
from corecli.diffusion.objectives import draw, q_sample, simple_loss


def test_draws_are_a_function_of_seed_and_step() -> None:
    def make(seed: int, step: int):
        return draw(seed, step, batch=8, shape=(3, 4, 4), num_timesteps=1000, condition_dim=5)

    a, b = make(0, 7), make(0, 7)
    assert torch.equal(a.noise, b.noise) and torch.equal(a.t, b.t) and a.seed == b.seed
    for other in (make(1, 7), make(0, 8)):
        assert not torch.equal(a.noise, other.noise) and not torch.equal(a.t, other.t) and a.seed != other.seed


def test_draws_have_their_distributions() -> None:
    draws = draw(0, 0, batch=20_000, shape=(1, 1, 1), num_timesteps=10, condition_dim=2)
    counts = torch.bincount(draws.t, minlength=10) / 20_000
    assert len(counts) == 10 and (counts - 0.1).abs().max() < 0.01
    assert draws.noise.mean().abs() < 0.03 and (draws.noise.std() - 1).abs() < 0.03
    assert (draws.flip.float().mean() - 0.5).abs() < 0.02
    assert draws.drop.min() >= 0 and draws.drop.max() < 1 and (draws.drop.mean() - 0.5).abs() < 0.01
    assert (draws.condition_noise.std() - 1).abs() < 0.03


def test_a_slice_of_the_draws_is_what_a_rank_gets() -> None:
    draws = draw(0, 3, batch=8, shape=(3, 4, 4), num_timesteps=1000)
    first, second = draws[0:4], draws[4:8]
    assert torch.equal(torch.cat([first.noise, second.noise]), draws.noise)
    assert torch.equal(torch.cat([first.t, second.t]), draws.t)
    assert first.condition_noise.shape == (4, 0)
    assert first.seed != second.seed  # or both ranks would drop the same activations
    assert draws[4:8].seed == second.seed


def test_q_sample_matches_float64() -> None:
    tables = noise_tables("linear", 1000)
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.rand(4, 3, 8, 8, generator=generator) * 2 - 1, torch.randn(4, 3, 8, 8, generator=generator)
    t = torch.tensor([0, 1, 500, 999])
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t][:, None, None, None]
    expected = alpha_bar.sqrt() * x0.double() + (1 - alpha_bar).sqrt() * noise.double()
    assert (q_sample(tables, x0, t, noise) - expected).abs().max() < 1e-6


def test_simple_loss_is_float32_under_autocast() -> None:
    eps, noise = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        loss = simple_loss(eps.bfloat16(), noise)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(((eps.bfloat16().double() - noise.double()) ** 2).mean().item(), rel=1e-5)
