import pytest
import torch

from corecli.diffusion.guidance import guided, split, x0_predictor
from corecli.diffusion.noise import noise_tables


class Counting:
    """A network whose output is x plus its condition, the second half of the channels being t."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        self.batches.append(len(x))
        shift = 0 if c is None else c[:, None, None, None]
        return torch.cat([x + shift, t[:, None, None, None] + shift + torch.zeros_like(x)], dim=1)


X, T = torch.randn(2, 3, 4, 4), torch.tensor([5, 5])
CONDITION, NULL = torch.tensor([1.0, 2.0]), torch.tensor([0.25, 0.25])


def test_guidance_one_costs_one_forward() -> None:
    network = Counting()
    output = guided(network, CONDITION, NULL, guidance=1, channels=3)(X, T)
    assert network.batches == [2]
    assert torch.equal(output, Counting()(X, T, CONDITION))


@pytest.mark.parametrize("guidance", [0.0, 1.5, 4.0])
def test_guidance_moves_eps_alone_in_one_batch(guidance: float) -> None:
    network = Counting()
    eps, v = split(guided(network, CONDITION, NULL, guidance=guidance, channels=3)(X, T), 3)
    assert network.batches == [4]
    shift = 0.25 + guidance * (CONDITION - 0.25)
    torch.testing.assert_close(eps, X + shift[:, None, None, None])
    torch.testing.assert_close(v, (5 + CONDITION)[:, None, None, None].expand(2, 3, 4, 4))


def test_unconditional_network_gets_no_condition() -> None:
    assert torch.equal(guided(Counting(), None, None, guidance=1, channels=3)(X, T)[:, :3], X)


def test_x0_inverts_the_forward_process_and_clips() -> None:
    tables = noise_tables("linear", 1000)
    x0, eps = torch.linspace(-2, 2, 48).reshape(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    alpha_bar = tables.alpha_bar_at(300)
    x_t = alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps
    seen = []

    def output(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t)
        return eps

    unclipped, v = x0_predictor(output, tables, clip=False)(x_t, 300)
    torch.testing.assert_close(unclipped, x0, atol=1e-5, rtol=0)
    assert v is None and torch.equal(seen[0], torch.tensor([300]))
    torch.testing.assert_close(x0_predictor(output, tables)(x_t, 300).x0, x0.clamp(-1, 1), atol=1e-5, rtol=0)
