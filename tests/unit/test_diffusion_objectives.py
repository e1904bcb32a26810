"""Every objective against formulas written here in float64."""

import math
from collections.abc import Callable

import pytest
import torch

from corecli.base.errors import UsageError
from corecli.diffusion.levels import Level
from corecli.diffusion.objectives.edm import Edm
from corecli.diffusion.objectives.eps import Eps
from corecli.diffusion.objectives.flow import Flow
from corecli.diffusion.objectives.parts.objective import Objective
from corecli.diffusion.objectives.parts.vp import VariancePreserving
from corecli.diffusion.objectives.v import V
from corecli.diffusion.objectives.x0 import X0
from corecli.diffusion.training import Draws, draw, noised, training_loss

SHAPE = (3, 4, 4)
OBJECTIVES: dict[str, Objective] = {
    "eps": Eps(),
    "v": V(schedule="cosine"),
    "x0": X0(diffusion_steps=100),
    "edm": Edm(),
    "flow": Flow(),
}


def drawn(objective: Objective, *, batch: int = 6, step: int = 0) -> tuple[torch.Tensor, Draws]:
    x0 = torch.rand(batch, *SHAPE, generator=torch.Generator().manual_seed(7)) * 2 - 1
    return x0, draw(objective, 3, step, batch=batch, shape=SHAPE)


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.sin(2 * x + 0.3) + 0.1 * t.to(x.dtype)[:, None, None, None].sin()


