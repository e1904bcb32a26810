"""What sampling 10,000 rows costs beside the calls of its network: noise, sampler, files and all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from corecli.base import checkpoint
from corecli.cli import app as cli
from corecli.data.features import FeatureTable, save_features
from corecli.nets.unet import AdmUnet

pytestmark = pytest.mark.bench
NUM, DIM, ATTEMPTS = 10_000, 16, 3
STEPS = 10  # a fifth of the default, so that what comes once an image counts five times as much


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator of the preset `tiny`, for 8-pixel digits, and a table of 10,000 rows."""
    root = tmp_path_factory.mktemp("sampling")
    encode("train-ssl", "--preset", "tiny", "--projector-dim", DIM, "--steps", 1, "--out", root / "f.safetensors")
    encode("extract", "--encoder", root / "f.safetensors", "--out", root / "z.safetensors")
    encode("train-gen", "--preset", "tiny", "--steps", 1, "--features", root / "z.safetensors", "--out", root / "g.pt")
    keys = [f"{i % 10}/{i:06d}" for i in range(NUM)]
    features = torch.randn(NUM, DIM, generator=torch.Generator().manual_seed(0))
    header = checkpoint.require_header(root / "z.safetensors")
    labels = torch.arange(NUM).remainder(10).numpy()
    save_features(
        root / "many.safetensors",
        FeatureTable(features=features, keys=keys, groups=keys, labels=labels, header=header),
    )
    return root


def encode(verb: str, *words: object) -> None:
    assert cli.run_line([verb, "--data", "digits:8:train", *map(str, words), "-q", "--device", "cpu"]) == 0


@contextmanager
def counted_calls() -> Iterator[list[float]]:
    """The CPU seconds of every call of the network, measured in the run itself, as the machine may be busy."""
    seconds, forward = [], AdmUnet.forward

    def timed(self: AdmUnet, *inputs: torch.Tensor) -> torch.Tensor:
        start = time.process_time()
        out = forward(self, *inputs)
        seconds.append(time.process_time() - start)
        return out

    with patch.object(AdmUnet, "forward", timed):
        yield seconds


@pytest.mark.parametrize("form", ["packed", "npz", "tar", "directory"])
def test_sampling_costs_no_more_than_its_network(folder: Path, form: str) -> None:
    """At most 2 % above the network's own calls, CPU time of the whole line, median; files of PNG are told alone."""
    torch.set_num_threads(1)
    ratios = []
    for attempt in range(ATTEMPTS if form == "packed" else 1):
        words = ["sample", "--ckpt", folder / "g.pt", "--features", folder / "many.safetensors", "--steps", STEPS]
        words += ["--format", form, "--out", folder / f"{form}{attempt}", "-q", "--device", "cpu"]
        with counted_calls() as seconds:
            start = time.process_time()
            assert cli.run_line([str(word) for word in words]) == 0
            verb = time.process_time() - start
        assert len(seconds) >= STEPS * NUM // 64
        ratios.append(verb / sum(seconds))
        each = 1e6 * (verb - sum(seconds)) / NUM
        print(
            f"\nsample, {form}, {NUM} rows: {verb:.1f} CPU s, {sum(seconds):.1f} of the network, {each:.0f} us an image"
        )
    print(f"\nsample, {form}: {statistics.median(ratios):.4f} of the bare network calls")
    if form in ("packed", "npz"):
        assert statistics.median(ratios) <= 1.02
