"""Learning rates, durations and stages."""

from __future__ import annotations

import math

import pytest

from corecli.base.errors import UsageError
from corecli.engine.schedule import Stage, check_warmup, find_stage, learning_rate, parse_duration, parse_stage


def test_a_line_to_zero_after_a_linear_warmup() -> None:
    rates = [learning_rate(s, peak=2.0, total_steps=6, warmup_steps=2, shape="linear") for s in range(7)]
    assert rates == pytest.approx([2 / 3, 4 / 3, 2, 1.5, 1, 0.5, 0])


def test_cosine_after_a_linear_warmup() -> None:
    rates = [learning_rate(s, peak=0.4, total_steps=100, warmup_steps=9) for s in range(100)]
    assert rates[:10] == pytest.approx([0.4 * k / 10 for k in range(1, 11)])
    assert rates[9] == max(rates) == 0.4
    assert rates[55] == pytest.approx(0.2 * (1 + math.cos(math.pi * 46 / 91)))
    assert rates[-1] == pytest.approx(0.4 * math.sin(math.pi / 2 / 91) ** 2)
    assert all(a > b > 0 for a, b in zip(rates[9:], rates[10:], strict=False))


def test_constant_and_without_warmup() -> None:
    assert learning_rate(0, peak=1.0, total_steps=10) == 1.0
    assert learning_rate(9, peak=2.0, total_steps=10, shape="constant") == 2.0
    assert learning_rate(0, peak=2.0, total_steps=10, warmup_steps=3, shape="constant") == 0.5
    assert learning_rate(0, peak=2.0, total_steps=1) == 2.0


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("500", 500),
        ("10k steps", 10_000),
        ("1.5k", 1_500),
        ("10ep", 970),
        ("0.5 epochs", 49),
        ("100k images", 196),
        ("100Kimg", 196),
        ("1M images", 1954),
        ("0", 0),
    ],
)
def test_durations(text: str, steps: int) -> None:
    assert parse_duration(text).to_steps(steps_per_epoch=97, batch_size=512) == steps


@pytest.mark.parametrize("text", ["", "ten", "10 parsecs", "-5", "1.5", "5k5", "1e3", "ep"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="not a"):
        parse_duration(text)


def test_stages() -> None:
    method, length, views = parse_stage("psl:10k")
    assert (method, length.to_steps(steps_per_epoch=1, batch_size=1), views) == ("psl", 10_000, None)
    assert parse_stage("psl:1ep:real:1g,synthetic:1g")[2] == "real:1g,synthetic:1g"
    for text in ("psl", ":10", "psl:", "psl:x"):
        with pytest.raises(UsageError):
            parse_stage(text)
    stages = (Stage(method="psl", steps=3), Stage(method="simclr", steps=2))
    assert [find_stage(stages, s) for s in range(5)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    with pytest.raises(IndexError):
        find_stage(stages, 5)


def test_a_warmup_must_leave_steps() -> None:
    check_warmup((Stage(method="psl", steps=3),), 2)
    with pytest.raises(UsageError, match="leaves none of the 3"):
        check_warmup((Stage(method="psl", steps=9), Stage(method="simclr", steps=3)), 3)
    with pytest.raises(UsageError, match="no steps"):
        check_warmup((Stage(method="psl", steps=0),), 0)
