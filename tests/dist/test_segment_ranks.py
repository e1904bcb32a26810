"""A layer on patches that two processes train and score together is that of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from corecli.commands.probe.modes import segment
from corecli.commands.probe.reader import Reader
from corecli.commands.probe.segmentation import Context, count_predictions
from corecli.data.masks import open_masked
from corecli.engine.dist import World
from corecli.nets.encoder import build_encoder


def trained(world: World, folder: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The convolution's weight after a few steps, and the pixels counted."""
    options = segment.Options(steps=6, warmup_steps=1, train_batch=4, crop_px=16, stride_px=8, lr=0.01)
    data = open_masked(f"{folder}/images", f"{folder}/masks")
    encoder = build_encoder("vit-micro/8", image_size=16, projector_dim=None)
    context = Context(train=data, num_classes=3, reader=Reader(encoder=encoder, world=world, workers=0))
    predict: Any = segment.fit(context, options=options, seed=0)
    net = predict.args[0]
    return net.head[1].weight.detach().clone(), count_predictions(data, predict, context)


def test_two_processes_train_and_count_what_one_does(two_ranks: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(5):
        values = rng.integers(0, 3, (5, 5), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        values[:number] = 255  # unequal numbers of pixels count
        for folder, pixels in (("images", np.stack([values % 3 * 90] * 3, -1)), ("masks", values)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    weight, counts = trained(World(), str(tmp_path))
    assert int(counts.sum()) == 20 * (5 * 20 - 10)
    for found, of_ranks in two_ranks.run(trained, str(tmp_path)):
        torch.testing.assert_close(found, weight, rtol=1e-3, atol=1e-5)
        assert int((of_ranks - counts).abs().sum()) <= 4  # a pixel on the edge of two classes
