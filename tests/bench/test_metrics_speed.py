"""The Frechet distance and the Inception forward pass beside the tools people use; medians of 5."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from corecli.metrics.frechet import distance, frechet_distance, gaussian_of
from corecli.nets.inception import FidInception

pytestmark = pytest.mark.bench


def alternate(*calls: Callable[[], object], repeats: int = 5) -> list[float]:
    """Median seconds of each call, taken in turns so that a busy moment of the machine hits all."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(repeats):
        for call, mine in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            mine.append(time.perf_counter() - start)
    return [statistics.median(mine) for mine in times]


def features(num: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator) / dim**0.5 * torch.logspace(0, -2, dim)
    return (torch.randn(num, dim, generator=generator) @ mixing).relu()


def test_distance_of_statistics_against_pytorch_fid():
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    a, b = (gaussian_of(features(2500, 2048, seed)) for seed in (0, 1))
    statistics = [t.numpy() for g in (a, b) for t in (g.mean, g.matrix())]
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = fid_score.calculate_frechet_distance(*statistics)  # once: ten seconds and more
    peer = time.perf_counter() - start
    (ours,) = alternate(lambda: frechet_distance(*statistics))
    print(f"\nFrechet distance, D=2048: {ours:.2f} s, pytorch-fid {peer:.2f} s, ratio {peer / ours:.1f}x")
    assert frechet_distance(*statistics) == pytest.approx(expected, rel=1e-6)
    assert peer > 3 * ours


def test_distance_of_few_rows_against_pytorch_fid():
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    x, y = (features(500, 2048, seed) for seed in (0, 1))

    def theirs() -> float:
        sets = [(np.mean(z, axis=0), np.cov(z, rowvar=False)) for z in (x.double().numpy(), y.double().numpy())]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fid_score.calculate_frechet_distance(*sets[0], *sets[1])

    start = time.perf_counter()
    expected = theirs()
    peer = time.perf_counter() - start
    (ours,) = alternate(lambda: distance(gaussian_of(x), gaussian_of(y)))
    print(f"\nFrechet distance, 500 rows of D=2048: {ours:.3f} s, pytorch-fid {peer:.2f} s, ratio {peer / ours:.0f}x")
    assert distance(gaussian_of(x), gaussian_of(y)) == pytest.approx(expected, rel=1e-3)
    assert peer > 20 * ours


def test_inception_forward_against_pytorch_fid(monkeypatch):
    peer = pytest.importorskip("pytorch_fid.inception")
    weights = FidInception().state_dict()
    monkeypatch.setattr(peer, "load_state_dict_from_url", lambda *args, **kwargs: weights)
    theirs, ours = peer.InceptionV3([3]).eval(), FidInception()
    ours.load_state_dict(weights)
    ours = ours.fold().to(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        mine, other = alternate(lambda: ours.features(images, "torch"), lambda: theirs(images.float() / 255))
    print(f"\nInception: {8 / mine:.1f} images/s, pytorch-fid {8 / other:.1f} images/s, ratio {other / mine:.2f}x")
    assert other > 1.2 * mine
