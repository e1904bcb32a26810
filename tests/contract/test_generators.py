"""What every file in generators/ promises that trains a diffusion model; each offers Config and build."""

import dataclasses
import json
import re
from typing import Any

import pytest
import torch
from first_stages import HALVING, set_by_hand

from corecli.base import registry
from corecli.base.errors import DataError, UsageError
from corecli.generators.parts.diffusion import DiffusionConfig
from corecli.nets.text import to_bytes

NAMES = [
    name
    for name in registry.choices("generators")
    if issubclass(getattr(registry.load("generators", name), "Config", object), DiffusionConfig)
]
# With one token of condition, attention to it is always 1, so queries and keys get no gradient.
SILENT = {"ldm": re.compile(r"\.transformer_blocks\.\d+\.(attn2\.to_[qk]|norm2)\.")}
DIM, CLASSES = 6, 8
LABELS = torch.arange(8)
FEATURES = torch.randn(8, DIM, generator=torch.Generator().manual_seed(1))
CAPTIONS = ["one", "number two", "three", "four", "the 5th", "six", "seven", "ei\u00dfht"]
LENGTH = 10  # of the longest, in bytes
BYTES = to_bytes(CAPTIONS, LENGTH)
EMBEDDINGS = torch.randn(8, 3, 2 * DIM, generator=torch.Generator().manual_seed(2)).half()
CONDITIONS: dict[str, tuple[dict[str, Any], torch.Tensor | None]] = {
    "none": ({"condition": "none"}, None),
    "features": ({"condition": "features", "condition_dim": DIM}, FEATURES),
    "labels": ({"condition": "labels", "num_classes": CLASSES}, LABELS),
    "captions": ({"condition": "captions", "caption_length": LENGTH + 2}, BYTES),
    "embedded": ({"condition": "captions", "caption_length": 4, "condition_dim": 2 * DIM}, EMBEDDINGS),
}
CONDITIONED = [name for name in CONDITIONS if name != "none"]


def build(name: str, condition: str = "none", **changes: Any):
    """A new generator; `changes` of fields that its family does not have are left out."""
    torch.manual_seed(0)
    module = registry.load("generators", name)
    known = {f.name for f in dataclasses.fields(module.Config)}
    changes = {field: value for field, value in changes.items() if field in known}
    needs_stage = getattr(module, "FIRST_STAGE", None) == "required"
    stage = {"first_stage": HALVING} if needs_stage else {}
    generator = module.build(module.Config(**{**module.TINY, **stage, **CONDITIONS[condition][0], **changes}))
    if generator.first_stage is not None:
        set_by_hand(generator.first_stage)
        generator.first_stage.measure(generator.moments(images_for(generator)).flatten(0, 1))
    return generator


def learned(generator) -> list[torch.nn.Parameter]:
    """The parameters that are not frozen."""
    return [p for p in generator.parameters() if p.requires_grad]


