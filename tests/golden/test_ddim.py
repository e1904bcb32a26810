"""The samplers against diffusers' schedulers and against solutions in closed form."""

import math

import pytest
import torch

from corecli.diffusion.guidance import Predict, x0_predictor
from corecli.diffusion.noise import NoiseTables, image_noise, noise_tables
from corecli.diffusion.samplers import ddim, ddpm, dpmpp, heun
from corecli.diffusion.timesteps import leading, log_snr, pairs

diffusers = pytest.importorskip("diffusers")
SHAPE = (3, 8, 8)
SEED = 5


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A smooth function of x and t whose x0 often leaves [-1, 1], with a learned variance."""
    phase = t.float()[:, None, None, None] / 1000
    eps = torch.sin(1.3 * x + 4 * phase) + 0.5 * x.roll(1, dims=-1) * (1 - phase)
    return torch.cat([eps, torch.cos(x - phase)], dim=1)


def ours(module, *, steps: int, eta: float, schedule: str) -> torch.Tensor:
    tables = noise_tables(schedule, 1000)
    draw_noise = image_noise([SEED], SHAPE)
    predict = x0_predictor(network, tables)
    return module.sample(predict, draw_noise(), tables=tables, steps=steps, eta=eta, draw_noise=draw_noise)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [10, 50, 250])
def test_ddim_equals_diffusers(steps: int, eta: float, schedule: str) -> None:
    scheduler = diffusers.DDIMScheduler(
        trained_betas=noise_tables(schedule, 1000).betas.tolist(),
        timestep_spacing="leading",
        steps_offset=0,
        clip_sample=True,
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(1, *SHAPE, generator=generator)
    for t in scheduler.timesteps.tolist():
        eps = network(x, torch.tensor([t]))[:, :3]
        x = scheduler.step(eps, t, x, eta=eta, use_clipped_model_output=True, generator=generator).prev_sample
    assert (ours(ddim, steps=steps, eta=eta, schedule=schedule) - x).abs().max() < 1e-4


@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_ddpm_equals_diffusers_with_learned_range(steps: int) -> None:
    scheduler = diffusers.DDPMScheduler(
        trained_betas=noise_tables("linear", 1000).betas.tolist(),
        variance_type="learned_range",
        timestep_spacing="linspace",
    )
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(1, *SHAPE, generator=generator)
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(network(x, torch.tensor([t])), t, x, generator=generator).prev_sample
    assert (ours(ddpm, steps=steps, eta=0, schedule="linear") - x).abs().max() < 1e-4


@pytest.mark.parametrize("steps", [5, 18, 40])
def test_heun_equals_diffusers_on_our_timesteps(steps: int) -> None:
    tables = noise_tables("linear", 1000)
    scheduler = diffusers.HeunDiscreteScheduler(
        trained_betas=tables.betas.tolist(), clip_sample=True, timestep_spacing="leading"
    )
    scheduler.set_timesteps(timesteps=log_snr(tables, steps))
    scheduler.set_begin_index(0)
    x = image_noise([SEED], SHAPE)() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        eps = network(scheduler.scale_model_input(x, t), t[None])[:, :3]
        x = scheduler.step(eps, t, x).prev_sample
    assert (ours(heun, steps=steps, eta=0, schedule="linear") - x).abs().max() < 1e-4


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50])
def test_dpmpp_follows_its_algorithm(steps: int) -> None:
    """DPM-Solver++, Algorithm 2, in float64; the last step, to sigma = 0, is of first order."""
    tables = noise_tables("linear", 1000)
    x = image_noise([SEED], SHAPE)().double()
    previous, h_previous = None, 0.0
    for t, following in pairs(log_snr(tables, steps)):
        a, b = tables.alpha_bar_at(t), tables.alpha_bar_at(following)
        x0 = ((x - math.sqrt(1 - a) * network(x, torch.tensor([t]))[:, :3]) / math.sqrt(a)).clamp(-1, 1)
        if following < 0:
            x = x0
            break
        h = 0.5 * math.log(b / (1 - b)) - 0.5 * math.log(a / (1 - a))
        d = x0 if previous is None else x0 + h / (2 * h_previous) * (x0 - previous)
        x = math.sqrt((1 - b) / (1 - a)) * x - math.sqrt(b) * math.expm1(-h) * d
        previous, h_previous = x0, h
    assert (ours(dpmpp, steps=steps, eta=0, schedule="linear") - x).abs().max() < 1e-3


def gaussian_denoiser(tables: NoiseTables, mean: float, std: float) -> Predict:
    """The exact eps for data N(mean, std^2) per pixel."""

    def output(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a = tables.alpha_bar_at(int(t[0]))
        return math.sqrt(1 - a) * (x - math.sqrt(a) * mean) / (a * std**2 + 1 - a)

    return x0_predictor(output, tables, clip=False)


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 64, 333, 1000])
def test_ddim_on_a_gaussian_is_a_product_of_scalars(steps: int) -> None:
    """With the exact denoiser x - sqrt(alpha_bar) mean is scaled by one number a step; DDIM follows it for any N."""
    tables, mean, std = noise_tables("linear", 1000), 0.2, 0.5
    x_T = image_noise([1, 2], SHAPE)()
    predict = gaussian_denoiser(tables, mean, std)
    x0 = ddim.sample(predict, x_T, tables=tables, steps=steps, eta=0, draw_noise=lambda: x_T)
    first = leading(1000, steps)[0]
    scale = 1.0
    for t, following in pairs(leading(1000, steps)):
        a, b = tables.alpha_bar_at(t), tables.alpha_bar_at(following)
        scale *= (math.sqrt(a * b) * std**2 + math.sqrt((1 - a) * (1 - b))) / (a * std**2 + 1 - a)
    expected = mean + scale * (x_T.double() - math.sqrt(tables.alpha_bar_at(first)) * mean)
    assert (x0 - expected).abs().max() < 1e-4


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_gives_the_data_distribution(eta: float) -> None:
    tables, mean, std = noise_tables("linear", 1000), 0.2, 0.5
    draw_noise = image_noise(list(range(200)), (1, 8, 8))
    predict = gaussian_denoiser(tables, mean, std)
    x0 = ddim.sample(predict, draw_noise(), tables=tables, steps=500, eta=eta, draw_noise=draw_noise)
    assert x0.mean().item() == pytest.approx(mean, abs=0.02)  # 4 standard errors
    assert x0.std().item() == pytest.approx(std, rel=0.03)
