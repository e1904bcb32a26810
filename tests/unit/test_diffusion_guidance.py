import math

import pytest
import torch

from corecli.base.errors import UsageError
from corecli.diffusion.guidance import Guidance, denoiser, guided
from corecli.diffusion.levels import Level, noise_ratio
from corecli.diffusion.objectives.edm import Edm
from corecli.diffusion.objectives.eps import Eps
from corecli.diffusion.objectives.flow import Flow
from corecli.diffusion.objectives.v import V
from corecli.diffusion.objectives.x0 import X0
from corecli.diffusion.training import split


class Counting:
    """A network whose output is x plus its condition, the second half of the channels being t."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        self.batches.append(len(x))
        shift = 0 if c is None else c[:, None, None, None]
        return torch.cat([x + shift, t[:, None, None, None] + shift + torch.zeros_like(x)], dim=1)


X, LEVEL = torch.randn(2, 3, 4, 4), Level(alpha=0.6, sigma=0.8, t=5.0, scale=0.5)
CONDITION, NULL = torch.tensor([1.0, 2.0]), torch.tensor([0.25, 0.25])


def test_guidance_one_costs_one_forward() -> None:
    network = Counting()
    output = guided(network, CONDITION, NULL, Guidance(1), channels=3)(X, LEVEL)
    assert network.batches == [2]
    assert torch.equal(output, Counting()(0.5 * X, torch.tensor([5.0, 5.0]), CONDITION))


@pytest.mark.parametrize("guidance", [0.0, 1.5, 4.0])
def test_guidance_moves_the_prediction_alone_in_one_batch(guidance: float) -> None:
    network = Counting()
    eps, v = split(guided(network, CONDITION, NULL, Guidance(guidance), channels=3)(X, LEVEL), 3)
    assert network.batches == [4]
    shift = 0.25 + guidance * (CONDITION - 0.25)
    torch.testing.assert_close(eps, 0.5 * X + shift[:, None, None, None])
    torch.testing.assert_close(v, (5 + CONDITION)[:, None, None, None].expand(2, 3, 4, 4))


def test_unconditional_network_gets_no_condition() -> None:
    assert torch.equal(guided(Counting(), None, None, Guidance(), channels=3)(X, LEVEL)[:, :3], 0.5 * X)


@pytest.mark.parametrize("name", ["eps", "v", "x0", "edm", "flow"])
def test_guiding_any_output_guides_x0(name: str) -> None:
    objective = {"edm": Edm(), "flow": Flow()}.get(name) or {"eps": Eps, "v": V, "x0": X0}[name]()
    level = objective.levels(objective.spacing or "even", 7)[3]

    def x0(guidance: float, condition: torch.Tensor) -> torch.Tensor:
        output = guided(lambda *a: Counting()(*a)[:, :3], condition, NULL, Guidance(guidance), channels=3)
        return denoiser(output, objective, clip=False)(X, level).x0

    with_condition, without = x0(1, CONDITION), x0(1, NULL)
    torch.testing.assert_close(x0(2.5, CONDITION), without + 2.5 * (with_condition - without), atol=1e-4, rtol=1e-4)


def test_outside_of_its_interval_guidance_is_off_and_costs_nothing() -> None:
    """Noise ratios above the lower end and up to the upper one are guided (Kynkaanniemi et al. 2024, Eq. 5)."""
    seen = {}
    for ratio in (0.1, 0.5, 0.500001, 1.0, 2.0, 2.000001, 50.0):
        network, alpha = Counting(), 1 / math.hypot(1, ratio)
        level = Level(alpha=alpha, sigma=ratio * alpha, t=5.0, scale=1.0)
        output = guided(network, CONDITION, NULL, Guidance(3, (0.5, 2.0)), channels=3)(X, level)
        plain = Counting()(X, torch.tensor([5.0, 5.0]), CONDITION)
        assert torch.equal(output, plain) == (network.batches == [2])
        seen[ratio] = network.batches == [4]
    assert [ratio for ratio, on in seen.items() if on] == [0.500001, 1.0, 2.0]


def test_an_interval_means_the_same_noise_for_every_objective() -> None:
    assert noise_ratio(Level(alpha=0.0, sigma=1.0, t=1000.0, scale=1.0)) == math.inf
    assert noise_ratio(Level(alpha=0.25, sigma=0.75, t=750.0, scale=1.0)) == 3
    assert noise_ratio(Level(alpha=1.0, sigma=3.0, t=0.3, scale=0.3)) == 3
    assert Guidance(2, (0.5, math.inf)).at(Level(alpha=0.0, sigma=1.0, t=1000.0, scale=1.0)) == 2


@pytest.mark.parametrize(
    ("guidance", "interval", "message"),
    [
        (2.0, (1.0, 1.0), "1 to 1 is empty"),
        (2.0, (-1.0, 1.0), "empty"),
        (1.0, (0.2, 1.0), "interval needs guidance"),
        (2.0, (math.nan, 1.0), "empty"),
    ],
)
def test_useless_intervals_are_refused(guidance: float, interval: tuple[float, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Guidance(guidance, interval).check()


def test_x0_inverts_the_forward_process_and_clips() -> None:
    objective = Eps()
    x0, eps = torch.linspace(-2, 2, 48).reshape(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    level = next(level for level in objective.levels("even", 10) if level.t == 300)
    x_t = level.alpha * x0 + level.sigma * eps
    unclipped, v = denoiser(lambda x, level: eps, objective, clip=False)(x_t, level)
    torch.testing.assert_close(unclipped, x0, atol=1e-5, rtol=0)
    assert v is None
    clipped = denoiser(lambda x, level: eps, objective, clip=True)(x_t, level).x0
    torch.testing.assert_close(clipped, x0.clamp(-1, 1), atol=1e-5, rtol=0)
