"""Methods with a predictor, Barlow Twins and SupCon, beyond their losses."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from methods import DIM, make_batch, make_method, take_step
from torch import Tensor, nn

from corecli.base.errors import UsageError
from corecli.ssl.parts.losses import barlow_twins, moco_v3
from corecli.ssl.parts.method import embed
from corecli.ssl.parts.multi_positive import supervised_contrastive


def predicted(method: nn.Module, views: tuple[Tensor, ...]) -> Tensor:
    """Return predictions [2, B, D] of two views in one pass of copies, as BatchNorm sees both."""
    other = copy.deepcopy(method)
    return other.predictor(embed(other.encoder, views)[1].flatten(0, 1)).unflatten(0, (2, -1))


def test_byol_adds_the_squared_distances_of_both_directions() -> None:
    method, batch = make_method("byol"), make_batch()
    p = F.normalize(predicted(method, batch.views), dim=-1)
    z = F.normalize(copy.deepcopy(method).teach(batch.views), dim=-1)
    expected = sum((p[v] - z[1 - v]).square().sum(dim=-1).mean() for v in (0, 1))
    torch.testing.assert_close(method.loss(batch), expected)


def test_moco_v3_adds_the_contrasts_of_both_directions() -> None:
    method, batch = make_method("mocov3"), make_batch()
    q, k = predicted(method, batch.views), copy.deepcopy(method).teach(batch.views)
    expected = sum(moco_v3(q[v], k[1 - v], temperature=0.2) for v in (0, 1))
    torch.testing.assert_close(method.loss(batch), expected)


def test_simsiam_averages_negative_cosines_without_gradient_to_projections() -> None:
    method, batch = make_method("simsiam"), make_batch()
    p, z = predicted(method, batch.views), embed(copy.deepcopy(method.encoder), batch.views)[1]
    expected = -(F.cosine_similarity(p[0], z[1]) + F.cosine_similarity(p[1], z[0])).mean() / 2
    loss = method.loss(batch)
    torch.testing.assert_close(loss, expected)
    for parameter in method.predictor[-1].parameters():
        nn.init.zeros_(parameter)
    method.predictor[-1].bias.data[0] = 1.0  # a prediction that no image changes
    method.zero_grad()
    method.loss(batch).backward()
    assert not any(p.grad.any() for p in method.encoder.parameters())


def test_the_learning_rate_of_simsiams_predictor_is_constant() -> None:
    method = make_method("simsiam")
    assert list(method.constant_rate()) == list(method.predictor.parameters())
    assert list(make_method("simsiam", constant_rate=False).constant_rate()) == []


@pytest.mark.parametrize("name", ["byol", "simsiam", "mocov3"])
def test_predictors_are_as_published(name: str) -> None:
    kinds = [type(layer).__name__ for layer in make_method(name, predictor_hidden=40).predictor]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    predictor = make_method(name, predictor_hidden=40).predictor
    assert (predictor[0].out_features, predictor[-1].out_features) == (40, DIM)
    assert (predictor[-1].bias is None) == (name == "mocov3")
    assert torch.equal(predictor[0].weight, make_method(name, predictor_hidden=40).predictor[0].weight)


@pytest.mark.parametrize("freeze", [True, False])
def test_moco_v3_does_not_train_the_patch_embedding_of_a_vit(freeze: bool) -> None:
    pytest.importorskip("timm")
    backbone, px = "timm:test_vit", 32
    method = make_method("mocov3", backbone=backbone, image_size=px, freeze_patches=freeze)
    patches = method.encoder.backbone.patch_embed.proj
    assert isinstance(method.predictor[-1], nn.BatchNorm1d)
    assert not method.predictor[-1].affine
    before = patches.weight.clone()
    for step in range(2):
        take_step(method, make_batch(image_size=px, step=step))
        assert (patches.weight.grad is None) == freeze
    assert torch.equal(patches.weight, before) == freeze
    assert patches.weight.requires_grad  # a stage of another method may train it
    assert all(p.grad is not None for n, p in method.encoder.backbone.named_parameters() if "patch_embed" not in n)


def test_barlow_twins_scales_its_loss() -> None:
    batch = make_batch()
    method = make_method("barlow-twins", scale=0.5, off_diagonal=0.2)
    _, z = embed(copy.deepcopy(method.encoder), batch.views)
    torch.testing.assert_close(method.loss(batch), 0.5 * barlow_twins(z[0], z[1], off_diagonal=0.2))
    for wrong in ({"scale": 0.0}, {"off_diagonal": -1.0}):
        with pytest.raises(UsageError):
            make_method("barlow-twins", **wrong)


def test_supcon_contrasts_by_label() -> None:
    method, batch = make_method("supcon", temperature=0.3), make_batch()
    _, z = embed(copy.deepcopy(method.encoder), batch.views)
    torch.testing.assert_close(method.loss(batch), supervised_contrastive(z, batch.labels, temperature=0.3))
    assert method.needs == "labels"
