"""Samplers with a free choice of sigma against independent float64 solutions of the ODE and the SDE."""

import math
from itertools import count
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from corecli.diffusion.guidance import Prediction
from corecli.diffusion.levels import Level
from corecli.diffusion.objectives.edm import Edm
from corecli.diffusion.objectives.eps import Eps
from corecli.diffusion.objectives.flow import Flow
from corecli.diffusion.samplers import dpm2, dpmpp_2s_ancestral, dpmpp_sde, edm_churn
from corecli.diffusion.sampling import free_denoiser, run

LOW, HIGH = 0.002, 80.0
MEANS, WEIGHTS, STD = np.array([-0.6, 0.4]), np.array([0.3, 0.7]), 0.2
QUIET: list[tuple[ModuleType, dict[str, float]]] = [
    (dpm2, {}),
    (dpmpp_2s_ancestral, {"eta": 0}),
    (dpmpp_sde, {"eta": 0}),
    (edm_churn, {"s_churn": 0}),
]
NOISY: list[tuple[ModuleType, dict[str, float]]] = [
    (dpmpp_2s_ancestral, {}),
    (dpmpp_2s_ancestral, {"eta": 0.5}),
    (dpmpp_sde, {}),
    (dpmpp_sde, {"eta": 0.5}),
    (edm_churn, {"s_churn": 8, "s_tmin": 0, "s_tmax": 100, "s_noise": 1}),
]


def name_of(value: Any) -> str:
    return getattr(value, "__name__", str(value)).rpartition("samplers.")[2]


def sigmas(steps: int) -> list[float]:
    """Return sigmas that are even in log sigma, and 0."""
    return [*np.geomspace(HIGH, LOW, steps).tolist(), 0.0]


def sample(
    module: ModuleType, denoise: Any, x: torch.Tensor, steps: int, options: Any, draw_noise: Any
) -> torch.Tensor:
    chosen = {"options": module.Options(**options)} if hasattr(module, "Options") else {}
    return module.sample(denoise, x, sigmas=sigmas(steps), draw_noise=draw_noise, **chosen)


def mixture(x: np.ndarray, sigma: float) -> np.ndarray:
    """Return the exact denoiser of a mixture of two Gaussians."""
    variance = STD**2 + sigma**2
    distance = x[..., None] - MEANS
    posterior = WEIGHTS * np.exp(-(distance**2 - distance.min(-1, keepdims=True) ** 2) / (2 * variance))
    posterior = posterior / posterior.sum(-1, keepdims=True)
    return (posterior * (MEANS + STD**2 / variance * distance)).sum(-1)