def loss_of(objective: Objective) -> tuple[float, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(the loss, x0, t and noise in float64)."""
    x0, draws = drawn(objective)
    loss = training_loss(objective, network, x0, t=draws.t, noise=draws.noise)
    assert loss.shape == () and loss.dtype == torch.float32
    return loss.item(), x0.double(), draws.t, draws.noise.double()


def squeeze(values: torch.Tensor) -> torch.Tensor:
    return values.double()[:, None, None, None]


def alpha_bar(name: str, t: torch.Tensor) -> torch.Tensor:
    """The schedules of OBJECTIVES, by their definitions."""
    if name == "v":
        f = lambda n: torch.cos((n / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
        n = torch.arange(1, 1001).double()
        betas = (1 - f(n) / f(n - 1)).clamp(max=0.999)
    else:
        num = 100 if name == "x0" else 1000
        betas = torch.linspace(0.1 / num, 20 / num, num, dtype=torch.float64)
    return squeeze((1 - betas).cumprod(0)[t])


@pytest.mark.parametrize("gamma", [0.0, 5.0, 1.0])
@pytest.mark.parametrize("name", ["eps", "v", "x0"])
def test_predictions_of_ddpm(name: str, gamma: float) -> None:
    """The error of the output, or with a gamma min(SNR, gamma) times the error of the x0 it stands for."""
    plain = OBJECTIVES[name]
    assert isinstance(plain, VariancePreserving)
    settings = {"schedule": plain.schedule, "diffusion_steps": plain.diffusion_steps}
    loss, x0, t, noise = loss_of(type(plain)(min_snr=gamma, **settings))
    a = alpha_bar(name, t)
    x = a.sqrt() * x0 + (1 - a).sqrt() * noise
    output = network(x, t)
    if gamma:
        implied = {
            "eps": (x - (1 - a).sqrt() * output) / a.sqrt(),
            "v": a.sqrt() * x - (1 - a).sqrt() * output,
            "x0": output,
        }[name]
        expected = ((a / (1 - a)).clamp(max=gamma) * (implied - x0) ** 2).mean()
    else:
        target = {"eps": noise, "v": a.sqrt() * noise - (1 - a).sqrt() * x0, "x0": x0}[name]
        expected = ((output - target) ** 2).mean()
    assert loss == pytest.approx(expected.item(), rel=2e-5)


def test_edm_is_the_weighted_error_of_its_denoiser() -> None:
    """EDM, Eq. 2, 7 and Table 1: lambda(sigma) |D(x0 + n; sigma) - x0|^2."""
    loss, x0, sigma, noise = loss_of(Edm())
    s, data = squeeze(sigma), 0.5
    x = x0 + s * noise
    c_skip, c_out = data**2 / (s**2 + data**2), s * data / (s**2 + data**2).sqrt()
    c_in, c_noise = 1 / (data**2 + s**2).sqrt(), sigma.double().log() / 4
    denoised = c_skip * x + c_out * network(c_in * x, c_noise)
    weight = (s**2 + data**2) / (s * data) ** 2
    assert loss == pytest.approx((weight * (denoised - x0) ** 2).mean().item(), rel=2e-5)


def test_flow_is_the_error_of_the_velocity() -> None:
    loss, x0, t, noise = loss_of(Flow())
    x = (1 - squeeze(t)) * x0 + squeeze(t) * noise
    velocity = network(x, 1000 * t)
    assert loss == pytest.approx(((velocity - (noise - x0)) ** 2).mean().item(), rel=2e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_right_output_stands_for_the_clean_image(name: str) -> None:
    """At every level a sampler visits, in float64; and the network's inputs there are those of training."""
    objective = OBJECTIVES[name]
    x0 = torch.rand(1, *SHAPE, dtype=torch.float64) * 2 - 1
    noise = torch.randn(1, *SHAPE, dtype=torch.float64)
    for level in objective.levels(objective.spacing or "even", 20):
        wide = Level(*(torch.tensor(value, dtype=torch.float64) for value in level))
        x = noised(x0, noise, wide)
        if level.alpha == 0:
            continue  # nothing but noise
        found = objective.x0(objective.target(x0, noise, wide), x, level)
        assert (found - x0).abs().max() < 1e-9 / level.alpha
        t = {"edm": level.sigma, "flow": level.sigma}.get(name, level.t)
        training = objective.at(torch.tensor([t]))
        for ours, theirs in zip(training, level, strict=True):
            assert ours.reshape(-1).tolist() == pytest.approx([theirs], rel=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_noising_matches_float64(name: str) -> None:
    objective = OBJECTIVES[name]
    x0, draws = drawn(objective, batch=64)
    if name in ("edm", "flow"):
        sigma = squeeze(draws.t)
        alpha = torch.ones_like(sigma) if name == "edm" else 1 - sigma
    else:
        alpha, sigma = alpha_bar(name, draws.t).sqrt(), (1 - alpha_bar(name, draws.t)).sqrt()
    expected = alpha * x0.double() + sigma * draws.noise.double()
    assert ((noised(x0, draws.noise, objective.at(draws.t)) - expected).abs() < 1e-6 * (1 + sigma)).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_is_float32_under_autocast(name: str) -> None:
    objective = OBJECTIVES[name]
    x0, draws = drawn(objective)

    def half(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return network(x, t).bfloat16()

    expected = training_loss(objective, lambda x, t: half(x, t).float(), x0, t=draws.t, noise=draws.noise)
    with torch.autocast("cpu", torch.bfloat16):
        loss = training_loss(objective, half, x0, t=draws.t, noise=draws.noise)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_draws_are_a_function_of_seed_and_step(name: str) -> None:
    def make(seed: int, step: int) -> Draws:
        return draw(OBJECTIVES[name], seed, step, batch=8, shape=SHAPE, condition_dim=5)

    a, b = make(0, 7), make(0, 7)
    assert torch.equal(a.noise, b.noise) and torch.equal(a.t, b.t) and a.seed == b.seed
    for other in (make(1, 7), make(0, 8)):
        assert not torch.equal(a.noise, other.noise) and not torch.equal(a.t, other.t) and a.seed != other.seed


def test_draws_have_their_distributions() -> None:
    objective = Eps(diffusion_steps=10)
    draws = draw(objective, 0, 0, batch=20_000, shape=(1, 1, 1), condition_dim=2)
    counts = torch.bincount(draws.t, minlength=10) / 20_000
    assert len(counts) == 10 and (counts - 0.1).abs().max() < 0.01
    assert draws.noise.mean().abs() < 0.03 and (draws.noise.std() - 1).abs() < 0.03
    assert (draws.flip.float().mean() - 0.5).abs() < 0.02
    assert draws.drop.min() >= 0 and draws.drop.max() < 1 and (draws.drop.mean() - 0.5).abs() < 0.01
    assert (draws.condition_noise.std() - 1).abs() < 0.03


@pytest.mark.parametrize(
    ("objective", "transform", "mean", "std"),
    [
        (Edm(), torch.log, -1.2, 1.2),
        (Flow(flow_times="logit-normal"), torch.logit, 0.0, 1.0),
        (Flow(), torch.Tensor.clone, 0.5, 1 / 12**0.5),
    ],
)
def test_times_have_their_distributions(
    objective: Objective, transform: Callable[[torch.Tensor], torch.Tensor], mean: float, std: float
) -> None:
    t = transform(objective.draw(40_000, torch.Generator().manual_seed(0)))
    assert t.dtype == torch.float32 and t.isfinite().all()
    assert t.mean().item() == pytest.approx(mean, abs=0.025) and t.std().item() == pytest.approx(std, rel=0.02)


def test_a_slice_of_the_draws_is_what_a_rank_gets() -> None:
    draws = draw(Edm(), 0, 3, batch=8, shape=SHAPE)
    first, second = draws[0:4], draws[4:8]
    assert torch.equal(torch.cat([first.noise, second.noise]), draws.noise)
    assert torch.equal(torch.cat([first.t, second.t]), draws.t)
    assert first.condition_noise.shape == (4, 0)
    assert first.seed != second.seed  # or both ranks would drop the same activations
    assert draws[4:8].seed == second.seed


def test_levels_of_edm_are_its_table_1() -> None:
    """sigma_i = (80^(1/7) + i / (N - 1) (0.002^(1/7) - 80^(1/7)))^7."""
    levels = Edm().levels("karras", 18)
    sigmas = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert [level.sigma for level in levels] == pytest.approx(sigmas, rel=1e-12)
    assert [level.t for level in levels] == pytest.approx([math.log(s) / 4 for s in sigmas])
    assert Edm().levels("karras", 1)[0].sigma == pytest.approx(80)
    even = [math.log(level.sigma) for level in Edm().levels("log-snr", 5)]
    assert even == pytest.approx([math.log(80) + i / 4 * math.log(0.002 / 80) for i in range(5)])


def test_levels_of_flow_are_even() -> None:
    assert [level.sigma for level in Flow().levels("even", 4)] == [1.0, 0.75, 0.5, 0.25]
    assert [(level.alpha, level.t) for level in Flow().levels("even", 2)] == [(0.0, 1000.0), (0.5, 500.0)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Flow(flow_times="normal"), "unknown distribution of flow times 'normal'.*logit-normal"),
        (lambda: Eps(min_snr=-1), "gamma -1 is negative"),
        (lambda: Eps(schedule="cosin"), "unknown schedule"),
        (lambda: Flow().levels("karras", 5), "unknown spacing for the flow objective 'karras'"),
        (lambda: Edm().levels("even", 5), "unknown spacing for the edm objective"),
        (lambda: V().levels("odd", 5), "unknown spacing for the v objective"),
        (lambda: Edm().levels("karras", 0), "0 sampling steps"),
        (lambda: Flow().levels("even", 0), "0 sampling steps"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
