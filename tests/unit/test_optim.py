"""Optimizers: LARS against a float64 loop and lightly's, and states that restore bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from corecli.base import checkpoint
from corecli.base.errors import DataError, UsageError
from corecli.engine.optim import (
    LARS,
    NAMES,
    build_optimizer,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rate,
)

SHAPES = [(8, 8), (4, 3, 3, 3), (5,)]
STEPS = 6


def weights(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in SHAPES]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    # Small gradients in odd steps, so that the trust ratio lies on either side of LARC's cap.
    return [10 ** -(step % 2) * torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: range = range(STEPS)) -> None:
    for step in steps:
        set_learning_rate(optimizer, 0.1 * (1 + step))
        for p, g in zip(parameters, gradients(step), strict=True):
            p.grad = torch.empty_like(p).copy_(g)  # in the parameter's layout, as autograd gives them
        optimizer.step()


def lars_written_out(*, eta: float, clip: bool, weight_decay: float, exclude_1d: bool) -> list[np.ndarray]:
    found = []
    for index, start in enumerate(weights()):
        w, v = start.detach().numpy().copy(), np.zeros(start.shape)
        adapt = not (exclude_1d and w.ndim == 1)
        for step in range(STEPS):
            g, lr = gradients(step)[index].numpy(), 0.1 * (1 + step)
            if adapt:
                w_norm, g_norm = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
                trust = eta * w_norm / (g_norm + weight_decay * w_norm + 1e-8)
                trust = min(trust / lr, 1.0) if clip else trust
                g = trust * (g + weight_decay * w)
            v = 0.9 * v + g
            w = w - lr * v
        found.append(w)
    return found


@pytest.mark.parametrize("exclude_1d", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", [0.02, 0.3])
def test_lars_is_its_formula(eta: float, clip: bool, weight_decay: float, exclude_1d: bool) -> None:
    parameters = weights()
    optimizer = build_optimizer(
        "lars", parameters, lr=0.1, weight_decay=weight_decay, eta=eta, clip=clip, exclude_1d=exclude_1d
    )
    train(optimizer, parameters)
    expected = lars_written_out(eta=eta, clip=clip, weight_decay=weight_decay, exclude_1d=exclude_1d)
    for p, w in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-11)


def test_lars_equals_lightly() -> None:
    lars = pytest.importorskip("lightly.utils.lars").LARS
    ours, theirs = weights(torch.float32), weights(torch.float32)
    groups = [{"params": theirs[:2], "weight_decay": 0.01}, {"params": theirs[2:], "weight_decay": 0.0}]
    train(build_optimizer("lars", ours, lr=0.1, weight_decay=0.01, eta=0.001, clip=False), ours)
    train(lars(groups, lr=0.1, momentum=0.9, trust_coefficient=0.001), theirs)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_lars_takes_plain_steps_where_a_norm_is_zero() -> None:
    new, idle = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    unused = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([new, idle, unused], lr=0.5, weight_decay=0.1)
    new.grad, idle.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer.step()
    assert new.unique().tolist() == [-0.5]
    assert idle.unique().tolist() == [1.0]
    assert unused.unique().tolist() == [1.0]
    set_learning_rate(optimizer, 0.0)
    optimizer.step()
    assert new.isfinite().all()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_biases_and_norms_are_not_decayed(name: str) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = build_optimizer(name, net.parameters(), lr=0.1, weight_decay=0.5)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = [not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)]
    assert moved == [True, False, False, False]
    assert len(build_optimizer(name, net.parameters(), lr=0.1, weight_decay=0.5, exclude_1d=False).param_groups) == 1


def test_sgd_is_plain_momentum() -> None:
    parameters = weights()
    reference = [p.detach().clone() for p in parameters]
    train(build_optimizer("sgd", parameters, lr=1.0, weight_decay=0.0), parameters)
    for w, (index, p) in zip(reference, enumerate(parameters), strict=True):
        v = torch.zeros_like(w)
        for step in range(STEPS):
            v = 0.9 * v + gradients(step)[index]
            w = w - 0.1 * (1 + step) * v
        torch.testing.assert_close(p.detach(), w)


def test_frozen_parameters_are_left_out() -> None:
    net = nn.Linear(3, 3)
    net.weight.requires_grad_(False)
    optimizer = build_optimizer("lars", net.parameters(), lr=0.1, weight_decay=0.5)
    assert [p.shape for group in optimizer.param_groups for p in group["params"]] == [(3,)]


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_optimizer_continues_bit_for_bit(name: str, tmp_path) -> None:
    def start() -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
        parameters = weights(torch.float32)
        parameters[1].data = parameters[1].data.contiguous(memory_format=torch.channels_last)
        return parameters, build_optimizer(name, parameters, lr=0.1, weight_decay=0.01)

    whole, optimizer = start()
    train(optimizer, whole)

    first, optimizer = start()
    train(optimizer, first, range(3))
    checkpoint.save(tmp_path / "state.safetensors", optimizer_tensors(optimizer), kind="state")

    second, optimizer = start()
    for p, q in zip(second, first, strict=True):
        p.data.copy_(q.data)
    restore_optimizer(optimizer, checkpoint.load(tmp_path / "state.safetensors")[0])
    train(optimizer, second, range(3, STEPS))
    for p, q in zip(second, whole, strict=True):
        assert torch.equal(p, q)


def test_restoring_copies_and_checks() -> None:
    parameters = weights(torch.float32)
    optimizer = build_optimizer("sgd", parameters, lr=0.1, weight_decay=0.0)
    train(optimizer, parameters)
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    kept = {name: tensor.clone() for name, tensor in saved.items()}
    restore_optimizer(optimizer, saved)
    train(optimizer, parameters)
    assert all(torch.equal(saved[name], kept[name]) for name in kept)
    with pytest.raises(DataError, match="belongs to no parameter"):
        restore_optimizer(optimizer, {"3.momentum_buffer": torch.zeros(5)})
    with pytest.raises(DataError, match=r"shape \(5,\), its parameter \(8, 8\)"):
        restore_optimizer(optimizer, {"0.momentum_buffer": torch.zeros(5)})


def test_unknown_optimizer() -> None:
    with pytest.raises(UsageError, match="did you mean 'lars'"):
        build_optimizer("larz", weights(), lr=0.1, weight_decay=0.0)
