"""Every family through the command line: trained, sampled, refused what it has no use for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ran import Run

from corecli.base import registry
from corecli.data.imageset import open_set

FAMILIES = {name: registry.constants("generators", name) for name in registry.choices("generators")}


def small(name: str) -> str:
    """Return the options of a family's smallest network, on digits of 8 px."""
    chosen = {k: v for k, v in FAMILIES[name]["TINY"].items() if k in FAMILIES[name]["Options"]}
    chosen |= {"patch": 2} if "patch" in chosen else {}
    values = {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in chosen.items()}
    return " ".join(f"--set {k}={v}" for k, v in values.items())


SMALL = {name: small(name) for name in FAMILIES}
PIXELS = [
    name
    for name, family in FAMILIES.items()
    if family.get("FIRST_STAGE") != "required" and "features" in family.get("CONDITIONS", ("features",))
]


@pytest.mark.parametrize("name", PIXELS)
def test_a_family_trains_and_samples_from_features(run: Run, tiny: Path, name: str) -> None:
    train = f"train-gen --arch {name} {SMALL[name]} --data digits:8:test --batch-size 16 --steps 2 -q --out g.pt"
    features = ("--features", tiny / "z.safetensors")
    ran = run(*train.split(), *features)
    assert ran.code == 0, ran.err
    steps = () if FAMILIES[name].get("ONE_PASS") else ("--steps", "2")
    ran = run("sample", "--ckpt", "g.pt", *features, "--rows", "0,7", "--per-row", "2", *steps, "--out", "s.npz", "-q")
    assert ran.code == 0, ran.err
    images = open_set("s.npz")
    assert (len(images.rows), images.image_size) == (4, (8, 8))
    again = run("sample", "--ckpt", "g.pt", *features, "--rows", "7", *steps, "--out", "one.npz", "-q")
    assert again.code == 0
    assert (open_set("one.npz").read([0]) == images.read([1])).all()


@pytest.mark.parametrize(
    ("objective", "given", "sampler"),
    [("v", "", "ddim"), ("edm", "", "heun"), ("flow", "", "heun"), ("flow", "--sampler euler", "euler")],
)
def test_the_sampler_fits_the_objective_and_is_reported(run: Run, objective: str, given: str, sampler: str) -> None:
    train = f"train-gen --arch adm {SMALL['adm']} --data digits:8:test --batch-size 16 --steps 1 -q --out g.pt"
    assert run(*train.split(), "--objective", objective, "--no-learn-sigma").code == 0
    ran = run("sample", "--ckpt", "g.pt", "--num", "2", *given.split(), "--out", "s", "-q", "--json")
    assert json.loads(ran.out)["sampler"] == sampler == json.loads(Path("s/manifest.json").read_text())["sampler"]
    named = run("sample", "--ckpt", "g.pt", "--num", "2", "--sampler", sampler, "--out", "named", "-q")
    assert named.code == 0
    assert (open_set("named").read([0, 1]) == open_set("s").read([0, 1])).all()


@pytest.mark.parametrize("name", ["dit", "ldm"])
def test_latents_of_an_autoencoder_trained_here(run: Run, name: str) -> None:
    of_digits = "--data digits:16:test --batch-size 16 --steps 2 -q"
    first_stage = "--arch autoencoder --set channels=16 --set channel_mult=1,2 --preview-every 2"
    assert run(*f"train-gen {first_stage} {of_digits} --out ae.pt".split()).code == 0
    assert Path("ae.pt.d/previews/step-0000002.png").exists()
    line = f"train-gen --arch {name} {SMALL[name]} --first-stage ae.pt {of_digits}"
    ran = run(*line.split(), "--out", "g.pt")
    assert ran.code == 0, ran.err
    assert not list(Path("g.pt.d").glob("latents*"))
    ran = run(*["sample", "--ckpt", "g.pt", "--num", "3", "--steps", "2", "--out", "s.npz", "-q"])
    assert ran.code == 0, ran.err
    assert open_set("s.npz").image_size == (16, 16)
    assert run(*line.split(), "--latent-scale", "published", "--out", "p.pt").code == 2
    refused = run(*["sample", "--ckpt", "ae.pt", "--num", "3", "--out", "o", "-q"])
    assert refused.code == 2
    assert "an autoencoder cannot generate images" in refused.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--arch ldm", "latent diffusion needs a first stage"),
        ("--arch autoencoder --condition labels", "autoencoder is trained on none, not on labels"),
        ("--arch icgan --condition labels --ema power", "icgan keeps no power averages"),
        ("--arch adm --set patch=2", "unknown option of adm 'patch'"),
        ("--arch dit --set sise=b", "did you mean 'size'"),
        ("--latent-scale measured", "--latent-scale needs --first-stage"),
        ("--arch dat", "did you mean 'dit'"),
    ],
)
def test_what_a_family_has_no_use_for_is_refused(run: Run, words: str, message: str) -> None:
    ran = run(*f"train-gen {words} --data digits:8:test --batch-size 16 --steps 2 -q --out g.pt".split())
    assert ran.code == 2
    assert message in ran.err
    assert not list(Path().iterdir())