def denoise_mixture(x: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.from_numpy(mixture(x.numpy(), sigma))


@pytest.fixture(scope="module")
def solution() -> tuple[torch.Tensor, torch.Tensor]:
    """(x at the highest sigma, its clean image by SciPy's solver of order 8)."""
    x = HIGH * np.linspace(-2, 2, 41)

    def slope(log_sigma: float, x: np.ndarray) -> np.ndarray:
        return x - mixture(x, math.exp(log_sigma))

    ends = math.log(HIGH), math.log(LOW)
    last = solve_ivp(slope, ends, x, method="DOP853", rtol=1e-11, atol=1e-11).y[:, -1]
    return torch.from_numpy(x), torch.from_numpy(mixture(last, LOW))


@pytest.mark.parametrize(("module", "options"), QUIET, ids=name_of)
def test_without_noise_they_solve_the_ode_with_order_2(module: ModuleType, options: Any, solution: Any) -> None:
    x, clean = solution
    error = {
        n: (sample(module, denoise_mixture, x, n, options, None) - clean).abs().max().item() for n in (64, 128, 256)
    }
    order = math.log2(error[128] / error[256])
    print(f"{module.__name__}: errors {error}, order {order:.2f}")
    assert order == pytest.approx(2, abs=0.3)
    assert error[256] < 2e-3


STDS = torch.tensor([0.3, 0.5, 1.0], dtype=torch.float64)
MEAN = 0.2


def gaussian(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return the exact denoiser of independent Gaussians with standard deviations STDS."""
    return MEAN + STDS**2 / (STDS**2 + sigma**2) * (x - MEAN)


def moments(module: ModuleType, steps: int, options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the exact mean and variance of a sampler's images of the Gaussians, which are affine in all of its noise.

    Row 0 has no noise, row 1 another start, and row 2 + i noise of 1 in call i alone; so there is no sampling error.
    """
    x = torch.full((2 + 2 * steps, len(STDS)), MEAN, dtype=torch.float64)
    x[1] += 1
    rows = count(2)

    def draw_noise() -> torch.Tensor:
        noise = torch.zeros_like(x)
        noise[next(rows)] = 1
        return noise

    made = sample(module, gaussian, x, steps, options, draw_noise)
    weights = (made[1:] - made[0]) ** 2
    return made[0], weights[0] * (STDS**2 + HIGH**2) + weights[1:].sum(0)


@pytest.mark.parametrize(("module", "options"), NOISY, ids=name_of)
def test_with_noise_mean_and_variance_converge_to_those_of_the_data(module: ModuleType, options: Any) -> None:
    errors = {}
    for steps in (32, 64, 128):
        mean, variance = moments(module, steps, options)
        assert (mean - MEAN).abs().max() < 1e-9
        errors[steps] = (variance / STDS**2 - 1).abs().max().item()
    order = math.log2(errors[64] / errors[128])
    print(f"{module.__name__} {options}: relative errors of the variance {errors}, order {order:.2f}")
    assert errors[128] < 0.004
    assert order == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize(("module", "options"), NOISY[::2], ids=name_of)
def test_with_noise_a_mixture_keeps_its_distribution(module: ModuleType, options: Any) -> None:
    """Mean, variance and fourth moment of 40,000 samples; four standard errors are 0.01, 0.006 and 0.006."""
    generator = torch.Generator().manual_seed(1)
    x = HIGH * torch.randn(40_000, dtype=torch.float64, generator=generator)

    def draw_noise() -> torch.Tensor:
        return torch.randn(x.shape, dtype=torch.float64, generator=generator)

    made = sample(module, denoise_mixture, x, 60, options, draw_noise)
    mean = (WEIGHTS * MEANS).sum()
    exact = [(WEIGHTS * ((MEANS - mean) ** 2 + STD**2)).sum()]
    exact += [(WEIGHTS * ((MEANS - mean) ** 4 + 6 * (MEANS - mean) ** 2 * STD**2 + 3 * STD**4)).sum()]
    assert made.mean().item() == pytest.approx(mean, abs=0.015)
    for power, moment in zip((2, 4), exact, strict=True):
        assert ((made - made.mean()) ** power).mean().item() == pytest.approx(moment, rel=0.04)


def test_without_noise_both_dpmpp_samplers_are_the_same_solver() -> None:
    x = HIGH * torch.linspace(-2, 2, 9, dtype=torch.float64)
    one, other = (sample(m, denoise_mixture, x, 20, {"eta": 0}, None) for m in (dpmpp_2s_ancestral, dpmpp_sde))
    assert (one - other).abs().max() < 1e-10


def test_without_churn_edm_churn_is_heun() -> None:
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    made = []
    for name, options in (("edm-churn", {"s_churn": 0.0}), ("heun", {})):
        levels = Edm().levels("karras", 18)
        made.append(run(name, _predict, Edm(), levels=levels, draw_noise=lambda: noise, options=options))
    assert torch.equal(*made)


def _predict(x: torch.Tensor, level: Level[float]) -> Prediction:
    """The exact denoiser of a standard deviation of 0.5."""
    variance = level.alpha**2 * 0.25 + level.sigma**2
    return Prediction(level.alpha * 0.25 / variance * x, None)


@pytest.mark.parametrize(
    "objective", [Eps(), Eps(schedule="cosine"), Edm(), Flow()], ids=["linear", "cosine", "edm", "flow"]
)
def test_every_sigma_is_a_level_of_the_process(objective: Any) -> None:
    """`level_at` finds the levels of the list, and between them levels whose time lies between theirs."""
    spacing = objective.spacing or "even"
    levels = [level for level in objective.levels(spacing, 20) if level.alpha > 0]
    for level in levels:
        found = objective.level_at(level.sigma / level.alpha)
        assert tuple(found) == pytest.approx(tuple(level), rel=1e-9, abs=1e-8)
    for a, b in zip(levels, levels[1:], strict=False):
        middle = math.sqrt(a.sigma / a.alpha * b.sigma / b.alpha)
        found = objective.level_at(middle)
        assert found.sigma / found.alpha == pytest.approx(middle)
        assert b.t < found.t < a.t


def test_a_time_between_timesteps_is_interpolated_in_log_sigma() -> None:
    a, b = (Eps().levels("inclusive", 1000)[999 - t] for t in (500, 501))
    logs = [math.log(level.sigma / level.alpha) for level in (a, b)]
    assert Eps().level_at(math.exp(0.25 * logs[0] + 0.75 * logs[1])).t == pytest.approx(500.75)
    assert Eps().level_at(1e4).t == 999
    assert Eps().level_at(1e-4).t == 0


def test_the_denoiser_hides_the_process() -> None:
    """The denoiser at any sigma is that of x0 + sigma noise, whatever the process's own alpha and sigma."""
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    for objective in (Eps(), Edm(), Flow()):
        denoise = free_denoiser(_predict, objective, [])
        for sigma in (0.01, 0.7, 30.0):
            assert (denoise(x, sigma) - 0.25 / (0.25 + sigma**2) * x).abs().max() < 1e-9
