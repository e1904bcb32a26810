"""Bad input of generators: what they are trained on, losses that diverge, memory that runs out; one clear line each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from learners import at_step
from ran import Run, refused
from safetensors.torch import save_file

from corecli.base import checkpoint

DIGITS = "--data digits:8:test --batch-size 16 -q --preview-every 0"
ADM = "--arch adm --set channels=16 --set channel_mult=1,2 --set head_channels=16 --set num_res_blocks=1"
DIT = "--arch dit --set size=tiny --set patch=2"
LDM = "--arch ldm --set channels=32 --set channel_mult=1,2 --set head_channels=16 --set attention_resolutions=4"
ICGAN = "--arch icgan --condition labels --set channels=8 --set z_dim=8 --set condition_width=16 --set attention_px=4"
AUTOENCODER = "--arch autoencoder --set channels=16 --set channel_mult=1,2"
FAMILIES = {"adm": ADM, "dit with power averages": f"{DIT} --ema power", "icgan": ICGAN, "autoencoder": AUTOENCODER}
STEPS, BAD = 8, 5


def learned_on(family: str, *more: object) -> list[str]:
    return ["train-gen", *family.split(), *DIGITS.split(), "--out", "g", *map(str, more)]


def spoil(network: torch.nn.Module) -> None:
    """Set a weight to NaN."""
    next(p for p in network.parameters() if p.is_floating_point()).data.view(-1)[0] = torch.nan


def spoil_generator(patch: pytest.MonkeyPatch) -> None:
    """Have a weight of every generator become NaN before the `BAD`-th step."""
    at_step(patch, BAD - 1, lambda learner: spoil(learner.generator))


@pytest.mark.parametrize(
    "family",
    ["adm", "icgan", *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES if f not in ("adm", "icgan"))],
)
@pytest.mark.parametrize("often", [True, False], ids=["each step", "at the end"])
def test_a_nan_stops_and_the_last_good_state_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, family: str, often: bool
) -> None:
    """Looked at every step or once at the end, the step of the first NaN is named; states before it are kept."""
    line = learned_on(FAMILIES[family], "--steps", STEPS)
    line += ["--save-sec", "0", "--log-every", "1"] if often else ["--save-sec", "3600", "--log-every", "50"]
    with monkeypatch.context() as patched:
        spoil_generator(patched)
        refused(run(*line), "train-gen", 1, f"g: training diverged at step {BAD}: the ", " is nan (", "lower --lr")
    assert not Path("g").exists()
    states = sorted(path.name for path in Path("g.d").glob("state-*"))
    assert states == ([f"state-{n:09d}.safetensors" for n in (BAD - 2, BAD - 1)] if often else [])
    for name in states:
        tensors, _ = checkpoint.load(Path("g.d") / name)
        assert all(t.isfinite().all() for t in tensors.values())
    assert run(*line).code == 0
    steps = [json.loads(text)["step"] for text in Path("g.d/log.jsonl").read_text().splitlines()]
    assert steps == (list(range(1, STEPS + 1)) if often else [STEPS])
    assert run(*line[: line.index("g")], "alone", *line[line.index("g") + 1 :]).code == 0
    assert Path("g").read_bytes() == Path("alone").read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_average_that_is_not_finite_is_not_published(run: Run, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    at_step(monkeypatch, BAD - 1, lambda learner: spoil(learner.average), after=True)
    ran = run(*learned_on(FAMILIES[family], "--steps", BAD))
    refused(ran, "train-gen", 1, f"g: training diverged at step {BAD}: ", " is not finite (", "lower --lr")
    assert not Path("g").exists()


def test_a_preview_of_what_has_diverged_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_generator(monkeypatch)
    ran = run(*learned_on(DIT, "--steps", STEPS), "--preview-every", BAD)
    refused(ran, "train-gen", 1, f"g: training diverged at step {BAD}: the loss is not finite")


def test_a_generator_that_gives_nan_makes_no_images(run: Run, tiny: Path) -> None:
    tensors, header = checkpoint.load(tiny / "unconditional.pt")
    tensors["network.unet.conv_out.bias"].fill_(torch.nan)
    kept = {k: v for k, v in header.items() if k not in ("kind", "format", "corecli", "fingerprint")}
    checkpoint.save(Path("bad.pt"), tensors, kind="generator", **kept)
    ran = run("sample", "--ckpt", "bad.pt", "--num", "2", "--steps", "2", "--out", "o", "-q")
    refused(ran, "sample", 65, "bad.pt: images are not finite (the network diverged")
    assert not Path("o").exists() and not Path("o.d").exists()


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """First stages: a folder that is whole, ones that are not, and a file whose weights are NaN."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    folder = tmp_path_factory.mktemp("stages")
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        block_out_channels=(4, 4),
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    autoencoder.save_pretrained(folder / "whole")
    for name in ("weightless", "unnamed", "partial", "wide"):
        shutil.copytree(folder / "whole", folder / name)
    weights = "diffusion_pytorch_model.safetensors"
    (folder / "weightless" / weights).unlink()
    (folder / "unnamed" / "config.json").unlink()
    settings = json.loads((folder / "wide/config.json").read_text())
    (folder / "wide/config.json").write_text(json.dumps({**settings, "latent_channels": 8}))
    tensors = checkpoint.load_tensors(folder / "whole" / weights)
    save_file({n: t for n, t in tensors.items() if "decoder.conv_in" not in n}, folder / "partial" / weights)
    for p in autoencoder.parameters():
        p.data.fill_(torch.nan)
    autoencoder.save_pretrained(folder / "diverged")
    return folder


