"""The samplers against diffusers' schedulers and against solutions in closed form."""

import math
from types import ModuleType

import pytest
import torch

from corecli.diffusion.guidance import Predict, denoiser
from corecli.diffusion.levels import Level
from corecli.diffusion.noise import DrawNoise, image_noise, noise_tables
from corecli.diffusion.objectives.eps import Eps
from corecli.diffusion.samplers import ddim, ddpm, dpmpp, euler, heun, unipc
from corecli.diffusion.timesteps import inclusive, leading, log_snr

diffusers = pytest.importorskip("diffusers")
SHAPE = (3, 8, 8)
SEED = 5


def walk(
    module: ModuleType,
    predict: Predict,
    x: torch.Tensor,
    *,
    levels: list[Level[float]],
    draw_noise: DrawNoise,
    eta: float = 0.0,
) -> torch.Tensor:
    options = {"options": module.Options(eta=eta)} if module is ddim else {}
    return module.sample_levels(predict, x, levels=levels, draw_noise=draw_noise, **options)


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A smooth function of x and t whose x0 often leaves [-1, 1], with a learned variance."""
    phase = t.to(x.dtype)[:, None, None, None] / 1000
    eps = torch.sin(1.3 * x + 4 * phase) + 0.5 * x.roll(1, dims=-1) * (1 - phase)
    return torch.cat([eps, torch.cos(x - phase)], dim=1)


def at_level(x: torch.Tensor, level: Level[float]) -> torch.Tensor:
    return network(x, torch.tensor([level.t]))


def ours(
    module, *, steps: int, eta: float, schedule: str, dtype: torch.dtype = torch.float32, spacing: str = ""
) -> torch.Tensor:
    objective = Eps(schedule=schedule)
    draw_noise = image_noise([SEED], SHAPE)
    predict = denoiser(at_level, objective, clip=True)
    levels = objective.levels(spacing or module.SPACING, steps)
    return walk(
        module, predict, draw_noise().to(dtype), levels=levels, eta=eta, draw_noise=lambda: draw_noise().to(dtype)
    )


def steps_of(timesteps: list[int]) -> list[tuple[int, int]]:
    """(t, next t); the clean image is -1."""
    return list(zip(timesteps, [*timesteps[1:], -1], strict=True))


def alpha_bars(schedule: str) -> list[float]:
    """alpha_bar by timestep, by the definition of the schedule; the last entry, of timestep -1, is 1."""
    if schedule == "cosine":
        f = [math.cos((n / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for n in range(1001)]
        betas = [min(1 - f[n + 1] / f[n], 0.999) for n in range(1000)]
    else:
        betas = [1e-4 + (0.02 - 1e-4) * n / 999 for n in range(1000)]
    values, product = [], 1.0
    for beta in betas:
        product *= 1 - beta
        values.append(product)
    return [*values, 1.0]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [10, 50, 64, 250])
def test_ddim_is_its_equation_12(steps: int, eta: float, schedule: str) -> None:
    """In float64, with Eq. 16's sigma and eps derived from the clipped x0."""
    alpha_bar, draw_noise = alpha_bars(schedule), image_noise([SEED], SHAPE)
    x = draw_noise().double()
    for t, following in steps_of([i * 1000 // steps for i in reversed(range(steps))]):
        a, b = alpha_bar[t], alpha_bar[following]
        eps = network(x, torch.tensor([t]))[:, :3]
        x0 = ((x - math.sqrt(1 - a) * eps) / math.sqrt(a)).clamp(-1, 1)
        eps = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
        sigma = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        x = math.sqrt(b) * x0 + math.sqrt(1 - b - sigma**2) * eps
        if sigma:
            x = x + sigma * draw_noise().double()
    found = ours(ddim, steps=steps, eta=eta, schedule=schedule, dtype=torch.float64)
    assert (found - x).abs().max() < 1e-9
    assert (ours(ddim, steps=steps, eta=eta, schedule=schedule) - x).abs().max() < 1e-4  # float32, as in use


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [10, 64, 250, 1000])
def test_ancestral_sampling_is_algorithm_2(steps: int, schedule: str) -> None:
    """In float64, with the betas of the respaced chain (IDDPM, Eq. 19) and the learned variance of its Eq. 15."""
    alpha_bar, draw_noise = alpha_bars(schedule), image_noise([SEED], SHAPE)
    x = draw_noise().double()
    for t, following in steps_of(inclusive(noise_tables(schedule, 1000), steps)):
        now, before = alpha_bar[t], alpha_bar[following]
        eps, v = network(x, torch.tensor([t])).chunk(2, dim=1)
        x0 = ((x - math.sqrt(1 - now) * eps) / math.sqrt(now)).clamp(-1, 1)
        beta = 1 - now / before
        mean = math.sqrt(before) * beta / (1 - now) * x0 + math.sqrt(1 - beta) * (1 - before) / (1 - now) * x
        x = mean
        if following >= 0:
            small = (1 - before) / (1 - now) * beta
            fraction = (v + 1) / 2
            std = torch.exp((fraction * math.log(beta) + (1 - fraction) * math.log(small)) / 2)
            x = mean + std * draw_noise().double()
    found = ours(ddpm, steps=steps, eta=0, schedule=schedule, dtype=torch.float64)
    assert (found - x).abs().max() < 1e-9


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
    for t, following in steps_of(log_snr(tables, steps)):
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


@pytest.mark.parametrize("steps", [1, 2, 10, 20, 50])
def test_dpmpp_equals_diffusers_on_our_timesteps(steps: int) -> None:
    tables = noise_tables("linear", 1000)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        trained_betas=tables.betas.tolist(), prediction_type="sample", algorithm_type="dpmsolver++", solver_order=2
    )
    scheduler.set_timesteps(timesteps=log_snr(tables, steps))
    scheduler.set_begin_index(0)
    objective = Eps()
    predict = denoiser(at_level, objective, clip=True)
    x = image_noise([SEED], SHAPE)()
    for t, level in zip(scheduler.timesteps, objective.levels("log-snr", steps), strict=True):
        x = scheduler.step(predict(x, level).x0, t, x).prev_sample
    assert (ours(dpmpp, steps=steps, eta=0, schedule="linear") - x).abs().max() < 1e-4