def images_for(generator) -> torch.Tensor:
    """8 images of one bright bar each, at 8 different places."""
    size = generator.config.image_size
    images = torch.full((8, 3, size, size), 40, dtype=torch.uint8)
    for i in range(8):
        images[i, :, (i * size) // 8 : (i * size) // 8 + 2] = 220
    return images


def train(generator, condition: torch.Tensor | None, *, steps: int) -> None:
    images = images_for(generator)
    optimizer = torch.optim.AdamW(learned(generator), lr=2e-3, fused=True)
    for step in range(steps):
        optimizer.zero_grad()
        generator.loss(images, condition, generator.draw(0, step, batch=8)).backward()
        optimizer.step()


@torch.no_grad()
def mean_loss(generator, condition: torch.Tensor | None) -> float:
    images = images_for(generator)
    draws = [generator.draw(99, step, batch=8) for step in range(8)]
    return sum(generator.loss(images, condition, d).item() for d in draws) / 8


@pytest.fixture(scope="module", params=NAMES)
def trained(request: pytest.FixtureRequest):
    """A feature-conditioned generator after 60 steps on 8 images; (generator, loss before)."""
    generator = build(request.param, "features", flip=False)
    before = mean_loss(generator, FEATURES)
    train(generator, FEATURES, steps=60)
    return generator, before


def test_it_overfits_8_images(trained) -> None:
    generator, before = trained
    assert mean_loss(generator, FEATURES) < before / 4


def test_the_condition_changes_the_image(trained) -> None:
    generator, _ = trained
    one, other = generator.generate([5, 5], FEATURES[:2], steps=10)
    assert (one.float() - other.float()).abs().mean() > 1
    one, same = generator.generate([5, 5], FEATURES[[1, 1]], steps=10)
    assert torch.equal(one, same)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("condition", CONDITIONED)
def test_the_condition_is_learned(name: str, condition: str) -> None:
    """Equal images with very little noise, whose sign follows from the condition only."""
    generator, given = build(name, condition, condition_dropout=0.05), CONDITIONS[condition][1]
    assert given is not None
    size = generator.config.image_size
    images = torch.full((8, 3, size, size), 128, dtype=torch.uint8)
    signs = torch.where(torch.arange(8) % 3 == 0, 1.0, -1.0)[:, None, None, None]
    signs = signs.expand(8, *generator.data_shape)
    lr = 3e-3 if condition in ("captions", "embedded") else 5e-3
    optimizer = torch.optim.AdamW(learned(generator), lr=lr, fused=True)

    def loss(step: int, condition: torch.Tensor) -> torch.Tensor:
        draws = generator.draw(0, step, batch=8)
        return generator.loss(images, condition, dataclasses.replace(draws, noise=signs, t=torch.zeros_like(draws.t)))

    for step in range(25 if name == "adm" else 50):
        optimizer.zero_grad()
        loss(step, given).backward()
        optimizer.step()
    right = sum(loss(step, given).item() for step in range(50, 55))
    wrong = sum(loss(step, given.roll(1, dims=0)).item() for step in range(50, 55))
    assert right < wrong / 2


def test_guidance_pushes_away_from_the_null_condition(trained) -> None:
    generator, _ = trained
    weak, strong, none = (
        generator.generate([1, 2], FEATURES[:2], steps=10, guidance=w).float() for w in (1.0, 3.0, 0.0)
    )
    assert (weak - strong).abs().mean() > 0.5
    assert (none - generator.generate([1, 2], steps=10).float()).abs().max() <= 1  # twice the batch rounds otherwise


@pytest.mark.parametrize("sampler", registry.choices("diffusion/samplers"))
def test_an_image_depends_on_its_seed_and_condition_alone(trained, sampler: str) -> None:
    generator, _ = trained
    seeds = [7, 2**62 + 1, 9]
    together = generator.generate(seeds, FEATURES[:3], sampler=sampler, steps=6)
    assert together.dtype == torch.uint8 and together.shape[0] == 3
    assert torch.equal(together, generator.generate(seeds, FEATURES[:3], sampler=sampler, steps=6))
    for i, seed in enumerate(seeds):
        alone = generator.generate([seed], FEATURES[i : i + 1], sampler=sampler, steps=6)
        difference = (alone.int() - together[i : i + 1].int()).abs()
        assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01
    other = generator.generate([8, *seeds[1:]], FEATURES[:3], sampler=sampler, steps=6)
    assert not torch.equal(other[0], together[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("condition", CONDITIONED)
def test_a_new_model_ignores_its_condition(name: str, condition: str) -> None:
    generator = build(name, condition)
    for n, p in generator.network.named_parameters():
        if "proj_out" not in n:  # by which a condition that is attended to would enter
            p.data.add_(0.05 * torch.randn_like(p))  # or zero-initialized last layers would hide everything
    given = CONDITIONS[condition][1]
    assert given is not None
    with_condition = generator.generate([3, 4], given[:2], steps=3)
    assert torch.equal(with_condition, generator.generate([3, 4], steps=3))
    assert with_condition.float().std() > 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_every_parameter_learns(name: str, condition: str, learn_sigma: bool) -> None:
    generator = build(name, condition, learn_sigma=learn_sigma)
    for p in generator.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    draws = generator.draw(0, 0, batch=8)
    draws = dataclasses.replace(draws, drop=torch.linspace(0, 0.99, 8))  # the first row is dropped
    loss = generator.loss(images_for(generator), CONDITIONS[condition][1], draws)
    loss.backward()
    assert loss.shape == () and loss.dtype == torch.float32
    learning = [(n, p) for n, p in generator.named_parameters() if p.requires_grad]
    silent = [n for n, p in learning if p.grad is None or not p.grad.any()]
    assert [n for n in silent if not (name in SILENT and SILENT[name].search(n))] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_a_pure_function(name: str) -> None:
    generator = build(name, "features", dropout=0.5, feature_noise=0.3)
    for p in generator.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    images, draws = images_for(generator), generator.draw(0, 4, batch=8)
    first = generator.loss(images, FEATURES, draws)
    torch.rand(7)
    assert torch.equal(first, generator.loss(images, FEATURES, generator.draw(0, 4, batch=8)))
    assert not torch.equal(first, generator.loss(images, FEATURES, generator.draw(0, 5, batch=8)))
    changed = dataclasses.replace(draws, condition_noise=-draws.condition_noise)
    assert not torch.equal(first, generator.loss(images, FEATURES, changed))


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_have_the_loss_and_gradient_of_one(name: str) -> None:
    generator = build(name, "features")
    for p in generator.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    images, draws = images_for(generator), generator.draw(0, 0, batch=8)
    parameters = learned(generator)
    loss = generator.loss(images, FEATURES, draws)
    whole = torch.autograd.grad(loss, parameters)
    losses = [generator.loss(images[a : a + 4], FEATURES[a : a + 4], draws[a : a + 4]) for a in (0, 4)]
    halves = torch.autograd.grad(sum(losses) / 2, parameters)
    assert (sum(losses) / 2).item() == pytest.approx(loss.item(), abs=1e-5)
    for a, b in zip(whole, halves, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_flips_follow_the_draws(name: str) -> None:
    generator, straight = build(name, flip=True), build(name, flip=False)
    images = images_for(generator)
    images[..., : images.shape[-1] // 2] = 0
    draws = generator.draw(0, 0, batch=8)
    flipped = torch.stack([im.flip(-1) if f else im for im, f in zip(images, draws.flip, strict=True)])
    for p, q in zip(generator.parameters(), straight.parameters(), strict=True):
        q.data.copy_(p.data.add_(0.05 * torch.randn_like(p)))
    assert 0 < draws.flip.sum() < 8
    assert torch.equal(generator.loss(images, None, draws), straight.loss(flipped, None, draws))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_state_and_config_rebuild_it(name: str, condition: str) -> None:
    module, generator = registry.load("generators", name), build(name, condition)
    for p in generator.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    config = module.Config(**json.loads(json.dumps(dataclasses.asdict(generator.config))))
    again = module.build(config)
    again.load_state_dict(generator.state_dict())
    given = CONDITIONS[condition][1]
    given = None if given is None else given[:2]
    assert torch.equal(generator.generate([0, 1], given, steps=3), again.generate([0, 1], given, steps=3))


@pytest.mark.parametrize("name", NAMES)
def test_generating_leaves_the_generator_as_it_was(name: str) -> None:
    generator = build(name)
    generator.generate([0], steps=1)
    assert generator.training
    generator.eval().generate([0], steps=1)
    assert not generator.training
    with pytest.raises(UsageError):
        generator.train().generate([0], steps=10**6)
    assert generator.training
    with pytest.raises(UsageError, match="0 sampling steps"):
        generator.generate([0], steps=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("condition", "changes", "given", "guidance", "error", "message"),
    [
        ("none", {}, FEATURES, 1.0, UsageError, "unconditional"),
        ("none", {}, None, 2.0, UsageError, "unconditional"),
        ("features", {"condition_dropout": 0.0}, FEATURES, 2.0, UsageError, "guidance needs.*condition dropout"),
        ("features", {"condition_dropout": 0.0}, None, 1.0, UsageError, "conditioned on features"),
        ("features", {}, None, 2.0, UsageError, "conditioned on features"),
        ("features", {}, FEATURES[:, :4], 1.0, DataError, "4 dimensions, but the generator takes 6"),
        ("features", {}, LABELS, 1.0, DataError, "no dimensions"),
        ("features", {}, FEATURES * torch.nan, 1.0, DataError, "NaN"),
        ("labels", {}, FEATURES, 1.0, DataError, "class label"),
        ("labels", {}, LABELS + 1, 1.0, DataError, "1 to 8.*0 to 7"),
        ("labels", {}, LABELS - 1, 1.0, DataError, "-1 to 6"),
        ("captions", {}, None, 2.0, UsageError, "conditioned on captions"),
        ("captions", {"condition_dropout": 0.0}, BYTES, 2.0, UsageError, "guidance needs.*condition dropout"),
        ("captions", {}, FEATURES, 1.0, DataError, "up to 12 bytes"),
        ("captions", {}, BYTES.repeat(1, 2), 1.0, DataError, "up to 12 bytes"),
        ("embedded", {}, BYTES, 1.0, DataError, "up to 5 embeddings of 12 dimensions"),
        ("embedded", {}, EMBEDDINGS.repeat(1, 2, 1), 1.0, DataError, "up to 5 embeddings"),
        ("embedded", {}, EMBEDDINGS * torch.nan, 1.0, DataError, "NaN"),
    ],
)
def test_wrong_conditions_are_refused(name, condition, changes, given, guidance, error, message) -> None:
    generator = build(name, condition, **changes)
    with pytest.raises(error, match=message):
        generator.check_condition(given, guidance=guidance)
    with pytest.raises(error, match=message):
        generator.generate(list(range(8)), given, steps=1, guidance=guidance)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_another_size_are_refused(name: str) -> None:
    generator = build(name)
    images = torch.zeros(8, 3, 15, 15, dtype=torch.uint8)
    with pytest.raises(DataError, match="15, 15"):
        generator.loss(images, None, generator.draw(0, 0, batch=8))


@pytest.mark.parametrize("normalization", ["none", "per-sample", "l2"])
def test_features_are_normalized_as_recorded(normalization: str) -> None:
    generator = build("adm", "features", feature_normalization=normalization)
    for p in generator.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    z = FEATURES.double()
    expected = {
        "none": z,
        "per-sample": (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True),
        "l2": z / z.norm(dim=1, keepdim=True),
    }[normalization]
    linear = generator.conditioning.linear.double()
    with torch.no_grad():
        reference = expected @ linear.weight.T + linear.bias
        ours = generator.conditioning.float()(FEATURES)
    torch.testing.assert_close(ours.double(), reference, atol=1e-5, rtol=1e-5)
