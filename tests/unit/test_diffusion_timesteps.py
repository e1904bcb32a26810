import pytest

from corecli.base.errors import UsageError
from corecli.diffusion.noise import SCHEDULES, noise_tables
from corecli.diffusion.timesteps import inclusive, leading, log_snr, pairs


@pytest.mark.parametrize("spacing", [leading, inclusive])
@pytest.mark.parametrize("num_timesteps", [2, 37, 1000])
def test_every_number_of_steps_is_distinct_and_descending(spacing, num_timesteps: int) -> None:
    for steps in range(1, num_timesteps + 1):
        chosen = spacing(num_timesteps, steps)
        assert len(chosen) == steps
        assert all(a > b for a, b in zip(chosen, chosen[1:], strict=False))
        assert num_timesteps > chosen[0] >= num_timesteps / 2 - 1
        assert chosen[-1] == (num_timesteps - 1 if steps == 1 else 0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_log_snr_is_distinct_and_descending(schedule: str) -> None:
    tables = noise_tables(schedule, 200)
    for steps in range(1, 201):
        chosen = log_snr(tables, steps)
        assert len(chosen) == steps
        assert all(a > b for a, b in zip(chosen, chosen[1:], strict=False))
        assert chosen[0] >= 150 and (steps == 1 or chosen[-1] == 0)


def test_leading_is_the_strided_list_where_it_divides() -> None:
    assert leading(1000, 50) == list(range(980, -1, -20))
    assert leading(1000, 64)[0] == 984  # flooring the stride would give 945
    assert inclusive(1000, 4) == [999, 666, 333, 0]


def test_log_snr_is_even_in_log_snr() -> None:
    tables = noise_tables("linear", 1000)
    lambdas = 0.5 * (tables.alpha_bar / (1 - tables.alpha_bar)).log()
    gaps = lambdas[log_snr(tables, 10)].diff()
    assert gaps.max() / gaps.min() < 1.3


def test_pairs_end_at_the_clean_image() -> None:
    assert list(pairs([9, 4, 0])) == [(9, 4), (4, 0), (0, -1)]


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    tables = noise_tables("linear", 1000)
    for choose in (lambda: leading(1000, steps), lambda: inclusive(1000, steps), lambda: log_snr(tables, steps)):
        with pytest.raises(UsageError, match=f"{steps} sampling steps"):
            choose()
