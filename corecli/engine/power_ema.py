"""Power-function averages of weights, whose length can be chosen after training (Karras et al. 2024, section 3).

The average of length sigma_rel after t steps weights step tau by (tau / t)^gamma; sigma_rel is the standard deviation
of this profile in units of t. Averages of two lengths are updated in training and stored in snapshots. Any other length
is the weighted sum of snapshots whose profile is nearest to the requested one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

from corecli.base import checkpoint
from corecli.base.errors import DataError, UsageError, about
from corecli.engine.ema import EMA, Decay, Tensors

LENGTHS = (0.05, 0.10)  # updated in training (EDM2, section 3.2)
LONGEST = 0.25  # the plain mean of all steps has 0.289


class PowerEMA:
    """Averages of a module over several lengths: `module` is the longest, snapshots contain all of them."""

    def __init__(self, module: nn.Module, *, lengths: Sequence[float] = LENGTHS) -> None:
        self.lengths = tuple(sorted(lengths))
        self.averages = [EMA(module, decay=power(length)) for length in self.lengths]

    @property
    def module(self) -> nn.Module:
        """The longest average, in evaluation mode."""
        return self.averages[-1].module

    @property
    def num_updates(self) -> int:
        """The number of steps so far."""
        return self.averages[-1].num_updates

    def update(self, module: nn.Module) -> None:
        """Update the averages after an optimizer step."""
        for average in self.averages:
            average.update(module)

    def state(self) -> Tensors:
        """Return the tensors to save in a checkpoint."""
        named = zip(self.lengths, self.averages, strict=True)
        return {f"{length:g}/{name}": t for length, average in named for name, t in average.state().items()}

    def restore(self, tensors: Tensors) -> None:
        """Restore what `state` returned. Errors: DataError if the tensors are of another module or of other lengths."""
        for length, average in zip(self.lengths, self.averages, strict=True):
            prefix = f"{length:g}/"
            own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            if not own:
                raise DataError(f"the saved state has no average of length {length:g}")
            average.restore(own)

    def snapshot(self, folder: Path) -> Path:
        """Write the averages to a file in `folder`, in float16 as EDM2 does; return its path.

        The file is named after the number of steps, so a resumed run writes the same files. Errors: StorageError.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"ema-{self.num_updates:09d}.safetensors"
        named = zip(self.lengths, self.averages, strict=True)
        tensors = {f"{length:g}/{name}": t.half() for length, a in named for name, t in a.averaged().items()}
        checkpoint.save(path, tensors, kind="ema", step=self.num_updates, lengths=list(self.lengths))
        return path


class Reconstruction(NamedTuple):
    """tensors: averages by name, float32; error: relative L2 distance of their profile to the requested one."""

    tensors: Tensors
    error: float


def reconstruct(folder: Path, length: float, *, step: int | None = None) -> Reconstruction:
    """Return the average of any length after `step` steps (default: at the last snapshot), from the snapshots up to it.

    The tensors replace those of the same names in a generator. Errors: DataError if the folder has no such snapshot;
    UsageError if the length is out of range.
    """
    gamma_of(length)  # raises if it is out of range
    found = {int(path.stem.removeprefix("ema-")): path for path in sorted(folder.glob("ema-*.safetensors"))}
    kept = {n: path for n, path in found.items() if step is None or n <= step}
    if not kept or (step is not None and step not in kept):
        reason = "no snapshots of averages" + ("" if step is None else f" after {step} steps")
        raise DataError(reason, where=folder, hint="train with --ema power")
    lengths = _lengths(kept)
    profiles = [Profile(n, width) for n in kept for width in lengths]
    with about(folder):
        weights, error = fit(profiles, Profile(max(kept), length))
    total: Tensors = {}
    for n, path in kept.items():
        tensors, _ = checkpoint.load(path, kind="ema")
        for width in lengths:
            weight, prefix = weights[profiles.index(Profile(n, width))], f"{width:g}/"
            for name in (name for name in tensors if name.startswith(prefix)):
                part = weight * tensors[name].double()
                key = name.removeprefix(prefix)
                total[key] = total[key] + part if key in total else part
    return Reconstruction({name: tensor.float() for name, tensor in total.items()}, error)


class Profile(NamedTuple):
    """The weights of an average of a length over the steps up to `step`, as a density on [0, step]."""

    step: int
    length: float


def fit(profiles: Sequence[Profile], wanted: Profile) -> tuple[np.ndarray, float]:
    """Return the weights (float64) of the sum of profiles nearest to `wanted`, and its distance (Algorithm 3).

    Errors: DataError for two equal profiles.
    """
    gram = np.array([[inner_product(a, b) for b in profiles] for a in profiles])
    right = np.array([inner_product(a, wanted) for a in profiles])
    try:
        weights = np.linalg.solve(gram, right)
    except np.linalg.LinAlgError as error:
        raise DataError("the snapshots hold two averages of the same steps and length") from error
    norm = inner_product(wanted, wanted)
    residual = norm - 2 * weights @ right + weights @ gram @ weights
    return weights, float(np.sqrt(max(residual, 0.0) / norm))


def inner_product(a: Profile, b: Profile) -> float:
    """Return the integral of the product of two profiles (gamma + 1) / t (tau / t)^gamma."""
    a, b = sorted((a, b))  # the shorter one first: beyond its end the product is 0
    p, q = gamma_of(a.length), gamma_of(b.length)
    return (p + 1) * (q + 1) / ((p + q + 1) * b.step) * (a.step / b.step) ** q


def power(length: float) -> Decay:
    """Return the decay (1 - 1 / t)^(gamma + 1) of step t = 1, 2, ..., for weights (tau / t)^gamma (Eq. 5)."""
    exponent = gamma_of(length) + 1
    return lambda n: (1 - 1 / (n + 1)) ** exponent


@cache
def gamma_of(length: float) -> float:
    """Return the exponent of the profile of std sigma_rel: (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) = sigma_rel^2.

    Errors: UsageError outside of 0 to 0.25.
    """
    if not 0 < length <= LONGEST:
        raise UsageError(f"an average of length {length:g} is outside the range 0 to {LONGEST}", hint="use 0.05 to 0.2")
    inverse = length**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def _lengths(snapshots: dict[int, Path]) -> tuple[float, ...]:
    """Return the lengths in all snapshots. Errors: DataError if they differ."""
    found = {path: tuple(checkpoint.require_header(path, kind="ema")["lengths"]) for path in snapshots.values()}
    lengths, *others = set(found.values())
    if others:
        raise DataError("the snapshots have averages of different lengths", where=next(iter(found)).parent)
    return lengths
