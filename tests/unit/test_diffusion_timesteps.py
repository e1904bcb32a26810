import pytest
import torch

from corecli.base.errors import UsageError
from corecli.diffusion import schedules
from corecli.diffusion.noise import noise_tables
from corecli.diffusion.timesteps import SPACINGS, inclusive, karras, leading, log_snr


@pytest.mark.parametrize("spacing", [leading, inclusive])
@pytest.mark.parametrize("num_timesteps", [2, 37, 1000])
def test_every_number_of_steps_is_distinct_and_descending(spacing, num_timesteps: int) -> None:
    tables = noise_tables("linear", num_timesteps)
    for steps in range(1, num_timesteps + 1):
        chosen = spacing(tables, steps)
        assert len(chosen) == steps
        assert all(a > b for a, b in zip(chosen, chosen[1:], strict=False))
        assert num_timesteps > chosen[0] >= num_timesteps / 2 - 1
        assert chosen[-1] == (num_timesteps - 1 if steps == 1 else 0)


@pytest.mark.parametrize("spacing", [log_snr, karras])
@pytest.mark.parametrize("schedule", schedules.names())
def test_log_snr_is_distinct_and_descending(schedule: str, spacing) -> None:
    tables = noise_tables(schedule, 200)
    for steps in range(1, 201):
        chosen = spacing(tables, steps)
        assert len(chosen) == steps
        assert all(a > b for a, b in zip(chosen, chosen[1:], strict=False))
        assert chosen[0] >= 150 and (steps == 1 or chosen[-1] == 0)


def test_leading_is_the_strided_list_where_it_divides() -> None:
    tables = noise_tables("linear", 1000)
    assert leading(tables, 50) == list(range(980, -1, -20))
    assert leading(tables, 64)[0] == 984  # flooring the stride would give 945
    assert inclusive(tables, 4) == [999, 666, 333, 0]


def test_log_snr_is_even_in_log_snr() -> None:
    tables = noise_tables("linear", 1000)
    lambdas = 0.5 * (tables.alpha_bar / (1 - tables.alpha_bar)).log()
    gaps = lambdas[log_snr(tables, 10)].diff()
    assert gaps.max() / gaps.min() < 1.3


def test_karras_is_even_in_the_seventh_root_of_the_noise() -> None:
    tables = noise_tables("linear", 1000)
    ratio = ((1 - tables.alpha_bar) / tables.alpha_bar).sqrt()
    chosen = ratio[karras(tables, 12)]
    ends = chosen[0].item(), chosen[-1].item()
    assert ends == (ratio[-1].item(), ratio[0].item())
    wanted = torch.tensor(
        [(ends[0] ** (1 / 7) + i / 11 * (ends[1] ** (1 / 7) - ends[0] ** (1 / 7))) ** 7 for i in range(12)]
    )
    assert ((chosen / wanted).log().abs() < 0.13).all()  # timesteps lie up to 0.25 apart in log sigma


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    tables = noise_tables("linear", 1000)
    for spacing in SPACINGS.values():
        with pytest.raises(UsageError, match=f"{steps} sampling steps"):
            spacing(tables, steps)
