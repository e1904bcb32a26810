"""What every file in diffusion/samplers promises."""

import math

import pytest
import torch

from corecli.base import registry
from corecli.base.errors import UsageError
from corecli.diffusion.guidance import Predict, Prediction, x0_predictor
from corecli.diffusion.noise import DrawNoise, NoiseTables, image_noise, noise_tables

NAMES = registry.choices("diffusion/samplers")
SHAPE = (3, 4, 4)
TABLES = noise_tables("linear", 100)


def run(name: str, predict: Predict, seeds: list[int], *, steps: int, tables: NoiseTables = TABLES) -> torch.Tensor:
    draw_noise = image_noise(seeds, SHAPE)
    module = registry.load("diffusion/samplers", name)
    return module.sample(predict, draw_noise(), tables=tables, steps=steps, eta=0.0, draw_noise=draw_noise)


def mixture(tables: NoiseTables) -> Predict:
    """The exact denoiser of pixels near -0.6 (30 %) or 0.4 (70 %), std 0.1."""
    means, weights, std = torch.tensor([-0.6, 0.4]), torch.tensor([0.3, 0.7]), 0.1

    def output(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a = tables.alpha_bar_at(int(t[0]))
        variance = a * std**2 + 1 - a
        distance = x[..., None] - math.sqrt(a) * means
        posterior = torch.softmax(weights.log() - distance**2 / (2 * variance), dim=-1)
        return math.sqrt(1 - a) * (posterior * distance).sum(-1) / variance

    return x0_predictor(output, tables)


def test_the_registry_is_complete() -> None:
    assert {"ddim", "ddpm", "dpmpp", "heun", "unipc"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_known_image_is_found_in_any_number_of_steps(name: str) -> None:
    image = torch.linspace(-1, 1, 48).reshape(1, *SHAPE)
    for steps in (1, 2, 3, 7, 16, 64, 99, 100):
        times = []

        def predict(x: torch.Tensor, t: int, times: list[int] = times) -> Prediction:
            times.append(t)
            return Prediction(image.expand_as(x), None)

        x0 = run(name, predict, [0, 1], steps=steps)
        assert (x0 - image).abs().max() < 1e-4, steps
        assert times == sorted(times, reverse=True) and len(set(times)) == steps
        assert times[0] >= 49  # DDIM's list for 2 steps is 50, 0


@pytest.mark.parametrize("name", NAMES)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    predict = mixture(TABLES)
    together = run(name, predict, [4, 9, 2], steps=10)
    for i, seed in enumerate([4, 9, 2]):
        torch.testing.assert_close(together[i : i + 1], run(name, predict, [seed], steps=10), atol=1e-6, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=0.1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_exact_denoiser_gives_the_data_distribution(name: str, schedule: str) -> None:
    tables = noise_tables(schedule, 1000)
    x0 = run(name, mixture(tables), list(range(200)), steps=100, tables=tables)
    assert x0.isfinite().all() and x0.abs().max() <= 1 + 1e-4
    assert x0.mean().item() == pytest.approx(0.1, abs=0.02)
    assert (x0 < -0.1).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert x0[x0 > -0.1].std().item() == pytest.approx(0.1, rel=0.25)  # ddpm's small variance gives 0.08


@pytest.mark.parametrize("name", ["dpmpp", "heun", "unipc"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_second_order_solvers_are_nearer_to_the_ode_than_ddim(name: str, schedule: str) -> None:
    tables = noise_tables(schedule, 1000)
    seeds = list(range(20))
    solution = run("ddim", mixture(tables), seeds, steps=1000, tables=tables)

    def error(sampler: str, steps: int) -> float:
        return (run(sampler, mixture(tables), seeds, steps=steps, tables=tables) - solution).square().mean().item()

    assert error(name, 20) < 0.6 * error("ddim", 20)
    assert error(name, 40) < error(name, 10) / 4


@pytest.mark.parametrize("name", NAMES)
def test_full_length_and_bad_arguments(name: str) -> None:
    module = registry.load("diffusion/samplers", name)
    assert isinstance(module.DEFAULT_STEPS, int)
    noise: DrawNoise = image_noise([0], SHAPE)
    for steps in (0, 101):
        with pytest.raises(UsageError, match="sampling steps"):
            module.sample(mixture(TABLES), noise(), tables=TABLES, steps=steps, eta=0.0, draw_noise=noise)
    with pytest.raises(UsageError, match="eta"):
        module.sample(mixture(TABLES), noise(), tables=TABLES, steps=5, eta=1.5, draw_noise=noise)


def test_unknown_sampler_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown sampler 'dpmp'.*did you mean 'dpmpp'"):
        registry.load("diffusion/samplers", "dpmp")