@pytest.mark.parametrize("steps", [5, 50])
def test_euler_equals_diffusers_and_ddim(steps: int) -> None:
    tables = noise_tables("linear", 1000)
    scheduler = diffusers.EulerDiscreteScheduler(trained_betas=tables.betas.tolist(), timestep_spacing="leading")
    scheduler.set_timesteps(timesteps=log_snr(tables, steps))
    objective = Eps()
    predict = denoiser(at_level, objective, clip=False)
    levels, noise = objective.levels("log-snr", steps), image_noise([SEED], SHAPE)
    x = first = noise()
    y = x / levels[0].alpha
    for t, level in zip(scheduler.timesteps, levels, strict=True):
        eps = network(scheduler.scale_model_input(y, t), torch.tensor([level.t]))[:, :3]
        y = scheduler.step(eps, t, y).prev_sample
    found = walk(euler, predict, first, levels=levels, draw_noise=noise)
    assert (found - y).abs().max() < 1e-3 * y.abs().max()
    same = walk(ddim, predict, first, levels=levels, draw_noise=noise)
    assert (found - same).abs().max() < 1e-4 * y.abs().max()


@pytest.mark.parametrize("steps", [6, 25])
def test_unipc_is_the_same_solver_on_every_process(steps: int) -> None:
    """The noise ratios alone matter: a variance-exploding copy of a process has the same images."""
    objective = Eps()
    levels = objective.levels("log-snr", steps)
    exploding = [Level(alpha=1.0, sigma=level.sigma / level.alpha, t=level.t, scale=level.alpha) for level in levels]
    predict = denoiser(at_level, objective, clip=True)
    x = image_noise([SEED], SHAPE)()

    def rescaled(y: torch.Tensor, level: Level[float]):
        return predict(level.scale * y, levels[exploding.index(level)])

    one = walk(unipc, predict, x, levels=levels, draw_noise=lambda: x)
    other = walk(unipc, rescaled, x / levels[0].alpha, levels=exploding, draw_noise=lambda: x)
    assert (one - other).abs().max() < 1e-4


def gaussian_denoiser(mean: float, std: float) -> Predict:
    """The exact eps for data N(mean, std^2) per pixel."""

    def output(x: torch.Tensor, level: Level[float]) -> torch.Tensor:
        variance = (level.alpha * std) ** 2 + level.sigma**2
        return level.sigma * (x - level.alpha * mean) / variance

    return denoiser(output, Eps(), clip=False)


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 64, 333, 1000])
def test_ddim_on_a_gaussian_is_a_product_of_scalars(steps: int) -> None:
    """With the exact denoiser x - sqrt(alpha_bar) mean is scaled by one number a step; DDIM follows it for any N."""
    tables, mean, std = noise_tables("linear", 1000), 0.2, 0.5
    x_T = image_noise([1, 2], SHAPE)()
    levels = Eps().levels("even", steps)
    x0 = walk(ddim, gaussian_denoiser(mean, std), x_T, levels=levels, draw_noise=lambda: x_T)
    timesteps = leading(tables, steps)
    scale = 1.0
    for t, following in steps_of(timesteps):
        a, b = tables.alpha_bar_at(t), tables.alpha_bar_at(following)
        scale *= (math.sqrt(a * b) * std**2 + math.sqrt((1 - a) * (1 - b))) / (a * std**2 + 1 - a)
    expected = mean + scale * (x_T.double() - math.sqrt(tables.alpha_bar_at(timesteps[0])) * mean)
    assert (x0 - expected).abs().max() < 1e-4


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_gives_the_data_distribution(eta: float) -> None:
    mean, std = 0.2, 0.5
    draw_noise = image_noise(list(range(200)), (1, 8, 8))
    levels = Eps().levels("even", 500)
    x0 = walk(ddim, gaussian_denoiser(mean, std), draw_noise(), levels=levels, eta=eta, draw_noise=draw_noise)
    assert x0.mean().item() == pytest.approx(mean, abs=0.02)  # 4 standard errors
    assert x0.std().item() == pytest.approx(std, rel=0.03)
