"""What every file in diffusion/schedules promises."""

import numpy as np
import pytest
import torch

from corecli.diffusion import schedules
from corecli.diffusion.noise import noise_tables


@pytest.mark.parametrize("name", schedules.names())
@pytest.mark.parametrize("num_timesteps", [2, 100, 1000])
def test_noise_grows_at_every_timestep(name: str, num_timesteps: int) -> None:
    betas = schedules.load(name).betas(num_timesteps)
    assert betas.dtype == torch.float64 and betas.shape == (num_timesteps,)
    assert ((betas > 0) & betas.isfinite()).all()
    alpha_bar = noise_tables(name, num_timesteps).alpha_bar
    assert (alpha_bar > 0).all() and (alpha_bar.diff() < 0).all()


@pytest.mark.parametrize("name", schedules.names())
def test_a_thousand_timesteps_lead_from_the_image_to_noise(name: str) -> None:
    alpha_bar = noise_tables(name, 1000).alpha_bar
    assert alpha_bar[0] > 0.99 and alpha_bar[-1] < 0.01


@pytest.mark.parametrize("name", schedules.names())
def test_diffusers_has_the_same_betas_under_its_name(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    settings = getattr(schedules.load(name), "DIFFUSERS", None)
    if settings is None:
        pytest.skip("exported as a list of betas")
    theirs = diffusers.DDPMScheduler(**settings).betas
    np.testing.assert_allclose(noise_tables(name, 1000).betas, theirs, rtol=2e-4)
