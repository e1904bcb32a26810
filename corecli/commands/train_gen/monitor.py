"""What a training run logs, previews and writes, and the checks that it has not diverged."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from corecli.base import checkpoint
from corecli.base.errors import CorecliError
from corecli.base.rng import derive
from corecli.commands.train_gen.conditions import Conditions
from corecli.data.imageset import ImageSet
from corecli.draw.sheet import write_sheet
from corecli.engine.dist import World, mean_over_ranks
from corecli.engine.power_ema import PowerEMA
from corecli.engine.precision import autocast
from corecli.engine.run import Tensors
from corecli.generators.parts.learning import Learner, OwnStepLearner

_COLUMNS, _ROWS, _SAMPLING_STEPS = 10, 4, 25  # of a preview


class Monitor:
    """Watches a learner. `out` is the target, `one_pass` whether the generator samples without steps."""

    def __init__(
        self,
        learner: Learner | OwnStepLearner,
        data: ImageSet,
        conditions: Conditions,
        world: World,
        *,
        out: Path,
        seed: int,
        precision: str,
        one_pass: bool,
    ) -> None:
        self._learner, self._data, self._conditions, self._world = learner, data, conditions, world
        self._out, self._seed, self._precision = out, seed, precision
        self._sampling_steps = None if one_pass else _SAMPLING_STEPS
        self._bad_step = torch.full((), -1, device=world.device)  # the first whose loss is not finite

    def watch(self, step: int, values: Tensors) -> None:
        """Remember the first step with a value that is not finite, without waiting for the device."""
        bad = ~torch.stack([value.isfinite() for value in values.values()]).all()
        self._bad_step = torch.where(bad & (self._bad_step < 0), step, self._bad_step)

    def figures(self, step: int, values: Tensors) -> dict[str, float]:
        """Return the mean of each value over all ranks. Errors: CorecliError if one is not finite."""
        figures = {name: float(mean_over_ranks(value)) for name, value in values.items()}
        name = next((name for name, value in figures.items() if not np.isfinite(value)), None)
        if name is not None:
            first = int(self._bad_step)
            raise self._diverged(step if first < 0 else first, f"the {name} is {figures[name]}")
        return figures

    def snapshot(self, step: int, folder: Path, *, num: int, total_steps: int) -> None:
        """Write a snapshot of power averages when the next of `num` in a run is due."""
        ema = getattr(self._learner, "ema", None)
        is_due = (step + 1) * num // total_steps > step * num // total_steps
        if isinstance(ema, PowerEMA) and self._world.is_main and is_due:
            ema.snapshot(folder / "averages")

    def preview(self, path: Path) -> None:
        """Draw samples of the average from fixed seeds, below the real images if the generator is conditioned.

        Errors: CorecliError if a loss was not finite.
        """
        if int(self._bad_step) >= 0:
            raise self._diverged(int(self._bad_step), "the loss is not finite")
        average: Any = self._learner.average
        num = len(self._data.rows)
        columns = min(_COLUMNS, num)
        rows = np.tile(np.linspace(0, num - 1, columns).astype(int), _ROWS)
        condition = self._conditions.of(rows, self._world.device)
        with autocast(self._precision, self._world.device):
            if hasattr(average, "reconstruct"):
                images = average.reconstruct(self._data.read(rows[:columns])).cpu()
            else:
                seeds = [derive(self._seed, "preview", i) for i in range(len(rows))]
                images = average.generate(seeds, condition, steps=self._sampling_steps).cpu()
        has_head = condition is not None or hasattr(average, "reconstruct")
        if has_head:
            images = torch.cat([self._data.read(rows[:columns]), images])
        write_sheet(path, images.numpy(), columns=columns, head_rows=int(len(images) > len(rows)))

    def save(self, *, arch: str, last_step: int, **header: Any) -> None:
        """Write the average as a generator file. Errors: CorecliError if a weight is not finite."""
        average: Any = self._learner.average
        weights = average.state_dict()
        bad = next((name for name, t in weights.items() if not t.isfinite().all()), None)
        if bad is not None:
            raise self._diverged(last_step, f"{bad} is not finite")
        checkpoint.save(
            self._out,
            weights,
            kind="generator",
            arch=arch,
            generator=asdict(average.config),
            condition=self._conditions.header,
            class_names=list(self._data.class_names),
            **header,
        )

    def _diverged(self, step: int, sign: str) -> CorecliError:
        hint = "the last good state is kept; lower --lr and start over with --force"
        return CorecliError(f"training diverged at step {step + 1}: {sign}", where=self._out, hint=hint)
