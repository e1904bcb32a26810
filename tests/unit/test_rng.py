from __future__ import annotations

import torch

from corecli.base.rng import derive, numpy_generator, torch_generator


def test_seeds_are_a_function_of_their_path_alone() -> None:
    assert derive(0, "noise", "a", 1) == derive(0, "noise", "a", 1)
    seeds = {derive(s, p, k) for s in range(4) for p in ("noise", "order") for k in range(50)}
    assert len(seeds) == 4 * 2 * 50
    assert derive(0, "a", 11) != derive(0, "a", 1, 1)
    assert all(0 <= s < 2**63 for s in seeds)


def test_generators_repeat() -> None:
    assert torch.equal(
        torch.randn(5, generator=torch_generator(1, "x")), torch.randn(5, generator=torch_generator(1, "x"))
    )
    assert (numpy_generator(1, "x").random(5) == numpy_generator(1, "x").random(5)).all()
    assert not (numpy_generator(1, "x").random(5) == numpy_generator(2, "x").random(5)).any()
