"""Samplers of EDM and flow against the papers' algorithms, diffusers, and the ODE's solution for Gaussian data."""

import math
from types import ModuleType

import pytest
import torch

from corecli.diffusion.guidance import Predict, Prediction, denoiser
from corecli.diffusion.levels import Level
from corecli.diffusion.noise import DrawNoise
from corecli.diffusion.objectives.edm import Edm
from corecli.diffusion.objectives.flow import Flow
from corecli.diffusion.objectives.parts.objective import Objective
from corecli.diffusion.objectives.v import V
from corecli.diffusion.samplers import ddim, dpmpp, euler, heun, unipc

NOISE = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
MEAN, STD = 0.2, 0.5


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
    return torch.sin(1.3 * x + 0.2 * t.to(x.dtype)[:, None, None, None]) + 0.3 * x.roll(1, dims=-1)


def at_level(x: torch.Tensor, level: Level[float]) -> torch.Tensor:
    return network(level.scale * x, torch.full((len(x),), level.t))


def run(module: ModuleType, objective: Objective, steps: int, *, noise: torch.Tensor = NOISE) -> torch.Tensor:
    levels = objective.levels(objective.spacing or module.SPACING, steps)
    predict = denoiser(at_level, objective, clip=False)
    start = objective.start(noise, levels[0])
    return walk(module, predict, start, levels=levels, draw_noise=lambda: noise)


def karras(steps: int) -> list[float]:
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return [*((high + i / (steps - 1) * (low - high)) ** 7 for i in range(steps)), 0.0]


def edm_denoiser(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """EDM, Table 1."""
    c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / math.sqrt(sigma**2 + 0.25)
    c_in, c_noise = 1 / math.sqrt(sigma**2 + 0.25), math.log(sigma) / 4
    return c_skip * x + c_out * network(c_in * x, torch.full((len(x),), c_noise))


@pytest.mark.parametrize("steps", [2, 5, 18])
def test_heun_is_edms_algorithm_1(steps: int) -> None:
    sigmas = karras(steps)
    x = 80 * NOISE
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        d = (x - edm_denoiser(x, sigma)) / sigma
        euler_step = x + (following - sigma) * d
        if following > 0:
            d_next = (euler_step - edm_denoiser(euler_step, following)) / following
            x = x + (following - sigma) * (d + d_next) / 2
        else:
            x = euler_step
    assert (run(heun, Edm(), steps) - x).abs().max() < 1e-9


@pytest.mark.parametrize("steps", [2, 10, 40])
def test_flow_is_walked_as_x_plus_velocity(steps: int) -> None:
    """Euler, and Heun with its last step to t = 0 of first order, which is all that DDIM and Euler differ from."""
    plain, second = NOISE, NOISE
    for i in range(steps, 0, -1):
        t, gap = i / steps, -1 / steps
        plain = plain + gap * network(plain, torch.full((2,), 1000 * t))
        slope = network(second, torch.full((2,), 1000 * t))
        if i > 1:
            after = network(second + gap * slope, torch.full((2,), 1000 * (i - 1) / steps))
            slope = (slope + after) / 2
        second = second + gap * slope
    assert (run(euler, Flow(), steps) - plain).abs().max() < 1e-9
    assert (run(ddim, Flow(), steps) - plain).abs().max() < 1e-9
    assert (run(heun, Flow(), steps) - second).abs().max() < 1e-9


@pytest.mark.parametrize("steps", [2, 18])
def test_edm_equals_diffusers(steps: int) -> None:
    """EDMEulerScheduler and EDMDPMSolverMultistepScheduler, in float32."""
    diffusers = pytest.importorskip("diffusers")
    noise = NOISE.float()
    for module, kind in ((euler, "EDMEulerScheduler"), (dpmpp, "EDMDPMSolverMultistepScheduler")):
        scheduler = getattr(diffusers, kind)(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0)
        scheduler.set_timesteps(steps)
        x = 80 * noise
        for t in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, t)
            x = scheduler.step(network(seen, t.expand(len(x))), t, x).prev_sample
        assert (run(module, Edm(), steps, noise=noise) - x).abs().max() < 2e-4, kind


@pytest.mark.parametrize("steps", [2, 20])
def test_flow_equals_diffusers(steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    scheduler.set_timesteps(sigmas=[i / steps for i in range(steps, 0, -1)])
    x = NOISE.float()
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.expand(len(x))), t, x).prev_sample
    assert (run(euler, Flow(), steps, noise=NOISE.float()) - x).abs().max() < 1e-4


def gaussian(x: torch.Tensor, level: Level[float]) -> Prediction:
    """The exact denoiser of data N(MEAN, STD^2)."""
    variance = (level.alpha * STD) ** 2 + level.sigma**2
    return Prediction(MEAN + level.alpha * STD**2 / variance * (x - level.alpha * MEAN), None)


def error(module: ModuleType, objective: Objective, levels: list[Level[float]]) -> float:
    """Of a walk from the first level to the last, against the ODE: x - alpha MEAN grows as the std of x does."""
    stds = [math.hypot(level.alpha * STD, level.sigma) for level in levels]
    x = levels[0].alpha * MEAN + stds[0] * NOISE
    x0 = walk(module, gaussian, x, levels=levels, draw_noise=lambda: NOISE)
    return (x0 - (MEAN + STD * NOISE)).abs().max().item()


def order(module: ModuleType, objective: Objective, steps: tuple[int, int]) -> float:
    """The order of convergence that two numbers of steps show."""
    few, many = (error(module, objective, objective.levels(objective.spacing or "log-snr", n)) for n in steps)
    return math.log(few / many) / math.log(steps[1] / steps[0])


@pytest.mark.parametrize(
    ("module", "objective", "expected"),
    [
        (euler, Edm(), 1),
        (ddim, Edm(), 1),
        (heun, Edm(), 2),
        (dpmpp, Edm(), 2),
        (euler, Flow(), 1),
        (heun, Flow(), 2),
        (dpmpp, Flow(), 1.6),  # its first and last gaps of log-SNR have no end, so that it nears 2 slowly
    ],
)
def test_samplers_converge_to_the_ode_with_their_order(
    module: ModuleType, objective: Objective, expected: float
) -> None:
    found = order(module, objective, (32, 64))
    print(f"{module.__name__} on {objective.name}: order {found:.2f}")
    assert found == pytest.approx(expected, abs=0.35)


@pytest.mark.parametrize("objective", [Edm(), Flow(), V()])
def test_many_steps_give_the_solution(objective: Objective) -> None:
    for module, bound in ((euler, 0.03), (heun, 1e-3), (dpmpp, 1e-3)):
        found = error(module, objective, objective.levels(objective.spacing or "log-snr", 200))
        assert found < bound, module.__name__


def test_unipc_converges_on_edm() -> None:
    levels = [Edm().levels("karras", n) for n in (16, 32)]
    few, many = (error(unipc, Edm(), each) for each in levels)
    assert many < few / 3 and many < 0.02
