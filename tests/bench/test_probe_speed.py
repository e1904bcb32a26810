"""`probe` beside a 100-epoch offline probe that runs the frozen network on every image in every epoch.

The peer is the cheapest of its kind: images wait in memory as tensors, nothing is augmented or decoded, one learning
rate, no validation. Ours is the whole verb: reading, features, three seeds of a 24-setting sweep, k-NN and the scores.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from corecli.cli.app import run_line
from corecli.data.imageset import open_set
from corecli.nets.encoder import build_encoder, save_encoder

pytestmark = pytest.mark.bench

TRAIN, TEST, EPOCHS, REPEATS = "digits:32:train", "digits:32:test", 100, 5


def test_the_sweep_against_an_offline_probe_of_100_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "f.safetensors"
    encoder = build_encoder("resnet18", image_size=32, projector_dim=None).eval()
    save_encoder(path, encoder)
    data = open_set(TRAIN)
    images, labels = data.read(np.arange(len(data.rows))), torch.from_numpy(data.rows.labels)
    linear = nn.Linear(encoder.num_features, 10)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1, momentum=0.9)

    def their_epoch() -> None:
        for rows in torch.randperm(len(images)).split(256):
            with torch.no_grad():
                features = encoder(images[rows].float() / 255)[0]
            optimizer.zero_grad()
            F.cross_entropy(linear(features), labels[rows]).backward()
            optimizer.step()

    def ours() -> None:
        line = ["probe", "--encoder", str(path), "--train", TRAIN, "--test", TEST, "-q", "--device", "cpu"]
        assert run_line(line) == 0

    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(REPEATS):
        for name, call in (("ours", ours), ("theirs", their_epoch)):
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    mine, epoch = (statistics.median(times[name]) for name in ("ours", "theirs"))
    ratio = EPOCHS * epoch / mine
    with capsys.disabled():
        told = (
            f"probe {mine:.2f} s; offline probe {epoch:.2f} s an epoch (measured), {EPOCHS * epoch:.0f} s for {EPOCHS}"
        )
        print(f"\nResNet-18, 32 px, {len(images)} images: {told} (multiplied), ratio {ratio:.0f}x")
    assert ratio >= 20
