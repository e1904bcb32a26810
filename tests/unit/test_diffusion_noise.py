import numpy as np
import pytest
import torch

from corecli.base.errors import UsageError
from corecli.diffusion.noise import image_noise, noise_tables


@pytest.mark.parametrize("num_timesteps", [1000, 100, 4000])
def test_linear_schedule_matches_its_definition(num_timesteps: int) -> None:
    scale = 1000 / num_timesteps
    betas = np.linspace(1e-4 * scale, 0.02 * scale, num_timesteps)
    tables = noise_tables("linear", num_timesteps)
    assert tables.betas.dtype == torch.float64
    np.testing.assert_allclose(tables.betas, betas, rtol=1e-12)
    np.testing.assert_allclose(tables.alpha_bar, np.cumprod(1 - betas), rtol=1e-10)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "scaled_linear"])
@pytest.mark.parametrize("num_timesteps", [2, 10, 1000])
def test_tables_are_a_forward_process(schedule: str, num_timesteps: int) -> None:
    tables = noise_tables(schedule, num_timesteps)
    assert len(tables) == num_timesteps
    assert ((tables.betas > 0) & (tables.betas < 1)).all()
    assert (tables.alpha_bar.diff() < 0).all()
    assert tables.posterior_log_variance.isfinite().all()


def test_posterior_is_bayes_rule() -> None:
    """q(x_t-1 | x_t, x_0) by multiplying the densities q(x_t | x_t-1) and q(x_t-1 | x_0)."""
    tables = noise_tables("linear", 1000)
    for t in (1, 17, 500, 999):
        beta, previous = tables.betas[t].item(), tables.alpha_bar[t - 1].item()
        precision = (1 - beta) / beta + 1 / (1 - previous)
        assert tables.posterior_log_variance[t].exp().item() == pytest.approx(1 / precision, rel=1e-9)
        assert tables.posterior_mean_xt[t].item() == pytest.approx((1 - beta) ** 0.5 / beta / precision, rel=1e-9)
        assert tables.posterior_mean_x0[t].item() == pytest.approx(previous**0.5 / (1 - previous) / precision, rel=1e-9)
    assert tables.posterior_log_variance[0] == tables.posterior_log_variance[1]
    assert tables.posterior_mean_x0[0].item() == pytest.approx(1)


def test_noise_ends_near_a_standard_normal() -> None:
    for schedule in ("linear", "cosine"):
        assert noise_tables(schedule, 1000).alpha_bar_at(999) < 1e-4
    assert noise_tables("linear", 1000).alpha_bar_at(-1) == 1.0


def test_bad_schedules_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'cosine'"):
        noise_tables("cosin", 1000)
    with pytest.raises(UsageError, match="at least 2 steps, got 1"):
        noise_tables("linear", 1)


def test_image_noise_belongs_to_the_image() -> None:
    together, alone = image_noise([3, 8, 5], (3, 4, 4)), image_noise([8], (3, 4, 4))
    for _ in range(3):
        assert torch.equal(together()[1], alone()[0])
    first = image_noise([8], (3, 4, 4))
    assert not torch.equal(first(), first())
