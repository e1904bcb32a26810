import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from corecli.base.errors import DataError, UsageError
from corecli.engine.power_ema import PowerEMA, Profile, fit, gamma_of, inner_product, power, reconstruct

STEPS, EVERY = 640, 20


def walk(steps: int, source: nn.Module, averages: list[PowerEMA], folder: Path | None = None) -> list[torch.Tensor]:
    """A random walk of the weights; the last length of the first average is written every EVERY steps."""
    seen = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for p in source.parameters():
            p.data.add_(0.1 * torch.randn(p.shape, generator=generator))
        for average in averages:
            average.update(source)
        seen.append(source.state_dict()["weight"].double().clone())
        if folder is not None and (step + 1) % EVERY == 0:
            averages[0].snapshot(folder)
    return seen


def explicit(seen: list[torch.Tensor], length: float) -> torch.Tensor:
    """The average over all steps, each weighed by the integral of its profile over the step."""
    gamma = gamma_of(length)
    ends = np.arange(len(seen) + 1) / len(seen)
    weights = np.diff(ends ** (gamma + 1))
    return sum(w * weight for w, weight in zip(weights.tolist(), seen, strict=True))  # pyright: ignore


def test_exponents_are_those_of_the_paper() -> None:
    """EDM2, section 3.1: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.01)


@pytest.mark.parametrize("length", [0.02, 0.05, 0.13, 0.25])
def test_the_length_is_the_std_of_the_profile(length: float) -> None:
    tau = (np.arange(200_000) + 0.5) / 200_000
    weights = tau ** gamma_of(length)
    weights /= weights.sum()
    mean = (weights * tau).sum()
    assert math.sqrt((weights * (tau - mean) ** 2).sum()) == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize("length", [0.05, 0.10, 0.25])
def test_updates_give_the_average_over_all_steps(length: float) -> None:
    """In float64, to 1e-12: the closed form of what the updates weigh, step by step."""
    decay, average = power(length), torch.zeros(3, 4, dtype=torch.float64)
    seen = [torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(500)]
    for n, weight in enumerate(seen):
        average = average + (1 - decay(n)) * (weight - average)
    assert (average - explicit(seen, length)).abs().max() < 1e-12


def test_a_module_is_averaged_at_every_length() -> None:
    source = nn.Linear(3, 2)
    ema = PowerEMA(source, lengths=(0.1, 0.05))
    seen = walk(300, source, [ema])
    assert ema.lengths == (0.05, 0.1)
    assert ema.num_updates == 300
    for length, average in zip(ema.lengths, ema.averages, strict=True):
        found = average.module.state_dict()["weight"].double()
        assert (found - explicit(seen, length)).abs().max() < 1e-5
    assert ema.module is ema.averages[1].module
    assert not ema.module.training


def test_inner_products_are_integrals() -> None:
    tau = (np.arange(400_000) + 0.5) / 400_000 * 90

    def density(profile: Profile) -> np.ndarray:
        gamma, t = gamma_of(profile.length), profile.step
        return np.where(tau <= t, (gamma + 1) / t * (tau / t) ** gamma, 0)

    for a, b in ((Profile(40, 0.05), Profile(90, 0.2)), (Profile(90, 0.1), Profile(30, 0.03))):
        expected = (density(a) * density(b)).mean() * 90
        assert inner_product(a, b) == pytest.approx(expected, rel=1e-4)
        assert inner_product(a, b) == inner_product(b, a)


def test_a_tracked_length_is_found_exactly_and_others_closely() -> None:
    profiles = [Profile(n, length) for n in range(EVERY, STEPS + 1, EVERY) for length in (0.05, 0.10)]
    weights, error = fit(profiles, Profile(STEPS, 0.05))
    assert weights[-2] == pytest.approx(1, abs=1e-6)
    assert np.abs(np.delete(weights, -2)).max() < 1e-6
    assert error < 1e-6
    errors = {length: fit(profiles, Profile(STEPS, length))[1] for length in (0.02, 0.04, 0.07, 0.15, 0.2)}
    print({length: f"{e:.1e}" for length, e in errors.items()})
    assert errors[0.07] < 1e-3
    assert errors[0.04] < 0.01
    assert errors[0.15] < 0.01
    assert errors[0.02] > errors[0.04]


@pytest.mark.parametrize("length", [0.05, 0.07, 0.10, 0.15, 0.2])
def test_any_length_is_had_after_training(length: float, tmp_path: Path) -> None:
    source = nn.Linear(3, 2)
    seen = walk(STEPS, source, [PowerEMA(source)], tmp_path)
    found = reconstruct(tmp_path, length)
    assert found.tensors.keys() == {"weight", "bias"}
    assert found.error < 0.02
    size = torch.stack(seen).std()
    assert (found.tensors["weight"] - explicit(seen, length)).abs().max() < 0.01 * size
    early = reconstruct(tmp_path, length, step=320)
    assert (early.tensors["weight"] - explicit(seen[:320], length)).abs().max() < 0.01 * size


def test_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, resumed = nn.Linear(3, 2), PowerEMA(nn.Linear(3, 2))
    whole = PowerEMA(source)
    walk(7, source, [whole])
    resumed.restore({name: t.clone() for name, t in whole.state().items()})
    walk(3, source, [whole, resumed])
    for a, b in zip(whole.state().values(), resumed.state().values(), strict=True):
        assert torch.equal(a, b)
    assert whole.snapshot(tmp_path / "a").read_bytes() == resumed.snapshot(tmp_path / "b").read_bytes()


def test_mistakes_are_refused(tmp_path: Path) -> None:
    for length in (0.0, 0.3, -1.0, math.nan):
        with pytest.raises(UsageError, match=r"outside the range 0 to 0\.25"):
            gamma_of(length)
    with pytest.raises(DataError, match="no snapshots of averages"):
        reconstruct(tmp_path, 0.1)
    ema = PowerEMA(nn.Linear(3, 2))
    walk(5, nn.Linear(3, 2), [ema])
    ema.snapshot(tmp_path)
    with pytest.raises(DataError, match="no snapshots of averages after 4 steps"):
        reconstruct(tmp_path, 0.1, step=4)
    with pytest.raises(DataError, match=r"has no average of length 0.2"):
        PowerEMA(nn.Linear(3, 2), lengths=(0.1, 0.2)).restore(ema.state())
    other = PowerEMA(nn.Linear(3, 2), lengths=(0.1, 0.2))
    walk(6, nn.Linear(3, 2), [other])
    other.snapshot(tmp_path)
    with pytest.raises(DataError, match="different lengths"):
        reconstruct(tmp_path, 0.1)
