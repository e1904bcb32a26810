"""Options of samplers, from --set and --eta to values."""

import pytest

from corecli.base.errors import UsageError
from corecli.commands.sample.sampler import Sampling, sampler_options


def test_values_are_parsed_and_eta_is_an_option_of_ddim() -> None:
    assert sampler_options("ddim", (), 0.0) == {}
    assert sampler_options("ddim", (), 0.5) == sampler_options("ddim", ("eta=0.5",), 0.0) == {"eta": 0.5}
    assert sampler_options("edm-churn", ("s-churn=3", "s_tmax=9"), 0.0) == {"s_churn": 3.0, "s_tmax": 9.0}


@pytest.mark.parametrize(
    ("sampler", "items", "eta", "message"),
    [
        ("ddpm", (), 0.5, r"the ddpm sampler takes no --eta \(--eta applies to ddim\)"),
        ("dpmpp-sde", (), 0.5, r"the dpmpp-sde sampler takes no --eta \(use --set eta=VALUE\)"),
        ("ddim", ("eta=1",), 0.5, "--eta and --set eta= set the same option"),
        ("ddim", ("eta=2",), 0.0, r"eta 2 is too large for ddim \(use 1 or less\)"),
        ("edm-churn", ("s_churn=-1",), 0.0, r"s_churn -1 is too small for edm-churn \(use 0 or more\)"),
        ("edm-churn", ("s_chrn=1",), 0.0, r"unknown option of edm-churn 's_chrn' \(did you mean 's_churn'"),
        ("ddim", ("eta=much",), 0.0, "'much' is not a valid float"),
        ("ddim", ("eta",), 0.0, "--set 'eta' has no value"),
    ],
)
def test_wrong_options_are_refused(sampler: str, items: tuple[str, ...], eta: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sampler_options(sampler, items, eta)


def test_the_default_sampler_follows_the_objective() -> None:
    nothing = {"sampler": None, "steps": None, "eta": 0.0, "items": (), "spacing": None}
    sampling = Sampling(**nothing, guidance=1.0, guidance_interval=None)
    assert [sampling.sampler_for({"objective": name}) for name in ("eps", "flow")] == ["ddim", "heun"]
    assert sampling.sampler_for({}) is None
