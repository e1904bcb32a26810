"""Feature tables in the plane: principal components and t-SNE, beside scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corecli.draw import embedding
from corecli.draw.embedding import pca, tsne_2d


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.standard_normal((150, 9)) @ rng.standard_normal((9, 9)) + 4)


def test_principal_components_are_those_of_scikit_learn(
    features: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    oracle = decomposition.PCA(2).fit(features.numpy())
    expected = oracle.transform(features.numpy())
    signs = np.sign(oracle.components_[np.arange(2), np.abs(oracle.components_).argmax(1)])
    monkeypatch.setattr(embedding, "_BLOCK", 40)
    points, shares = pca(features)
    assert np.allclose(points.numpy(), expected * signs, atol=1e-9)
    assert np.allclose(shares.numpy(), oracle.explained_variance_ratio_, atol=1e-12)


def test_one_dimension_and_no_variance_are_no_error() -> None:
    points, shares = pca(torch.arange(5.0)[:, None])
    assert points.tolist() == [[-2, 0], [-1, 0], [0, 0], [1, 0], [2, 0]]
    assert shares.tolist() == [1, 0]
    points, shares = pca(torch.ones(5, 3))
    assert not points.any()
    assert not shares.any()
    assert tsne_2d(torch.ones(8, 3), steps=20).isfinite().all()


def test_tsne_keeps_neighbors_as_well_as_scikit_learn() -> None:
    manifold = pytest.importorskip("sklearn.manifold")
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 6
    rows = (4 * rng.standard_normal((6, 20)))[labels] + rng.standard_normal((240, 20))
    features = torch.from_numpy(rows).float()
    found = tsne_2d(features, steps=500)
    assert torch.equal(tsne_2d(features, steps=500), found)
    oracle = manifold.TSNE(method="exact", init="pca", random_state=0, max_iter=500).fit_transform(rows)
    ours, theirs = (manifold.trustworthiness(rows, points, n_neighbors=10) for points in (found.numpy(), oracle))
    assert ours > theirs - 0.01 > 0.9
    distances = torch.cdist(found, found)
    same = torch.from_numpy(labels[:, None] == labels)
    assert distances[same].max() < distances[~same].max() / 2
    nearest = distances.fill_diagonal_(torch.inf).argmin(1)
    assert (labels[nearest.numpy()] == labels).mean() > 0.99


def test_every_row_has_the_perplexity_asked_for(features: torch.Tensor) -> None:
    """Of the conditional probabilities, computed from the joint ones of two far-away halves by their definition."""
    num, perplexity = len(features), 12.0
    joint = embedding._joint(features, perplexity).double()
    assert float(joint.sum()) == pytest.approx(1, abs=1e-6)
    assert torch.equal(joint, joint.T)
    assert not joint.diagonal().any()
    squared = torch.cdist(features, features).square()
    conditional = torch.zeros(num, num, dtype=torch.float64)
    for row in range(num):  # an independent search, by sixty bisections in the logarithm of the width
        low, high = -20.0, 20.0
        for _ in range(60):
            middle = (low + high) / 2
            logits = -squared[row] * np.exp(middle)
            logits[row] = -torch.inf
            p = logits.softmax(0)
            entropy = float(-(p[p > 0] * p[p > 0].log()).sum())
            low, high = (middle, high) if entropy > np.log(perplexity) else (low, middle)
        conditional[row] = p
    assert torch.allclose(joint, (conditional + conditional.T) / (2 * num), atol=1e-8)


def test_every_step_is_reported(features: torch.Tensor) -> None:
    done: list[int] = []
    tsne_2d(features[:10], steps=7, step_done=lambda: done.append(1))
    assert len(done) == 7


def test_colors_of_patches_show_the_object_whichever_way_components_point() -> None:
    """Objects of the same two parts, at several places before a common ground: a part has one color in all images."""
    g = torch.Generator().manual_seed(0)
    ground, thing, difference = torch.randn(3, 12, generator=g) * torch.tensor([3.0, 3.0, 1.0])[:, None]
    left, right = thing + difference, thing - difference
    maps, parts = torch.empty(3, 12, 9, 10), torch.zeros(3, 9, 10, dtype=torch.long)
    for image, (y, x) in enumerate(((2, 1), (4, 4), (3, 2))):
        parts[image, y : y + 4, x : x + 2], parts[image, y : y + 4, x + 2 : x + 4] = 1, 2
    for part, feature in enumerate((ground, left, right)):
        maps.movedim(1, -1)[parts == part] = feature
    maps += 0.05 * torch.randn(maps.shape, generator=g)
    for sign in (1, -1):
        colors = embedding.color_patches(sign * maps).movedim(1, -1)
        assert torch.equal(colors.any(-1), parts > 0)
        assert float(colors.min()) == 0
        assert float(colors.max()) == 1
        red = [colors[parts == part][:, 0] for part in (1, 2)]
        assert abs(float(red[0].mean() - red[1].mean())) > 0.7
        assert max(float(one.std()) for one in red) < 0.1


def test_patches_without_an_object_all_have_colors() -> None:
    assert embedding.color_patches(torch.ones(2, 4, 3, 3)).shape == (2, 3, 3, 3)
    assert embedding.color_patches(torch.randn(2, 2, 1, 1)).shape == (2, 3, 1, 1)
