"""IC-GAN's promises: its game in float64, and that a step is a function of state, batch and draws."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from corecli.base.errors import DataError, UsageError
from corecli.engine.dist import World
from corecli.generators import icgan
from corecli.generators.parts.adversarial import AdversarialGenerator
from corecli.generators.parts.adversarial_learner import AdversarialLearner
from corecli.generators.parts.learning import TrainOptions

DIM, SIZE = 6, 8
FEATURES = torch.randn(8, DIM, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(8)
GIVEN = {"none": None, "features": FEATURES, "labels": LABELS}
LR, D_LR = 2e-3, 5e-4


def build(condition: str = "features", **changes: Any) -> AdversarialGenerator:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "image_size": SIZE,
        "condition": condition,
        **{"features": {"condition_dim": DIM}, "labels": {"num_classes": 8}}.get(condition, {}),
        "channels": 8,
        "channel_mult": (2, 2),
        "discriminator_mult": (2, 2),
        "z_dim": 12,
        "condition_width": 16,
        "neighbours": 0,
    }
    return icgan.build(icgan.Config(**{**defaults, **changes}))


def learner(condition: str = "features", *, lr: float = LR, clip: float = 0.0, **changes: Any) -> AdversarialLearner:
    generator = build(condition, **changes)
    torch.manual_seed(1)
    return icgan.learner(generator, TrainOptions(lr=lr, clip=clip, ema_decay=0.9), World())


def images() -> Tensor:
    """8 images of one bright row each."""
    found = torch.full((8, 3, SIZE, SIZE), 40, dtype=torch.uint8)
    for i in range(8):
        found[i, :, i] = 220
    return found


def learn(trained: AdversarialLearner, *, steps: range, condition: str = "features") -> list[dict[str, Tensor]]:
    draws = [trained.generator.draw(0, step, batch=8) for step in steps]
    return [trained.learn(images(), GIVEN[condition], d) for d in draws]


def shake(network: torch.nn.Module) -> None:
    for p in network.parameters():
        p.data.add_(0.05 * torch.randn_like(p))


def adam_step(network: Any, gradients: tuple[Tensor, ...], lr: float) -> list[Tensor]:
    """Weights after a first step of Adam without momentum: m = g and v = g^2 once their bias is corrected."""
    return [p - lr * g / (g.abs() + 1e-6) for p, g in zip(network.parameters(), gradients, strict=True)]


def weights_agree(network: torch.nn.Module, expected: list[Tensor], gradients: tuple[Tensor, ...], lr: float) -> None:
    for p, wanted, g in zip(network.parameters(), expected, gradients, strict=True):
        clear = g.abs() > 1e-3  # elsewhere float32 does not show the direction
        assert clear.any() or g.abs().max() < 1e-3
        torch.testing.assert_close(p.detach().double()[clear], wanted.detach()[clear], rtol=0, atol=0.01 * lr)


def test_a_step_is_that_of_the_hinge_game_in_float64() -> None:
    ours = learner(augment=("none",), flip=False, discriminator_lr=D_LR, attention_px=(4,))
    for network in (ours.generator, ours.discriminator):
        shake(network)
    g, d = (copy.deepcopy(network).double().train() for network in (ours.generator.network, ours.discriminator))
    draws = ours.generator.draw(0, 0, batch=8)
    learned = ours.learn(images(), FEATURES, draws)

    z, x = draws.z.double(), images().double() / 127.5 - 1
    h = FEATURES.double() / FEATURES.double().norm(dim=1, keepdim=True)
    fake = g(z[:, 0], h).detach()
    scores = d(torch.cat([x, fake]), torch.cat([h, h]))
    of_d = (1 - scores[:8]).clamp(min=0).mean() + (1 + scores[8:]).clamp(min=0).mean()
    gradients = torch.autograd.grad(of_d, list(d.parameters()))
    after = adam_step(d, gradients, D_LR)
    assert learned["discriminator"].item() == pytest.approx(of_d.item(), rel=1e-5)
    assert learned["real"].item() == pytest.approx(scores[:8].mean().item(), abs=1e-4)
    assert learned["fake"].item() == pytest.approx(scores[8:].mean().item(), abs=1e-4)
    weights_agree(ours.discriminator, after, gradients, D_LR)

    for p, value in zip(d.parameters(), after, strict=True):
        p.data = value.detach()
    of_g = -d(g(z[:, 1], h), h).mean()
    gradients = torch.autograd.grad(of_g, list(g.parameters()))
    assert learned["loss"].item() == pytest.approx(of_g.item(), abs=1e-3)
    weights_agree(ours.generator.network, adam_step(g, gradients, LR), gradients, LR)


@pytest.mark.parametrize("condition", GIVEN)
def test_every_parameter_of_both_networks_learns(condition: str) -> None:
    trained = learner(condition, attention_px=(4,), channels=16)
    for network in (trained.generator, trained.discriminator):
        shake(network)
    learn(trained, steps=range(1), condition=condition)
    for network in (trained.generator, trained.discriminator):
        silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        assert silent == []


def distances(trained: AdversarialLearner, features: Tensor, pictures: Tensor) -> Tensor:
    """[8, 8]: mean squared distance of a sample for each row of features to each of the pictures."""
    made = trained.average.generate(list(range(8)), features).float()  # type: ignore[operator]
    return (made[:, None] - pictures.float()).square().mean(dim=(2, 3, 4))


WIDE: dict[str, Any] = {"augment": ("none",), "flip": False, "channel_mult": (4, 4), "discriminator_mult": (4, 4)}


def test_it_overfits_8_images() -> None:
    trained = learner(lr=4e-3, **WIDE)
    before = distances(trained, FEATURES, images()).min(dim=1).values.mean()
    learn(trained, steps=range(60))
    assert distances(trained, FEATURES, images()).min(dim=1).values.mean() < before / 4


def test_the_condition_is_learned() -> None:
    """Bright and dark images, which only the features distinguish."""
    sign = torch.tensor([1, -1] * 4)
    features, pictures = sign[:, None] + 0.3 * FEATURES, torch.where(sign > 0, 200, 40).to(torch.uint8)
    pictures = pictures[:, None, None, None].expand(8, 3, SIZE, SIZE)
    trained = learner(lr=4e-3, **WIDE)
    before = distances(trained, features, pictures).diagonal().mean()
    for step in range(60):
        trained.learn(pictures, features, trained.generator.draw(0, step, batch=8))
    assert distances(trained, features, pictures).diagonal().mean() < before / 10


def test_a_restored_learner_goes_on_bit_for_bit() -> None:
    options = {"discriminator_steps": 2, "ema_start": 3}
    whole, again = learner(**options), learner(**options)
    learn(whole, steps=range(2))
    shake(again.generator)
    again.restore({name: t.clone() for name, t in whole.state().items()}, 0)
    assert learn(whole, steps=range(2, 5)) == learn(again, steps=range(2, 5))
    states = whole.state(), again.state()
    assert states[0].keys() == states[1].keys()
    assert [name for name, t in states[0].items() if not torch.equal(t, states[1][name])] == []


def test_the_discriminator_is_saved_with_the_run_and_not_published() -> None:
    trained = learner()
    learn(trained, steps=range(1))
    saved = {name.removeprefix("discriminator/") for name in trained.state() if name.startswith("discriminator/")}
    assert saved == set(trained.discriminator.state_dict())
    assert trained.average.state_dict().keys() == build().state_dict().keys()
    moments = [name for name in trained.state() if name.endswith("exp_avg_sq")]
    assert len(moments) == sum(len(list(n.parameters())) for n in (trained.generator, trained.discriminator))


def test_a_step_is_a_function_of_state_batch_and_draws() -> None:
    first, again, other = (learner() for _ in range(3))
    one = learn(first, steps=range(1))
    torch.rand(7)
    assert one == learn(again, steps=range(1))
    assert one != learn(other, steps=range(1, 2))


@pytest.mark.parametrize(("use", "name"), enumerate(["real", "fake", "loss"]))
def test_each_showing_has_an_augmentation_of_its_own(use: int, name: str) -> None:
    draws = build().draw(0, 0, batch=8)
    changed = draws.augment.clone()
    changed[:, use] = 0.5
    learned = [
        learner().learn(images(), FEATURES, dataclasses.replace(draws, augment=a)) for a in (draws.augment, changed)
    ]
    differs = {n for n in ("real", "fake", "loss") if learned[0][n] != learned[1][n]}
    assert differs - {"loss"} == {name} - {"loss"}
    assert name in differs
    assert learner(augment=("none",)).learn(images(), FEATURES, draws)[name] != learned[0][name]


def test_flips_follow_the_draws() -> None:
    pictures = images()
    pictures[..., :3] = 0
    draws = build().draw(0, 0, batch=8)
    flipped = torch.stack([x.flip(-1) if f else x for x, f in zip(pictures, draws.flip, strict=True)])
    assert 0 < draws.flip.sum() < 8
    learned = learner().learn(pictures, FEATURES, draws)
    assert learned == learner(flip=False).learn(flipped, FEATURES, draws)
    assert learned != learner(flip=False).learn(pictures, FEATURES, draws)


def test_parts_of_the_batch_take_turns() -> None:
    trained, halves = learner(discriminator_steps=2), learner()
    draws = trained.generator.draw(0, 0, batch=8)
    seen: list[Tensor] = []
    trained.discriminator.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    trained.learn(images(), FEATURES, draws)
    assert [len(shown) for shown in seen] == [8, 8, 4]  # real and generated, twice, and those of the generator's step
    first: list[Tensor] = []
    halves.discriminator.register_forward_pre_hook(lambda _, given: first.append(given[0].detach().clone()))
    halves.learn(images()[::2], FEATURES[::2], draws[::2])
    assert torch.equal(seen[0], first[0])
    with pytest.raises(UsageError, match="8 images per process cannot be split into 3 equal parts"):
        learn(learner(discriminator_steps=3), steps=range(1))


def test_the_average_starts_at_ema_start() -> None:
    trained = learner(ema_start=2)
    for step, is_equal in enumerate([True, True, False]):
        learn(trained, steps=range(step, step + 1))
        pairs = zip(trained.average.parameters(), trained.generator.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == is_equal


def test_clipping_bounds_a_gradient() -> None:
    """Adam hides the size of a single gradient, so what is left of it is looked at."""
    trained = learner(clip=1e-3)
    learn(trained, steps=range(1))
    for network in (trained.generator, trained.discriminator):
        norm = torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm()
        assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_an_image_depends_on_its_seed_and_condition_alone() -> None:
    trained = learner()
    learn(trained, steps=range(10))
    generator: Any = trained.average
    seeds = [7, 2**62 + 1, 9]
    together = generator.generate(seeds, FEATURES[:3])
    assert together.dtype == torch.uint8
    assert together.shape == (3, 3, SIZE, SIZE)
    for i, seed in enumerate(seeds):
        alone = generator.generate([seed], FEATURES[i : i + 1])
        assert (alone.int() - together[i : i + 1].int()).abs().max() <= 1
    for other in (generator.generate([8, *seeds[1:]], FEATURES[:3]), generator.generate(seeds, FEATURES[3:6])):
        assert not torch.equal(other[0], together[0])


@pytest.mark.parametrize("condition", GIVEN)
def test_state_and_config_rebuild_it(condition: str) -> None:
    trained = learner(condition)
    learn(trained, steps=range(2), condition=condition)
    generator: Any = trained.average
    fields = json.loads(json.dumps(dataclasses.asdict(generator.config)))
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    again = icgan.build(icgan.Config(**fields))
    assert again.config == generator.config
    again.load_state_dict(generator.state_dict())
    given = GIVEN[condition]
    given = None if given is None else given[:2]
    assert again.training
    assert torch.equal(generator.generate([0, 1], given), again.generate([0, 1], given))
    assert again.training


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"sampler": "ddpm"}, "one pass"),
        ({"steps": 25}, "one pass"),
        ({"sampler_options": {"eta": 1.0}}, "one pass"),
        ({"spacing": "even"}, "one pass"),
        ({"guidance": 2.0}, "a GAN takes no guidance"),
        ({"guidance_interval": (0.1, 1.0)}, "one pass"),
    ],
)
def test_choices_of_diffusion_are_refused(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build().generate([0], FEATURES[:1], **choice)


@pytest.mark.parametrize(
    ("condition", "given", "error", "message"),
    [
        ("features", None, UsageError, "conditioned on features, and none are given"),
        ("features", FEATURES[:, :4], DataError, "4 dimensions, but the generator takes 6"),
        ("features", FEATURES * torch.nan, DataError, "NaN"),
        ("none", FEATURES, UsageError, "unconditional"),
        ("labels", FEATURES, DataError, "class label"),
        ("labels", LABELS + 1, DataError, "1 to 8.*0 to 7"),
    ],
)
def test_wrong_conditions_are_refused(condition: str, given: Any, error: Any, message: str) -> None:
    generator = build(condition)
    with pytest.raises(error, match=message):
        generator.check_condition(given)
    with pytest.raises(error, match=message):
        generator.generate(list(range(8)), given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condition": "captions"}, "not on captions"),
        ({"condition_dim": 0}, "features of 2 or more"),
        ({"condition": "labels", "num_classes": 0}, "the number of classes"),
        ({"augment": ("colour",)}, "unknown augmentation 'colour'.*did you mean 'color'"),
        ({"discriminator_steps": 0}, "discriminator_steps is 0.*1 step or more"),
        ({"feature_normalization": "l3"}, "unknown feature normalization 'l3'"),
        ({"image_size": 12, "channel_mult": None}, "12 px are not 4 px doubled"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(**{"condition": "features", **changes})


def test_data_of_another_kind_is_refused() -> None:
    trained = learner()
    draws = trained.generator.draw(0, 0, batch=8)
    for data in (torch.zeros(8, 3, 15, 15, dtype=torch.uint8), images().float()):
        with pytest.raises(DataError, match="the generator takes pixels of"):
            trained.learn(data, FEATURES, draws)
