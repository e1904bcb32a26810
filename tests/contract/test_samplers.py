"""What every file in diffusion/samplers promises."""

import pytest
import torch

from corecli.base import registry
from corecli.base.errors import UsageError
from corecli.diffusion import sampling
from corecli.diffusion.guidance import Predict, Prediction
from corecli.diffusion.levels import Level
from corecli.diffusion.noise import image_noise
from corecli.diffusion.objectives.edm import Edm
from corecli.diffusion.objectives.eps import Eps
from corecli.diffusion.objectives.flow import Flow
from corecli.diffusion.objectives.parts.objective import Objective
from corecli.diffusion.samplers import scheduler_of

NAMES = registry.choices("diffusion/samplers")
SHAPE = (3, 4, 4)
VP = Eps(diffusion_steps=100)
PROCESSES: dict[str, Objective] = {
    "linear": Eps(),
    "cosine": Eps(schedule="cosine"),
    "edm": Edm(),
    "flow": Flow(),
}
SERVED = [(name, process) for name in NAMES for process in PROCESSES if (name, process) != ("unipc", "flow")]


def run(
    name: str,
    predict: Predict,
    seeds: list[int],
    *,
    steps: int,
    objective: Objective = VP,
    options: dict[str, float] | None = None,
) -> torch.Tensor:
    levels = sampling.levels_of(name, objective, steps=steps)
    return sampling.run(name, predict, objective, levels=levels, draw_noise=image_noise(seeds, SHAPE), options=options)


def mixture(x: torch.Tensor, level: Level[float]) -> Prediction:
    """The exact denoiser of pixels near -0.6 (30 %) or 0.4 (70 %), std 0.1, clipped."""
    means, weights, std = torch.tensor([-0.6, 0.4]), torch.tensor([0.3, 0.7]), 0.1
    variance = (level.alpha * std) ** 2 + level.sigma**2
    distance = x[..., None] - level.alpha * means
    posterior = torch.softmax(weights.log() - distance**2 / (2 * variance), dim=-1)
    x0 = (posterior * (means + level.alpha * std**2 / variance * distance)).sum(-1)
    return Prediction(x0.clamp(-1, 1), None)


@pytest.mark.parametrize("name", NAMES)
def test_a_known_image_is_found_in_any_number_of_steps(name: str) -> None:
    image = torch.linspace(-1, 1, 48).reshape(1, *SHAPE)
    for steps in (1, 2, 3, 7, 16, 64, 99, 100):
        times = []

        def predict(x: torch.Tensor, level: Level[float], times: list[float] = times) -> Prediction:
            times.append(level.t)
            return Prediction(image.expand_as(x), None)

        x0 = run(name, predict, [0, 1], steps=steps)
        assert (x0 - image).abs().max() < 1e-4, steps
        assert times[0] >= 49  # DDIM's list for 2 steps is 50, 0
        assert steps <= len(set(times)) and len(times) < 2 * steps
        if hasattr(registry.load("diffusion/samplers", name), "sample_levels"):
            assert times == sorted(times, reverse=True) and len(set(times)) == steps


@pytest.mark.parametrize(("name", "process"), SERVED)
def test_an_image_does_not_depend_on_its_batch(name: str, process: str) -> None:
    objective = PROCESSES[process]
    together = run(name, mixture, [4, 9, 2], steps=10, objective=objective)
    for rows in (slice(0, 1), slice(1, 3)):  # as one process makes them, or a run that continues a killed one
        part = run(name, mixture, [4, 9, 2][rows], steps=10, objective=objective)
        torch.testing.assert_close(together[rows], part, atol=1e-6, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=0.1)


@pytest.mark.parametrize(("name", "process"), SERVED)
def test_the_exact_denoiser_gives_the_data_distribution(name: str, process: str) -> None:
    x0 = run(name, mixture, list(range(200)), steps=100, objective=PROCESSES[process])
    assert x0.isfinite().all() and x0.abs().max() <= 1 + 1e-4
    assert x0.mean().item() == pytest.approx(0.1, abs=0.02)
    assert (x0 < -0.1).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert x0[x0 > -0.1].std().item() == pytest.approx(0.1, rel=0.25)  # ddpm's small variance gives 0.08


@pytest.mark.parametrize("process", PROCESSES)
def test_ddim_at_eta_1_is_ancestral_sampling(process: str) -> None:
    objective = PROCESSES[process]
    levels = objective.levels(objective.spacing or "even", 60)
    made = [
        sampling.run(name, mixture, objective, levels=levels, draw_noise=image_noise([1, 2], SHAPE), options=options)
        for name, options in (("ddim", {"eta": 1.0}), ("ddpm", {}))
    ]
    torch.testing.assert_close(made[0], made[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["dpmpp", "heun", "unipc", "dpm2"])
@pytest.mark.parametrize("process", ["linear", "cosine", "edm"])
def test_second_order_solvers_are_nearer_to_the_ode_than_ddim(name: str, process: str) -> None:
    objective, seeds = PROCESSES[process], list(range(20))
    solution = run("ddim", mixture, seeds, steps=1000, objective=objective)

    def error(sampler: str, steps: int) -> float:
        return (run(sampler, mixture, seeds, steps=steps, objective=objective) - solution).square().mean().item()

    assert error(name, 20) < 0.6 * error("ddim", 20)
    assert error(name, 40) < error(name, 10) / 4


@pytest.mark.parametrize("name", NAMES)
def test_full_length_and_bad_arguments(name: str) -> None:
    module = registry.load("diffusion/samplers", name)
    assert isinstance(module.DEFAULT_STEPS, int)
    for steps in (0, 101):
        with pytest.raises(UsageError, match="sampling steps"):
            VP.levels(module.SPACING, steps)
    for options in ({"eta": -0.5}, {"speed": 1}):
        with pytest.raises(UsageError, match=r"eta|speed"):
            run(name, mixture, [0], steps=5, options=options)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_an_effect(name: str) -> None:
    """Each default is a number within bounds, and another value gives another image."""
    defaults = registry.constants("diffusion/samplers", name)["Options"]
    plain = run(name, mixture, [5], steps=10, objective=Edm())
    assert torch.equal(run(name, mixture, [5], steps=10, objective=Edm(), options=defaults), plain)
    for option, default in defaults.items():
        changed = 0.5 if default != 0.5 else 1.0
        assert not torch.equal(run(name, mixture, [5], steps=10, objective=Edm(), options={option: changed}), plain)


@pytest.mark.parametrize("name", NAMES)
def test_the_scheduler_of_diffusers_exists(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    if "DIFFUSERS" in registry.constants("diffusion/samplers", name):
        assert hasattr(getattr(diffusers, scheduler_of(name)), "step")
        return
    with pytest.raises(UsageError, match="diffusers has no scheduler"):
        scheduler_of(name)


def test_unipc_refuses_flow_and_names_another_sampler() -> None:
    with pytest.raises(UsageError, match=r"unipc sampler cannot start at pure noise.*use dpmpp"):
        run("unipc", mixture, [0], steps=5, objective=Flow())


def test_unknown_sampler_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown sampler 'dpmp'.*did you mean 'dpmpp'"):
        registry.load("diffusion/samplers", "dpmp")


@pytest.mark.parametrize("process", ["edm", "flow"])
def test_processes_without_timesteps_take_any_number_of_steps(process: str) -> None:
    for name in NAMES:
        for steps in (1, 2, 3, 300) if (name, process) in SERVED else ():
            x0 = run(name, mixture, [0, 1], steps=steps, objective=PROCESSES[process])
            assert x0.abs().max() <= 1 + 1e-3, (name, steps)