@pytest.mark.parametrize("family", [DIT, LDM], ids=["dit", "ldm"])
@pytest.mark.parametrize(
    ("place", "code", "words"),
    [
        ("nowhere", 66, ["nowhere: no such folder"]),
        ("$weightless", 65, ["$weightless: not a readable first stage"]),
        ("$unnamed", 65, ["$unnamed: holds no first stage", "config.json"]),
        ("$partial", 65, ["$partial: weights are missing, such as 'decoder.conv_in."]),
        ("$wide", 65, ["$wide: not a readable first stage"]),
        ("$diverged", 65, ["latents are not finite (the first stage diverged)"]),
        ("tiny:g.pt", 65, ["g.pt: a generator of adm without a first stage"]),
        ("tiny:f.safetensors", 65, ["f.safetensors: is of kind 'encoder', not 'generator'"]),
        ("nobody/nothing", 69, ["nobody/nothing: not in the local cache", "hf download nobody/nothing"]),
    ],
)
def test_first_stages_that_are_none(
    run: Run,
    tiny: Path,
    stages: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    place: str,
    code: int,
    words: list[str],
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def filled(text: str) -> str:
        return text.replace("tiny:", f"{tiny}/").replace("$", f"{stages}/")

    ran = run(*learned_on(family, "--steps", 2, "--first-stage", filled(place)))
    refused(ran, "train-gen", code, *map(filled, words))
    assert not Path("g").exists() and not list(Path().rglob("latents-*"))


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (
            f"{DIT} --image-size 9",
            2,
            ["the first stage cannot downsample images of 9 px by 2", "use a multiple of 2 px"],
        ),
        (f"{DIT} --set patch=8", 2, ["patches of 8 px do not tile 4 px"]),
        (f"{LDM} --set channel_mult=1,2,4,4", 2, ["4 px cannot be halved 3 times"]),
        (ADM, 2, ["adm does not work in latents (drop --first-stage; dit and ldm do)"]),
        (AUTOENCODER, 2, ["autoencoder does not work in latents"]),
    ],
)
def test_first_stages_that_do_not_fit(run: Run, stages: Path, line: str, code: int, words: list[str]) -> None:
    ran = run(*learned_on(line, "--steps", 2, "--first-stage", stages / "whole"))
    refused(ran, "train-gen", code, *words)
    assert not Path("g").exists()


def test_saved_work_on_another_first_stage_is_refused(run: Run, stages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = [*learned_on(DIT, "--steps", STEPS, "--save-sec", 0), "--first-stage"]
    with monkeypatch.context() as patched:
        spoil_generator(patched)
        assert run(*line, stages / "whole").code == 1
    other = shutil.copytree(stages / "whole", Path("other"))
    tensors = checkpoint.load_tensors(other / "diffusion_pytorch_model.safetensors")
    save_file({n: t + 1 for n, t in tensors.items()}, other / "diffusion_pytorch_model.safetensors")
    refused(run(*line, other), "train-gen", 73, "g.d: exists with another config", "first_stage: ")
    assert run(*line, stages / "whole").code == 0


EXHAUSTED: dict[str, Callable[[], Any]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has ..."),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "driver": lambda: RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory"),
}
WHERE = {
    "the latents of a first stage": (f"{DIT} --first-stage $whole", "corecli.nets.autoencoder.FirstStage.encode"),
    "a GAN": (ICGAN, "corecli.nets.biggan.BigGanDiscriminator.forward"),
    "a transformer": (DIT, "corecli.nets.dit.DiT.forward"),
    "an autoencoder": (AUTOENCODER, "corecli.generators.autoencoder.Autoencoder.loss"),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("kind", EXHAUSTED)
def test_out_of_memory_says_what_to_reduce(
    run: Run, stages: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: str
) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise EXHAUSTED[kind]()

    line, method = WHERE[where]
    with monkeypatch.context() as patched:
        patched.setattr(method, exhausted)
        ran = run(*learned_on(line.replace("$", f"{stages}/"), "--steps", 2))
        refused(ran, "train-gen", 1, "out of memory on cpu (try --batch-size 8)")
        if where == "a transformer":
            refused(run(*learned_on(line, "--steps", 2, "--batch-size", 1)), "train-gen", 1, "out of memory on cpu\n")
    assert not Path("g").exists() and not list(Path().rglob("latents-*"))


def test_out_of_memory_in_the_middle_keeps_what_is_done(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller batch goes on from the shard that is finished, for it is no part of what is made."""
    from corecli.nets.unet import AdmUnet

    line = ("sample", "--ckpt", tiny / "unconditional.pt", "--num", "300", "--steps", "1", "--out", "o", "-q")
    forward, calls = AdmUnet.forward, []

    def exhausted(self: AdmUnet, *inputs: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise EXHAUSTED["cuda"]()
        return forward(self, *inputs)

    with monkeypatch.context() as patched:
        patched.setattr(AdmUnet, "forward", exhausted)
        refused(run(*line), "sample", 1, "out of memory on cpu (try --batch-size 32)")
        assert len(calls) == 5 and len(list(Path("o.d").glob("shard-*"))) == 1
        assert run(*line, "--batch-size", "32").code == 0
    assert len(calls) == 5 + 2
    assert not Path("o.d").exists()
