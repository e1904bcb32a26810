"""The Frechet distance and the Inception forward pass beside the tools people use; medians of 5."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from corecli.metrics import density_coverage, precision_recall
from corecli.metrics.kid import kid
from corecli.metrics.parts.frechet import Moments, compare, distance, frechet_distance, gaussian_of
from corecli.metrics.parts.inception_score import inception_score
from corecli.metrics.parts.survey import survey
from corecli.nets.extractor import load_extractor
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


@pytest.mark.parametrize(("num", "repeats"), [(500, 5), (3000, 1)])
def test_all_metrics_of_features_against_torch_fidelity_and_pytorch_fid(num: int, repeats: int):
    """From features: FID, Inception score, KID, precision and recall; ours with density and coverage, and intervals."""
    fidelity = {name: pytest.importorskip(f"torch_fidelity.metric_{name}") for name in ("fid", "isc", "kid", "prc")}
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    x, y = (features(num, 2048, seed) for seed in (0, 1))
    logits = torch.randn(num, 1008, generator=torch.Generator().manual_seed(2))
    options = {"verbose": False, "kid_subset_size": min(num, 1000), "save_cpu_ram": False}

    def ours() -> dict[str, float]:
        found = survey(x, y, ("balls", "kernel"))
        moments = [Moments(2048) for _ in range(2)]
        for mine, z in zip(moments, (x, y), strict=True):
            mine.update(z)
        assert found.balls is not None
        assert found.kernel is not None
        values = {"fid": compare(*moments, error_bar=num <= 2048).value, "is": inception_score(logits).mean}
        values |= {"kid": kid(found.kernel).value, **density_coverage.compute(balls=found.balls)}
        return values | precision_recall.compute(balls=found.balls)

    def theirs() -> dict[str, float]:
        statistics = [fidelity["fid"].fid_features_to_statistics(z) for z in (x, y)]
        values = fidelity["fid"].fid_statistics_to_metric(*statistics, False)
        values |= fidelity["isc"].isc_features_to_metric(logits)
        values |= fidelity["kid"].kid_features_to_metric(x, y, **options)
        return values | fidelity["prc"].prc_features_to_metric(x, y, **options)

    def fid_alone() -> float:
        sets = [(np.mean(z, axis=0), np.cov(z, rowvar=False)) for z in (x.double().numpy(), y.double().numpy())]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fid_score.calculate_frechet_distance(*sets[0], *sets[1])

    start = time.perf_counter()
    fid_alone()  # once: ten seconds and more
    slow = time.perf_counter() - start
    mine, other = alternate(ours, theirs, repeats=repeats)
    print(f"\nmetrics of {num} + {num} features: {mine:.2f} s; torch-fidelity, four of them: {other:.2f} s, ratio "
          f"{other / mine:.1f}x; pytorch-fid, one: {slow:.2f} s, ratio {slow / mine:.1f}x")  # fmt: skip
    found, expected = ours(), theirs()
    assert found["precision"] == pytest.approx(expected["precision"], abs=2 / num)
    assert found["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
    assert other > 2 * mine
    assert slow > (2 if num == 500 else 1) * mine  # with more features than dimensions, ours for all metrics


def test_pairs_against_torch_fidelity():
    """All neighbors, balls and kernel sums of 4000 + 4000 rows beside its precision and recall alone."""
    metric_prc = pytest.importorskip("torch_fidelity.metric_prc")
    x, y = (features(4000, 2048, seed) for seed in (0, 1))
    mine, balls, other = alternate(
        lambda: survey(x, y, ("balls", "kernel")),
        lambda: survey(x, y, ("balls",)),
        lambda: metric_prc.prc_features_to_metric(x, y, verbose=False, save_cpu_ram=False),
        repeats=3,
    )
    print(f"\npairs of 4000 + 4000 rows: {mine:.2f} s, without the kernel {balls:.2f} s; torch-fidelity's precision, "
          f"recall: {other:.2f} s, ratio {other / mine:.2f}x, {other / balls:.2f}x")  # fmt: skip
    assert other > balls


def test_inception_forward_against_pytorch_fid(monkeypatch, tmp_path):
    peer = pytest.importorskip("pytorch_fid.inception")
    weights = FidInception().state_dict()
    for tensor in (t for t in weights.values() if t.ndim == 4):
        torch.nn.init.kaiming_normal_(tensor)  # or activations would fade into denormal numbers, which are slow
    torch.save(weights, tmp_path / "weights.pth")
    monkeypatch.setattr(peer, "load_state_dict_from_url", lambda *args, **kwargs: weights)
    theirs = peer.InceptionV3([3]).eval()
    ours = load_extractor(
        str(tmp_path / "weights.pth"), layer="backbone", resize="torch", device=torch.device("cpu")
    ).extract
    images = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        mine, other = alternate(lambda: ours(images), lambda: theirs(images.float() / 255), repeats=3)
    print(f"\nInception: {32 / mine:.1f} images/s, pytorch-fid {32 / other:.1f} images/s, ratio {other / mine:.2f}x")
    assert other > 1.3 * mine
