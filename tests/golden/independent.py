"""The generative metrics once more, in float64 NumPy from full matrices: what `corecli fid` is held to."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def frechet(x: Array, y: Array) -> float:
    """The trace of the root from the singular values of the centered rows, exact also for few rows."""
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return float(shift + (a**2).sum() + (b**2).sum() - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum())


def kid(x: Array, y: Array) -> float:
    def mean(a: Array, b: Array, *, off_diagonal: bool) -> float:
        kernel = (a @ b.T / a.shape[1] + 1) ** 3
        return (kernel.sum() - np.trace(kernel)) / (len(a) * (len(a) - 1)) if off_diagonal else kernel.mean()

    own = mean(x, x, off_diagonal=True) + mean(y, y, off_diagonal=True)
    return float(own - 2 * mean(x, y, off_diagonal=False))


def distances(x: Array, y: Array) -> Array:
    return np.sqrt(np.stack([((y - row) ** 2).sum(1) for row in x]))


def manifolds(samples: Array, real: Array) -> dict[str, float]:
    own, theirs = (np.sort(distances(x, x)) for x in (samples, real))
    between = distances(samples, real)
    held = between < theirs[:, 5]
    return {
        "precision": float((between <= theirs[:, 3]).any(1).mean()),
        "recall": float((between <= own[:, 3, None]).any(0).mean()),
        "density": float(held.sum() / (5 * len(samples))),
        "coverage": float(held.any(0).mean()),
    }


def copies(samples: Array, real: Array) -> dict[str, float]:
    between, among = distances(samples, real), distances(real, real)
    np.fill_diagonal(among, np.inf)
    nearest, nearest_real = between.min(1), among.min(1)
    second = np.sort(between)[:, 1]
    return {
        "copy_ratio": float(nearest.mean() / nearest_real.mean()),
        "memorised": float((nearest < second / 3).mean()),
        "authenticity": float((nearest > nearest_real[between.argmin(1)]).mean()),
    }


def vendi(x: Array) -> float:
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    shares = np.linalg.eigvalsh(units @ units.T / len(x))
    shares = shares[shares > 1e-15]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def inception_score(logits: Array, num_splits: int) -> tuple[float, float]:
    order = np.random.RandomState(2020).permutation(len(logits))
    log_p = logits - logits.max(1, keepdims=True)
    p = np.exp(log_p) / np.exp(log_p).sum(1, keepdims=True)
    parts = [p[order][i * len(p) // num_splits : (i + 1) * len(p) // num_splits] for i in range(num_splits)]
    scores = [np.exp((q * (np.log(q) - np.log(q.mean(0)))).sum(1).mean()) for q in parts]
    return float(np.mean(scores)), float(np.std(scores))


def diversity(x: Array, labels: Array) -> float:
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    found = []
    for label in np.unique(labels):
        cosines = units[labels == label] @ units[labels == label].T
        found.append(1 - cosines[~np.eye(len(cosines), dtype=bool)].mean())
    return float(np.mean(found))
